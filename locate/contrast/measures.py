"""The measures of an answer that ship: probability, logit difference, divergence, rank, and functions of one's own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locate.contrast.metrics import Logits, Metric, Metrics, Plain
from locate.contrast.sequences import sequence_log_probability, sequence_probability
from locate.contrast.sides import prob_greater
from locate.engine import Measure
from locate.errors import LocateError
from locate.facts.prompts import encode_target
from locate.facts.questions import Questions


@dataclass(frozen=True)
class _OfTarget:
    """Measures of one token: the answer's first, or that of a text."""

    target: str | None = None

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""
        tokens = questions.answers if self.target is None else questions.first_tokens(self.target)
        return lambda logits, question: self._measure(logits.float(), tokens[question])

    def _measure(self, logits: Logits, tokens: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        raise NotImplementedError

    @property
    def _shown(self) -> str:
        return self.target or "{answer}"


class Probability(_OfTarget):
    """See ``probability``."""

    name = "probability"

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"p({self._shown})"

    def _measure(self, logits: Logits, tokens: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return _chosen(logits.softmax(-1), tokens)


class LogProbability(_OfTarget):
    """See ``log_probability``."""

    name = "log_probability"

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"log p({self._shown}) [nat]"

    def _measure(self, logits: Logits, tokens: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return _chosen(logits.log_softmax(-1), tokens)


class Rank(_OfTarget):
    """See ``rank``."""

    name = "rank"

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"rank of {self._shown}"

    def _measure(self, logits: Logits, tokens: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return (logits > _chosen(logits, tokens)[:, None]).sum(-1).float() + 1


@dataclass(frozen=True)
class LogitDifference:
    """See ``logit_diff``."""

    target: str | None = None
    other: str | None = None

    name = "logit_diff"

    def compared(self, target: str | None, target_new: str | None) -> tuple[str | None, str | None]:
        """Those named, else the prompt's own."""
        return self.target or target, self.other or target_new

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"logit({self.target or '{answer}'}) − logit({self.other or '{new}'})"

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""
        first = questions.answers if self.target is None else questions.first_tokens(self.target)
        if self.other is not None:
            second = questions.first_tokens(self.other)
        else:
            second = torch.stack([self._other(questions, index) for index in range(len(questions.texts))])
        for text, a, b in zip(questions.texts, first.tolist(), second.tolist(), strict=True):
            if a == b:
                raise LocateError(
                    f"The two answers of the logit difference begin with the same token after {text!r}, so it is "
                    "always 0. Give the metric to what makes the runs, and answers of which none begins with the other."
                )
        return lambda logits, question: (
            _chosen(logits.float(), first[question]) - _chosen(logits.float(), second[question])
        )

    def _other(self, questions: Questions, index: int) -> Tensor:
        new = questions.targets_new[index]
        if new is None:
            raise LocateError(
                f"A logit difference needs a second answer, and {questions.texts[index]!r} has no target_new. "
                'Name both: logit_diff("Paris", "Rome").'
            )
        return encode_target(questions.model, questions.prompts[index], new)[0]


@dataclass(frozen=True)
class KLDivergence:
    """See ``kl_divergence``."""

    name = "kl_divergence"
    label = "KL(clean ‖ run) [nat]"

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""
        reference = questions.clean.float().log_softmax(-1)

        def measure(logits: Tensor, question: Tensor) -> Tensor:
            clean = reference[question.to(reference.device)].to(logits.device)
            return (clean.exp() * (clean - logits.float().log_softmax(-1))).sum(-1)

        return measure


@dataclass(frozen=True)
class _Custom:
    """A function of the user's own."""

    function: Plain
    name: str

    @property
    def label(self) -> str:
        """For figures."""
        return self.name.replace("_", " ")

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""

        def measure(logits: Tensor, question: Tensor) -> Tensor:
            values = self.function(logits)
            if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise LocateError(
                    f"The metric {self.name!r} must return one number per row, shape ({len(logits)},), for logits of "
                    f"shape {tuple(logits.shape)}; found {found}."
                )
            return values.float()

        return measure


def probability(target: str | None = None) -> Metric:
    """The probability of the answer's first token, or of another text's; of a fact with two answers, of the first that
    tells them apart.

    >>> locate.probability().name
    'probability'
    """
    return Probability(target)


def log_probability(target: str | None = None) -> Metric:
    """The log-probability of the answer's first token, or of another text's, in nats.

    >>> locate.log_probability("Rome").label
    'log p(Rome) [nat]'
    """
    return LogProbability(target)


def logit_diff(target: str | None = None, other: str | None = None) -> Metric:
    """The logit of one answer over another's, by default the fact's ``target`` over its ``target_new``.

    Recommended by Zhang and Nanda 2023 (arXiv:2309.16042): probabilities hide what speaks against an answer.

    >>> locate.logit_diff("Paris", "Rome").label
    'logit(Paris) − logit(Rome)'
    """
    return LogitDifference(target, other)


def kl_divergence() -> Metric:
    """The divergence of the run's next-token distribution from the clean run's, in nats.

    >>> locate.kl_divergence().label
    'KL(clean ‖ run) [nat]'
    """
    return KLDivergence()


def rank(target: str | None = None) -> Metric:
    """The rank of the answer's first token (1 is the model's first answer), or of another text's.

    >>> locate.rank().name
    'rank'
    """
    return Rank(target)


def usual_metric(questions: Questions) -> Metric:
    """The logit difference of the two answers where all are known and differ, else the answer's probability."""
    for prompt, answer, new in zip(questions.prompts, questions.answers.tolist(), questions.targets_new, strict=True):
        if new is None or int(encode_target(questions.model, prompt, new)[0]) == answer:
            return probability()
    return logit_diff()


def as_metrics(wanted: Metrics) -> tuple[Metric, ...]:
    """Metrics by name, as objects, or as plain functions of logits; each name once.

    Raises:
        LocateError: an unknown name, something that is no metric, or two of one name.

    >>> [metric.name for metric in as_metrics(["probability", rank()])]
    ['probability', 'rank']
    """
    several = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    metrics = tuple(_as_metric(one) for one in several)
    names = [metric.name for metric in metrics]
    if not names:
        raise LocateError("There is no metric; give at least one, such as locate.probability().")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise LocateError(f"There are two metrics called {repeated!r}; results could not be told apart.")
    return metrics


_NAMED: dict[str, Callable[[], Metric]] = {
    "probability": probability,
    "log_probability": log_probability,
    "logit_diff": logit_diff,
    "kl_divergence": kl_divergence,
    "rank": rank,
    "prob_greater": prob_greater,
    "sequence_probability": sequence_probability,
    "sequence_log_probability": sequence_log_probability,
}


def _as_metric(wanted: object) -> Metric:
    if isinstance(wanted, str):
        if wanted not in _NAMED:
            raise LocateError(f"There is no metric {wanted!r}; there are {', '.join(_NAMED)}, or give a function.")
        return _NAMED[wanted]()
    if isinstance(wanted, Metric):
        return wanted
    if callable(wanted):
        return _Custom(wanted, getattr(wanted, "__name__", type(wanted).__name__))  # type: ignore[arg-type]
    raise LocateError(f"A metric must be a name, a metric or a function of logits; found {type(wanted).__name__}.")


def _chosen(values: Float[Tensor, "row vocab"], tokens: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    return values.gather(1, tokens.to(values.device)[:, None])[:, 0]
