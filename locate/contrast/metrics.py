"""What an answer is measured by: functions of the last position's logits, or of those of all its tokens."""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import Measure
from locate.errors import LocateError
from locate.facts.prompts import Prompt
from locate.facts.questions import Questions
from locate.facts.reading import Reading

Logits = Float[Tensor, "row vocab"]
Plain = Callable[[Logits], Float[Tensor, "row"]]


@runtime_checkable
class Metric(Protocol):
    """A named measure of the answer.

    ``label`` goes on the axes of figures, where ``{answer}`` and ``{new}`` are replaced by the fact's. ``bind``
    returns the function that turns logits, and for each row the question that it answers, into one number per row.

    >>> isinstance(locate.probability(), Metric)
    True
    """

    @property
    def name(self) -> str:
        """Short, as a coordinate of results."""
        ...

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        ...

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""
        ...


@runtime_checkable
class OverAnswer(Metric, Protocol):
    """A metric of all tokens of an answer, which stand behind the prompt while it is asked.

    Its measure is given ``row read vocab`` logits, one for each token of the answer.

    >>> isinstance(locate.sequence_probability(), OverAnswer), isinstance(locate.probability(), OverAnswer)
    (True, False)
    """

    def answer(self, model: TransformerBridge, prompt: Prompt, target: str | None) -> Int[Tensor, "token"]:
        """The answer's tokens, of a prompt whose own answer is ``target``; with those that end the prompt already."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """A metric that holds one answer against another.

    >>> isinstance(locate.logit_diff("Paris", "Rome"), Comparing)
    True
    """

    def compared(self, target: str | None, target_new: str | None) -> tuple[str | None, str | None]:
        """The two, of a prompt with these answers of its own."""
        ...


# As users give them: by name, as objects, or as functions of last-position logits; one or several.
Metrics = Metric | Plain | str | Sequence[Metric | Plain | str]


def reading_of(
    model: TransformerBridge, metrics: Sequence[Metric], prompts: Sequence[Prompt], targets: Sequence[str | None]
) -> Reading:
    """What these metrics need to read of prompts with these answers.

    Raises:
        LocateError: they ask for several answers, or for one that is not known.

    >>> reading_of(model, [locate.probability()], [locate.encode_fact(model, fact)], ["Paris"]).reads
    1
    """
    over = [metric for metric in metrics if isinstance(metric, OverAnswer)]
    found: tuple[Tensor, ...] = ()
    for metric in over:
        own = tuple(metric.answer(model, one, target) for one, target in zip(prompts, targets, strict=True))
        if found and any(not torch.equal(a, b) for a, b in zip(found, own, strict=True)):
            raise LocateError(
                f"{over[0].name!r} and {metric.name!r} are of two answers, and a prompt has one behind it. Ask for "
                "them in calls of their own."
            )
        found = own
    return Reading(prompts=tuple(prompts), whole=found)


def joint_measure(metrics: Sequence[Metric], questions: Questions, owner: Int[Tensor, "frozen"]) -> Measure:
    """All metrics at once: ``row metric`` numbers, checked to be finite.

    Args:
        metrics: what to measure.
        questions: what is asked.
        owner: for each frozen row, the question that it asks.

    Raises:
        LocateError: a metric returns another shape, or a number that is not finite.
    """
    bound = [metric.bind(questions) for metric in metrics]
    reading = questions.reading

    def measure(logits: Tensor, rows: Tensor) -> Tensor:
        question = owner[rows][:: reading.reads]
        following = reading.next_token(logits, question)
        whole = rearrange(logits, "(row read) vocab -> row read vocab", read=reading.reads)
        values = [
            one(whole if isinstance(metric, OverAnswer) else following, question)
            for metric, one in zip(metrics, bound, strict=True)
        ]
        for metric, value in zip(metrics, values, strict=True):
            if not bool(torch.isfinite(value).all()):
                reason = (
                    "the model's logits are not finite there; check its dtype and weights"
                    if not bool(torch.isfinite(logits).all())
                    else "though the logits are finite; mend the metric"
                )
                raise LocateError(f"The metric {metric.name!r} is not finite: {reason}.")
        return torch.stack(values, dim=-1)

    return measure


def hardly_differ(one: float, other: float) -> bool:
    """Whether two values of a metric are so alike, to a hundredth of the larger, that what lies between means little.

    >>> hardly_differ(0.70, 0.697), hardly_differ(0.70, 0.01)
    (True, False)
    """
    return abs(one - other) < 1e-2 * max(1e-6, abs(one), abs(other))


def warn_of_small_effects(
    metrics: Sequence[Metric], clean: Float[Tensor, "row metric"], corrupted: Float[Tensor, "row metric"]
) -> None:
    """Warn of metrics that the corruption hardly changes, on behalf of the caller's caller's caller."""
    for metric, high, low in zip(metrics, clean.mean(0).tolist(), corrupted.mean(0).tolist(), strict=True):
        if hardly_differ(high, low):
            warnings.warn(
                f"The corruption changes {metric.name} by only {high - low:.3g}, so there is hardly anything to patch "
                "and normalised scores mean little. Choose another corrupted prompt or metric.",
                stacklevel=4,
            )
