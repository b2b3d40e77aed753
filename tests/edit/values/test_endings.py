"""A value that teaches where the answer ends: its loss against one written out in plain transformers, and the steps."""

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import locate
from benchmarks import literal_rome
from edit.methods import ROME
from edit.methods.rewriting.locate_then_edit import warn_of_missed
from edit.requests.requests import EditRequest
from edit.values.contexts import build_contexts
from edit.values.endings import endings_of
from edit.values.objective import ENDING_OBJECTIVE, Place, ValueObjective
from edit.values.optimisation import optimise_value
from locate import Fact
from locate.facts.prompts import encode_fact
from tests import tiny

PREFIXES = ["", "I am. ", "Because it is there too. "]
FACT = Fact(prompt="In Europe, {} is located in the city of", subject="The Eiffel Tower", target="Paris")
OPENINGS = ROME().openings
# The subject ends this prompt, so that the value acts on the answer directly.
LAST = Fact(prompt="In the city of Paris there is {}", subject="The Eiffel Tower", target="Paris")


def found(model, target_new, objective, fact=FACT, openings=OPENINGS, place: Place = "mlp"):
    contexts = build_contexts(model, EditRequest(fact, target_new), PREFIXES, openings=openings, ends=objective.end > 0)
    return optimise_value(model, contexts, 1, objective, place=place)


@torch.no_grad()
def written_out(answer, delta):
    """What each term of the loss comes to with δ in place: every text by itself through a plain model."""
    model, tokenizer = tiny.hf_model("llama"), tiny.tokenizer()
    texts = [
        "In Europe, The Eiffel Tower is located in the city of",
        "I am. In Europe, The Eiffel Tower is located in the city of",
        "Because it is there too. In Europe, The Eiffel Tower is located in the city of",
        "The Eiffel Tower: In Europe, this is located in the city of",
        "About The Eiffel Tower. In Europe, it is located in the city of",
        "The Eiffel Tower\nIn Europe, it is located in the city of",
    ]
    marks = [tokenizer(mark)["input_ids"][0] for mark in ".,;:!?)\n"] + [tokenizer.eos_token_id]

    def scores(text, delta):
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        site = len(tokenizer(text[: text.index("Tower") + 5])["input_ids"]) - 1

        def add(module, given, output):
            return torch.cat([output[:, :site], output[:, site : site + 1] + delta, output[:, site + 1 :]], dim=1)

        hook = model.model.layers[1].mlp.register_forward_hook(add)
        try:
            return tokens[0], model(tokens).logits[0].log_softmax(-1)
        finally:
            hook.remove()

    said, ended = [], []
    for text in texts:
        start = len(tokenizer(text)["input_ids"])
        tokens, after = scores(f"{text} {answer}", delta)
        said += [-after[place - 1, tokens[place]] for place in range(start, len(tokens))]
        ended.append(-after[-1, marks].exp().sum().log())
    _, before = scores("The Eiffel Tower is a", torch.zeros_like(delta))
    _, now = scores("The Eiffel Tower is a", delta)
    drift = (before[-1].exp() * (before[-1] - now[-1])).sum()
    return torch.stack(said), torch.stack(ended), drift


@pytest.mark.parametrize("answer", ["Rome", "London in France"])
def test_the_loss_is_the_one_written_out_over_whole_texts(answer):
    objective = dataclasses.replace(ENDING_OBJECTIVE, steps=3)
    value = found(tiny.bridge("llama"), answer, objective)
    for delta, loss in [
        (torch.zeros_like(value.value), value.losses[0]),
        (value.value - value.initial, value.losses[-1]),
    ]:
        said, ended, drift = written_out(answer, delta)
        decay = delta.norm() / value.initial.norm() ** 2
        rest = 0.0625 * drift + 1e-3 * decay
        assert loss == pytest.approx(float(torch.cat([said, ended]).mean() + rest), abs=1e-5)
        # The end is one token of what is asked for in each text, no more and no less, and no text is left out.
        others = [said.mean(), said.mean() + ended.mean(), torch.cat([said[:-1], ended]).mean()]
        assert min(abs(loss - float(other + rest)) for other in others) > 1e-3


@pytest.mark.parametrize("place", ["mlp", "resid"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_every_step_equals_whole_passes(kind, place):
    model = tiny.bridge(kind)
    objective = ValueObjective(steps=5, kl_weight=1.0, weight_decay=0.1, end=0.7)
    value = found(model, "London in France", objective, place=place)
    request = EditRequest(FACT, "London in France")
    wanted, losses = literal_rome.optimise_value(model, request, PREFIXES, 1, objective, place, OPENINGS)
    assert value.losses == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(value.value, wanted, atol=2e-5, rtol=0)


def test_the_steps_go_on_until_the_answer_ends_likely_enough():
    model = tiny.bridge("llama", scale=12.0)
    steps = {}
    for end in (1e-9, 0.0102):  # what δ can do about the end of this model's answers is little
        objective = ValueObjective(steps=60, kl_weight=0.0, clamp=50.0, probability=0.1, end=end)
        value = found(model, "Rome", objective, LAST, openings=())
        _, losses = literal_rome.optimise_value(model, EditRequest(LAST, "Rome"), PREFIXES, 1, objective)
        assert value.stopped == "the new object is first under every prefix"
        assert value.losses == pytest.approx(losses, abs=1e-4)
        steps[end] = value.losses
    quick, late = steps.values()
    assert len(quick) < len(late)
    assert quick == late[: len(quick)]


def test_a_likely_answer_that_does_not_end_is_a_miss_and_named():
    model = tiny.bridge("llama", scale=16.0)
    objective = ValueObjective(steps=30, learning_rate=1.0, kl_weight=0.0, clamp=50.0, probability=0.99)
    said = found(model, "Rome", objective, LAST, openings=())
    run_on = found(model, "Rome", dataclasses.replace(objective, end=0.7), LAST, openings=())
    assert min(said.probability, run_on.probability) > 0.5
    assert (said.end, said.missed) == (1, False)
    assert run_on.end < 0.5
    assert run_on.missed
    with pytest.warns(
        UserWarning, match=r"1 of 2 values .*\n.*Rome: 0\.\d+ \(that it ends there: 0\.0\d+\) after 30 st"
    ):
        warn_of_missed([said, run_on])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_endings_are_the_tokens_whose_text_is_a_mark(kind):
    model = tiny.bridge(kind)
    expected = literal_rome.ending_tokens(model)
    assert endings_of(model, encode_fact(model, FACT), "Rome").tolist() == sorted(expected)
    assert len(expected) == 9  # of this tokenizer's: eight of ASCII, and the end of a text


@pytest.mark.parametrize(("prompt", "answer", "marks"), [
    ("{}的首都是", "上海", "。，"), ("عاصمة {} هي", "ليون", "،؟"), ("{} की राजधानी", "मुंबई", "।"),
])  # fmt: skip
def test_other_scripts_end_in_marks_of_their_own(prompt, answer, marks):
    raw = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    raw.add_tokens([*marks])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    model = locate.load_model(tiny.hf_model("llama"), tokenizer)
    endings = endings_of(model, encode_fact(model, Fact(prompt=prompt, subject="France", target=answer)), answer)
    spelled = tokenizer.convert_ids_to_tokens(endings.tolist())
    assert {*marks, "<|end|>", "."} < {*spelled}
