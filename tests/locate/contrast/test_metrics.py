"""Metrics against their definitions."""

import pytest
import torch

import locate
from locate import LocateError
from locate.contrast.measures import as_metrics, usual_metric
from locate.contrast.metrics import joint_measure
from locate.facts.prompts import Prompt
from locate.facts.questions import Questions
from tests import tiny

LOGITS = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)) * 3
OWNER = torch.tensor([0, 1, 1, 0, 1])
PROMPTS = tuple(
    Prompt(text=text, tokens=torch.tensor(tiny.tokenizer()(text)["input_ids"]), subject_span=(0, 0))
    for text in ("The Louvre is in", "Big Ben is in")
)


def token(text):
    return tiny.tokenizer()(" " + text)["input_ids"][0]


@pytest.fixture(scope="module")
def questions():
    return Questions(
        model=tiny.bridge("llama"), prompts=PROMPTS, answers=torch.tensor([token("Paris"), token("London")]),
        targets_new=("Rome", "Rome"), clean=LOGITS[:2] * 0.5,
    )  # fmt: skip


def measured(metric, questions):
    return joint_measure(as_metrics(metric), questions, OWNER)(LOGITS, torch.arange(5))[:, 0]


def test_each_row_is_measured_by_its_own_answer(questions):
    answers = questions.answers[OWNER]
    rows = torch.arange(5)
    probabilities = LOGITS.softmax(-1)
    torch.testing.assert_close(measured("probability", questions), probabilities[rows, answers])
    torch.testing.assert_close(measured("log_probability", questions), probabilities[rows, answers].log())
    torch.testing.assert_close(measured("logit_diff", questions), LOGITS[rows, answers] - LOGITS[:, token("Rome")])
    ranks = (LOGITS[rows, answers, None] < LOGITS).sum(-1) + 1
    torch.testing.assert_close(measured("rank", questions), ranks.float())
    clean = questions.clean.log_softmax(-1)[OWNER]
    divergence = torch.nn.functional.kl_div(LOGITS.log_softmax(-1), clean, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(measured("kl_divergence", questions), divergence)


def test_targets_may_be_named(questions):
    paris, rome = token("Paris"), token("Rome")
    torch.testing.assert_close(measured(locate.probability("Rome"), questions), LOGITS.softmax(-1)[:, rome])
    both = locate.logit_diff("Paris", "Rome")
    torch.testing.assert_close(measured(both, questions), LOGITS[:, paris] - LOGITS[:, rome])
    assert both.label == "logit(Paris) − logit(Rome)"
    assert locate.probability().label == "p({answer})"


def test_functions_are_metrics_under_their_own_name(questions):
    def entropy(logits):
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    (metric,) = as_metrics(entropy)
    assert (metric.name, metric.label) == ("entropy", "entropy")
    torch.testing.assert_close(measured(entropy, questions), entropy(LOGITS))


def test_metrics_that_mean_nothing_are_refused(questions):
    with pytest.raises(LocateError, match="begin with the same token after 'The Louvre is in'"):
        measured(locate.logit_diff("Rome", "Rome"), questions)
    without = Questions(**{**vars(questions), "targets_new": ("Rome", None)})
    with pytest.raises(LocateError, match=r"'Big Ben is in' has no target_new\. Name both"):
        measured("logit_diff", without)
    assert usual_metric(without).name == "probability"
    assert usual_metric(questions).name == "logit_diff"
    with pytest.raises(LocateError, match="two metrics called 'probability'"):
        as_metrics(["probability", locate.probability("Rome")])
    with pytest.raises(LocateError, match="There is no metric; give at least one"):
        as_metrics([])


def test_numbers_that_are_not_finite_are_told_from_a_broken_model(questions):
    broken = joint_measure(as_metrics("probability"), questions, OWNER)
    with pytest.raises(LocateError, match="the model's logits are not finite"):
        broken(LOGITS * float("nan"), torch.arange(5))
