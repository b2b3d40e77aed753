"""Whether a space belongs between a prompt and its answer, and how the answer is spelled then."""

import pytest
import torch

import locate
from locate.facts.joining import continuation
from locate.facts.prompts import encode_target
from tests import tiny

CASES = [
    ("The capital of France is", "Paris", " Paris"),
    ("法国的首都是", "巴黎", "巴黎"),
    ("日本の首都は", "東京", "東京"),
    ("東京タワーの高さは", "333メートル", "333メートル"),
    ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส", "ปารีส"),
    ("ก่อตั้งในปี", "1889", " 1889"),
    ("The capital of China is called", "北京", " 北京"),
    ("公元1889", "年", "年"),
    ("首都:", "北京", "北京"),
    ("Answer:", "北京", " 北京"),
    ("프랑스의 수도는", "파리", " 파리"),
    ("عاصمة فرنسا هي", "باريس", " باريس"),
    ("It costs $", "50", "50"),
    ("It costs", "$50", " $50"),
    ("It costs 5 €", "per", " per"),
    ("It costs 5€", "per", " per"),
    ("US$", "50", "50"),
    ("(", "Paris", "Paris"),
    ("in Paris", "(France)", " (France)"),
    ("in (Paris)", "and", " and"),
    ("pre-", "war", "war"),
    ("either/", "or", "or"),
    ("Paris—", "Rome", "Rome"),
    ("Paris —", "Rome", " Rome"),
    ("https://", "example.com", "example.com"),
    ('She read "Emma"', "and", " and"),
    ('She read "', "Emma", "Emma"),
    ("She read 'Emma'", "and", " and"),
    ("She read '", "Emma", "Emma"),
    ("the players'", "lounge", " lounge"),
    ("La capitale de l'", "Italie", "Italie"),
    ("La capitale de l’", "Italie", "Italie"),
    ("She read “Emma”", "and", " and"),
    ("She read “", "Emma", "Emma"),
    ("Sie las „Emma“", "und", " und"),
    ("Sie las „", "Emma", "Emma"),
    ("Elle a lu «", "Emma", "Emma"),
    ("Elle a lu « Emma »", "et", " et"),
    ("Er las »Emma«", "und", " und"),
    ("Er las »", "Emma", "Emma"),
    ("Hon läste ”Emma”", "och", " och"),
    ("Hon läste ”", "Emma", "Emma"),
    ('a 24"', "screen", " screen"),
    ("¿", "Dónde", "Dónde"),
    ("他说：“", "你好", "你好"),
    ("《红楼梦》的作者是", "曹雪芹", "曹雪芹"),
    ("in", "...", "..."),
    ("he is", '"Bob"', ' "Bob"'),
    ('he said "yes', '"', '"'),
    ("Rome", "'s", "'s"),
    ("is", "'twas'", " 'twas'"),
    ("user@", "example", "example"),
    ("C#", "is", " is"),
    ("#", "1", "1"),
    ("x =", "5", " 5"),
    ("x=", "5", "5"),
    ("temperature is -", "5", "5"),
    ("the answer is", "-5", " -5"),
    ("tree", "-based", "-based"),
    ("is **", "Paris", "Paris"),
    ("is **bold**", "and", " and"),
    ("3.", "14", "14"),
    ("Rome.", "It", " It"),
    ("written in C++", "and", " and"),
    ("std::", "vector", "vector"),
    ("price: 100", "%", "%"),
    ("It is", "  Paris", "  Paris"),
    ("is ", "Paris", "Paris"),
    ("a,", "b", " b"),
    ("He said, \"It's", "fine", " fine"),
    ("מדינת ישראל־", "ארץ", "ארץ"),
    ("ຫຼວງຂອງລາວແມ່ນ", "ວຽງຈັນ", "ວຽງຈັນ"),
    ("my_", "var", "var"),
    ("cd /", "home", "home"),
    ("<b>", "Paris", "Paris"),
    ("won 3 medals (2 gold)", "in", " in"),
    ("`x`", "is", " is"),
    ("call `", "x", "x"),
    ("$", "AAPL", "AAPL"),
    ('Her name is "Bob",', "and", " and"),
    ("“In the '90s", "rap", " rap"),
    ("[", "x", "x"),
    ("中国的首都是\u200f", "北京", "北京"),
]


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


@pytest.mark.parametrize(("prompt", "answer", "expected"), CASES)
def test_running_text_decides(prompt, answer, expected):
    assert continuation(prompt, answer) == expected


@pytest.mark.parametrize(("prompt", "answer", "expected"), CASES)
def test_tokens_are_those_of_the_text(llama, prompt, answer, expected):
    if prompt[-1].isspace():
        return
    tokens = encode_target(llama, prompt, answer)
    base = llama.tokenizer(prompt)["input_ids"]
    assert llama.tokenizer.decode([*base, *tokens.tolist()]) == prompt + expected


def test_a_fact_says_it():
    fact = locate.Fact(prompt="{} sank in 19", subject="The Titanic", target="12", joined=True)
    llama = tiny.bridge("llama")
    prompt = locate.encode_fact(llama, fact)
    assert llama.tokenizer.decode(encode_target(llama, prompt, fact.target)) == "12"
    apart = locate.Fact(prompt="{}的首都是", subject="中国", target=" 北京")
    assert llama.tokenizer.decode(encode_target(llama, locate.encode_fact(llama, apart), apart.target)) == " 北京"


def test_words_that_would_share_a_token_have_their_own(llama):
    # "Tow" and "er" written together are one token; the model has been given the first part alone.
    tokens = encode_target(llama, "the Eiffel Tow", "er", joined=True)
    assert llama.tokenizer.decode(tokens) == "er"
    whole = llama.tokenizer("the Eiffel Tower")["input_ids"]
    base = llama.tokenizer("the Eiffel Tow")["input_ids"]
    assert whole[: len(base)] != base  # so that this tests something


def test_a_trace_is_of_the_answer_that_running_text_has(llama):
    """By a literal pass: the probability of the first token of 巴黎, and not of a space."""
    fact = locate.Fact(prompt="{}的首都是", subject="法国", target="巴黎")
    trace = locate.causal_trace(llama, fact, kinds=["resid"], positions="last", progress=False)
    tokens = llama.tokenizer("法国的首都是")["input_ids"]
    first = llama.tokenizer("巴黎")["input_ids"][0]
    logits = llama(torch.tensor([tokens]))[0, -1]
    assert trace.clean == pytest.approx(float(logits.softmax(-1)[first]), rel=1e-4)
    assert trace.info["answer_tokens"] == [
        llama.tokenizer.decode([one]) for one in llama.tokenizer("巴黎")["input_ids"]
    ]
