"""Probabilities of many answers at once against their definition."""

import pytest
import torch

import locate
from locate import FactError
from locate.contrast.measures import as_metrics
from locate.contrast.metrics import joint_measure
from locate.contrast.sides import GreaterNumbers, first_of_numbers
from locate.facts.prompts import encode_fact, encode_target
from locate.facts.questions import Questions
from tests import tiny

LOGITS = torch.randn(4, 400, generator=torch.Generator().manual_seed(0)) * 3
OWNER = torch.tensor([0, 1, 1, 0])


def year(prompt, start, **fields):
    return locate.Fact(prompt=prompt, subject=start, target="1", **fields)


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def questions(model, *facts):
    prompts = tuple(encode_fact(model, fact) for fact in facts)
    return Questions(
        model=model, prompts=prompts, answers=torch.zeros(len(facts), dtype=torch.long),
        targets_new=(None,) * len(facts), clean=LOGITS[: len(facts)],
    )  # fmt: skip


def measured(metric, asked):
    return joint_measure(as_metrics(metric), asked, OWNER)(LOGITS, torch.arange(4))[:, 0]


def test_named_answers_count_by_their_first_token_and_those_of_both_sides_for_neither(model):
    asked = questions(model, *(locate.Fact(prompt="{} is in", subject=one, target="x") for one in ("Rome", "Big Ben")))

    def token(text):
        return int(encode_target(model, "Rome is in", text)[0])

    # "this" and "that" begin alike here, and count for neither.
    assert token("this") == token("that")
    assert len({token(one) for one in ("Paris", "London", "Rome", "this")}) == 4
    chances = LOGITS.softmax(-1)
    expected = chances[:, token("Paris")] + chances[:, token("London")] - chances[:, token("Rome")]
    metric = locate.prob_diff(["Paris", "London", "this"], ["Rome", "that", "Rome"])
    torch.testing.assert_close(measured(metric, asked), expected)
    assert metric.label == "p(Paris, London, this) − p(Rome, that, Rome)"


def test_greater_numbers_are_those_above_each_questions_own_subject(model):
    asked = questions(model, year("From {} to 17", "1732"), year("From {} until 16", "1658"))
    digits = [int(encode_target(model, "From 1732 to 17", str(one), joined=True)[0]) for one in range(10)]
    chances = LOGITS.softmax(-1)[:, digits]
    expected = [chances[row, edge + 1 :].sum() - chances[row, :edge].sum() for row, edge in enumerate((3, 5, 5, 3))]
    torch.testing.assert_close(measured("prob_greater", asked), torch.stack(expected))


@pytest.mark.parametrize(
    ("prompt", "said"), [("From {} to 17", "17"), ("From {} to 1", "1"), ("From {} to ", ""), ("From {} to", "")]
)
def test_numbers_are_asked_from_where_the_prompt_leaves_off(model, prompt, said):
    encoded = encode_fact(model, year(prompt, "1732"))
    space = "" if said or prompt.endswith(" ") else " "
    rests = [space + f"17{last:02d}"[len(said) :] for last in range(100)]
    literal = [int(encode_target(model, encoded.text, rest, joined=True)[0]) for rest in rests]
    assert first_of_numbers(model, encoded, "17") == literal


def test_what_answers_begin_with_is_no_part_of_the_prompt(model):
    """33 and 31 begin with one token, which a logit difference would put behind the prompts."""
    clean, corrupt = (
        locate.Fact(prompt="From {} to 17", subject=start, target=target, joined=True)
        for start, target in (("1732", "33"), ("1730", "31"))
    )
    contrast = locate.Contrast.of(model, clean, corrupt, metric="prob_greater")
    assert not len(contrast.questions.prompts[0].forced)
    assert contrast.ends("prob_greater").source.shape == (1, 1)
    longer = locate.Contrast.of(model, clean, corrupt, metric="logit_diff")
    assert len(longer.questions.prompts[0].forced) == 1


def test_sides_that_cannot_be_told_apart_are_refused(model):
    prompt = encode_fact(model, locate.Fact(prompt="{} is in", subject="Rome", target="x"))
    with pytest.raises(FactError, match=r"After 'Rome is in' no token tells Paris from Paris, Rome.*begins both"):
        locate.prob_diff(["Paris"], ["Paris", "Rome"]).sides(model, prompt)
    with pytest.raises(FactError, match="at least one text each"):
        locate.prob_diff(["Paris"], [])
    with pytest.raises(FactError, match="answers: takes several texts"):
        locate.prob_diff("Paris", ["Rome"])
    for fact, problem in (
        (year("{} is in", "Rome"), "must be a number of three digits or more, such as 1732, found 'Rome'"),
        (year("From {} to 16", "1732"), "ends in '16', which 1700 to 1799 do not begin with"),
        (year("From {} to", "1732"), "no token tells numbers above 1732 from the others"),
    ):
        with pytest.raises(FactError, match=problem):
            GreaterNumbers().sides(model, encode_fact(model, fact))
