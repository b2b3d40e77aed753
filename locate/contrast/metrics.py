"""What an answer is measured by: any function of the last position's logits."""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locate.engine import Measure
from locate.errors import LocateError
from locate.facts.questions import Questions

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


# As users give them: by name, as objects, or as functions of last-position logits; one or several.
Metrics = Metric | Plain | str | Sequence[Metric | Plain | str]


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

    def measure(logits: Tensor, rows: Tensor) -> Tensor:
        question = owner[rows]
        values = [one(logits, question) for one in bound]
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
