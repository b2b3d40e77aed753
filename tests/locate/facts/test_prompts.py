"""Tokens of prompts, subjects and targets, by the tokenizer's own offsets."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from locate import Fact, FactError, encode_fact, load_model
from locate.facts.prompts import encode_target, encode_text, rank_of, token_strings
from tests import tiny

# As trained; with the offsets of most published byte-level tokenizers, which leave the space out; and with
# special tokens at the ends.
POST_PROCESSORS = {
    "plain": None,
    "trimmed": processors.ByteLevel(trim_offsets=True),
    "bos": processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)]),
    "both": processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]),
}


def with_tokenizer(tokenizer):
    return load_model(tiny.hf_model("gpt2"), tokenizer)


def without_end(model, text):
    """As ``transformers`` has it, but for what the tokenizer puts after every text."""
    ids = model.tokenizer(text)["input_ids"]
    end = model.tokenizer("", add_special_tokens=True)["input_ids"] == [0, 0]
    return ids[:-1] if end else ids


@pytest.fixture(scope="module", params=POST_PROCESSORS)
def model(request):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    if POST_PROCESSORS[request.param] is not None:
        tokenizer.backend_tokenizer.post_processor = POST_PROCESSORS[request.param]
    return with_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def plain():
    return with_tokenizer(tiny.tokenizer())


@pytest.mark.parametrize(
    ("prompt", "subject", "covered"),
    [
        ("{} is located in the city of", "The Eiffel Tower", "The Eiffel Tower"),
        ("I think that {} is in", "Big Ben", " Big Ben"),
        ("Is “{}”, the tower, in", "The Louvre", "The Louvre"),
        ("They say ({}) is in", "St. Peter's, Rome", "St. Peter's, Rome"),
        ("I saw {}'s tower in", "Paris", " Paris"),
        ("I went to {} in the country of", "Kraków, 東京 🗼", "Kraków, 東京 🗼"),
        ("Rome is the capital; {} is not in Rome, but in", "Rome II", " Rome II"),
        ("The city is {}", "Paris", " Paris"),
    ],
)
def test_the_span_covers_the_subject_and_nothing_else(model, prompt, subject, covered):
    encoded = encode_fact(model, Fact(prompt=prompt, subject=subject, target="x"))
    start, end = encoded.subject_span
    assert encoded.text == prompt.replace("{}", subject)
    assert encoded.tokens.tolist() == without_end(model, encoded.text)
    assert model.tokenizer.decode(encoded.tokens[start:end]) == covered
    assert encoded.last_subject_position == end - 1


def test_a_token_that_is_half_subject_counts(plain):
    encoded = encode_fact(plain, Fact(prompt="The {}seum stands", subject="Colos", target="x"))
    assert "Colos" in plain.tokenizer.decode(encoded.tokens[slice(*encoded.subject_span)])


def test_templates_and_prefixes_move_the_span(plain):
    fact = Fact(prompt="{} is in", subject="Big Ben", target="London")
    moved = encode_fact(plain, fact, "The city of {} is", prefix="Rome is in Italy. ")
    assert moved.text == "Rome is in Italy. The city of Big Ben is"
    assert plain.tokenizer.decode(moved.tokens[slice(*moved.subject_span)]) == " Big Ben"
    # Also where the subject's own text occurs before it.
    again = encode_fact(plain, fact, prefix="Big Ben. ")
    assert again.subject_span[0] > encode_text(plain, "Big Ben.").numel() - 1


def test_the_last_occurrence_of_a_subject_in_a_text_counts(plain):
    text = "Paris is Paris in"
    encoded = encode_fact(plain, Fact.from_text(text, subject="Paris", target="x"))
    assert plain.tokenizer.decode(encoded.tokens[: encoded.subject_span[0]]) == "Paris is"


@pytest.mark.parametrize("subject", ["The Colosseum", ""])
def test_a_subject_that_is_not_in_the_prompt_is_refused(subject):
    with pytest.raises(FactError, match=f"subject: '{subject}' does not occur in the prompt 'The Louvre is in'"):
        Fact.from_text("The Louvre is in", subject=subject, target="Paris")


@pytest.mark.parametrize("target", ["Paris", "a far Place", "zürich 東京", "1889"])
@pytest.mark.parametrize("prompt", ["The Eiffel Tower is located in the city of", "In", "He said: “yes”, in"])
def test_a_target_is_what_follows_the_prompt_after_a_space(model, prompt, target):
    ids = encode_target(model, prompt, target)
    assert model.tokenizer.decode(ids) == " " + target
    content = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    both = model.tokenizer(f"{prompt} {target}", add_special_tokens=False)["input_ids"]
    assert content + ids.tolist() == both


@pytest.mark.parametrize("prompt", ['The city is called "', "The city (", "The city is called “", "The city is\n"])
def test_no_space_after_an_opening_quote_or_white_space(model, prompt):
    assert model.tokenizer.decode(encode_target(model, prompt, "Paris")) == "Paris"


def test_a_target_may_come_with_space_around_it(plain):
    expected = encode_target(plain, "is in", "Paris").tolist()
    assert encode_target(plain, "is in", " Paris ").tolist() == expected


@pytest.mark.parametrize("target", ["", "  "])
def test_an_empty_target_is_refused(plain, target):
    with pytest.raises(FactError, match="The target is empty; give the answer's text"):
        encode_target(plain, "is in", target)


def test_a_target_that_merges_with_a_trailing_space_is_refused(model):
    message = r"does not follow the prompt .*Give the prompt '.* city of' and the target ' Paris', or joined=True"
    with pytest.raises(FactError, match=message):
        encode_target(model, "The Eiffel Tower is located in the city of ", "Paris")


@pytest.mark.parametrize(("prompt", "target"), [("import numpy as ", "np"), ("def f(x):\n    ", "return")])
def test_a_joined_target_follows_a_trailing_space_as_it_stands(model, prompt, target):
    def ids(text):
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]

    found = encode_target(model, prompt, target, joined=True).tolist()
    assert model.tokenizer.decode(ids(prompt) + found) == prompt + target
    bare = prompt.rstrip()  # the other remedy
    moved = encode_target(model, bare, prompt[len(bare) :] + target).tolist()
    assert ids(bare) + moved == ids(prompt + target)


def test_a_target_unknown_to_the_tokenizer_is_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "is": 1, "in": 2, "Paris": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model = with_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    assert encode_target(model, "is in", "Paris").tolist() == [3]
    with pytest.raises(FactError, match="'Rome' is unknown to the model's tokenizer"):
        encode_target(model, "is in", "Rome")


def test_texts_are_tokenised_plainly(model):
    text = "The Louvre"
    assert encode_text(model, text).tolist() == without_end(model, text)


def test_special_tokens_at_the_end_belong_to_no_question(model):
    """With what ends a text after it, a model would be read there, and every answer follow it."""
    fact = Fact(prompt="{} stands in the city of", subject="The Louvre", target="Paris")
    plain = tiny.tokenizer()(fact.text)["input_ids"]
    prompt = encode_fact(model, fact)
    assert prompt.tokens.tolist()[-len(plain) :] == plain
    assert set(prompt.tokens.tolist()[: -len(plain)]) <= {0}
    assert encode_text(model, f"{fact.text}<|end|>").tolist()[-1] == 0  # one that is written is the user's own


def test_a_text_that_begins_with_its_first_token_gets_no_second_one():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.post_processor = POST_PROCESSORS["bos"]
    model = with_tokenizer(tokenizer)
    once = encode_text(model, "The Louvre").tolist()
    assert once[0] == 0
    assert encode_text(model, "<|end|>The Louvre").tolist() == once
    fact = Fact(prompt="<|end|>{} is in", subject="The Louvre", target="Paris")
    prompt = encode_fact(model, fact)
    assert prompt.tokens.tolist() == encode_text(model, "The Louvre is in").tolist()
    assert model.tokenizer.decode(prompt.tokens[slice(*prompt.subject_span)]) == "The Louvre"
    before = encode_fact(model, fact, prefix="I am. ")
    assert before.text == "<|end|>I am. The Louvre is in"
    assert before.tokens.tolist().count(0) == 1
    assert model.tokenizer.decode(before.tokens[slice(*before.subject_span)]) == " The Louvre"


def test_a_text_without_tokens_is_refused(plain):
    with pytest.raises(FactError, match="has no tokens"):
        encode_text(plain, "")


def test_ranks_count_from_one():
    logits = torch.tensor([0.5, 2.0, -1.0, 2.0])
    assert [rank_of(logits, token) for token in range(4)] == [3, 1, 4, 1]


def test_token_strings_join_to_the_text(plain):
    strings = token_strings(plain, encode_text(plain, "The Eiffel Tower\n is"))
    assert "".join(strings) == "The Eiffel Tower\n is"
    assert " Tower" in strings


@pytest.mark.real_model
def test_the_default_models_tokens(smollm):
    prompt = encode_fact(
        smollm, Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    )
    assert token_strings(smollm, prompt.tokens)[slice(*prompt.subject_span)] == [
        "The",
        " E",
        "iffel",
        " Tower",
    ]
    assert smollm.tokenizer.convert_ids_to_tokens(encode_target(smollm, prompt.text, "Paris")) == ["ĠParis"]
