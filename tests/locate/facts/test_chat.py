"""Prompts that are a user's turn: in the template, with the subject and the prefix where they belong."""

import copy

import pytest
import torch

import locate
from locate.facts.prompts import encode_target, encode_text
from tests import tiny

# A system prompt that names the subject, white space that is taken off, a first token that begins the whole.
TEMPLATE = (
    "{{ bos_token }}[SYS] The Eiffel Tower is tall. [/SYS]"
    "{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] | trim }}[/turn]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
FACT = locate.Fact(
    prompt="Where is {}?", subject="The Eiffel Tower", target="Paris", target_new="Rome", chat=True,
    paraphrases=("In which city is {}?",), neighbours=("Where is the Louvre?",),
)  # fmt: skip
START = "<|end|>[SYS] The Eiffel Tower is tall. [/SYS][user]\n"
END = "[/turn][assistant]\n"


def chatty(template=TEMPLATE):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    return locate.load_model(tiny.hf_model("llama"), tokenizer)


@pytest.fixture(scope="module")
def model():
    return chatty()


def ids(text):
    return tiny.tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("prefix", ["", "I am here. "])
def test_the_prompt_is_in_the_users_turn_and_the_span_is_right(model, prefix):
    prompt = locate.encode_fact(model, FACT, prefix=prefix)
    assert prompt.text == f"{START}{prefix}Where is The Eiffel Tower?{END}"
    assert prompt.tokens.tolist() == ids(prompt.text)
    start, end = prompt.subject_span
    assert model.tokenizer.decode(prompt.tokens[:end]) == f"{START}{prefix}Where is The Eiffel Tower"
    assert model.tokenizer.decode(prompt.tokens[start:end]) == " The Eiffel Tower"
    assert model.tokenizer.decode(encode_target(model, prompt, "Paris")) == "Paris"  # right where its turn begins


def test_white_space_that_a_template_takes_off_moves_the_span(model):
    fact = locate.Fact(prompt="  {} is where? ", subject="The Eiffel Tower", target="Paris", chat=True)
    prompt = locate.encode_fact(model, fact)
    assert prompt.text == f"{START}The Eiffel Tower is where?{END}"
    assert model.tokenizer.decode(prompt.tokens[slice(*prompt.subject_span)]) == "The Eiffel Tower"


def test_a_chat_that_is_written_out_takes_prefixes_in_its_turn(model):
    turns = "<|end|>system\nI am. <|end|>\n<|end|>user\n"
    written = locate.Fact(prompt=turns + "Where is {}?<|end|>\n", subject="The Eiffel Tower", target="Paris")
    prompt = locate.encode_fact(model, written, prefix="It is late. ")
    assert prompt.text == f"{turns}It is late. Where is The Eiffel Tower?<|end|>\n"
    assert model.tokenizer.decode(prompt.tokens[slice(*prompt.subject_span)]) == " The Eiffel Tower"


def test_a_chat_is_traced(model):
    """What is asked is what a literal pass over the template's text answers."""
    trace = locate.causal_trace(model, FACT, kinds=["resid"], positions="subject", progress=False)
    first = ids("Paris")[0]
    logits = model(torch.tensor([ids(f"{START}Where is The Eiffel Tower?{END}")]))[0, -1]
    assert trace.clean == pytest.approx(float(logits.softmax(-1)[first].detach()), rel=1e-4)


def test_without_a_template_it_is_refused():
    with pytest.raises(locate.FactError, match="chat: the model's tokenizer has no chat template"):
        locate.encode_fact(tiny.bridge("llama"), FACT)
    with pytest.raises(locate.FactError, match="does not have 'Where is The Eiffel Tower\\?' as it is"):
        locate.encode_fact(chatty("{{ messages[0]['content'] | upper }}"), FACT)


@pytest.mark.real_model
def test_the_default_models_template(smollm):
    prompt = locate.encode_fact(smollm, FACT)
    said = [{"role": "user", "content": "Where is The Eiffel Tower?"}]
    expected = smollm.tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert prompt.tokens.tolist() == expected
    assert encode_text(smollm, prompt.text).tolist() == expected
    assert smollm.tokenizer.decode(prompt.tokens[slice(*prompt.subject_span)]) == " The Eiffel Tower"
