"""Measures of many answers at once: the probability of those on one side less that of those on the other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.metrics import Metric
from locate.engine import Measure
from locate.errors import FactError
from locate.facts.facts import as_tuple
from locate.facts.joining import continuation
from locate.facts.prompts import Prompt, encode_target, token_strings
from locate.facts.questions import Questions

Sides = tuple[list[int], list[int]]


@dataclass(frozen=True)
class _OfSides:
    """Measures of the first tokens that each question's answers have on two sides."""

    def compared(self, target: str | None, target_new: str | None) -> tuple[str | None, str | None]:
        """No two: what a prompt's own answers begin with is asked like the rest, and does not join the prompt."""
        return None, None

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""
        each = [self.sides(questions.model, prompt) for prompt in questions.prompts]
        tokens = pad_sequence([torch.tensor(a + b) for a, b in each], batch_first=True)
        signs = pad_sequence([torch.tensor([1] * len(a) + [-1] * len(b)) for a, b in each], batch_first=True)

        def measure(logits: Tensor, question: Tensor) -> Tensor:
            wanted, sign = (one[question.cpu()].to(logits.device) for one in (tokens, signs))
            return (logits.float().softmax(-1).gather(1, wanted) * sign).sum(-1)

        return measure

    def sides(self, model: TransformerBridge, prompt: Prompt) -> Sides:
        """The tokens for and against."""
        raise NotImplementedError


@dataclass(frozen=True)
class ProbabilityDifference(_OfSides):
    """See ``prob_diff``."""

    answers: tuple[str, ...]
    others: tuple[str, ...]

    name = "prob_diff"

    def __post_init__(self) -> None:
        if not self.answers or not self.others:
            raise FactError("prob_diff: answers and others need at least one text each.")

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"p({_few(self.answers)}) − p({_few(self.others)})"

    def sides(self, model: TransformerBridge, prompt: Prompt) -> Sides:
        """Of the texts named."""
        first, second = (
            {int(encode_target(model, prompt, text)[0]) for text in side} for side in (self.answers, self.others)
        )
        return _apart(model, prompt, first, second, (_few(self.answers), _few(self.others)))


@dataclass(frozen=True)
class GreaterNumbers(_OfSides):
    """See ``prob_greater``."""

    name = "prob_greater"
    label = "p(greater) − p(not greater)"

    def sides(self, model: TransformerBridge, prompt: Prompt) -> Sides:
        """Of the numbers that differ from the subject in their last two digits, greater ones and the rest."""
        subject = "".join(token_strings(model, prompt.tokens[slice(*prompt.subject_span)])).strip()
        if not re.fullmatch(r"[0-9]{3,}", subject):
            raise FactError(
                f"prob_greater: the subject must be a number of three digits or more, such as 1732, found {subject!r} "
                f"in {prompt.text!r}. Give facts whose subject is the number to be exceeded."
            )
        stem, start = subject[:-2], int(subject[-2:])
        first = first_of_numbers(model, prompt, stem)
        return _apart(
            model, prompt, set(first[start + 1 :]), set(first[: start + 1]), (f"numbers above {subject}", "the others")
        )


def first_of_numbers(model: TransformerBridge, prompt: Prompt, stem: str) -> list[int]:
    """The first token of each of 100 numbers, from ``stem`` and 00 to ``stem`` and 99, after a prompt.

    Raises:
        FactError: the prompt ends in digits that these numbers do not begin with.

    >>> prompt = locate.encode_fact(model, locate.Fact(prompt="From {} to 17", subject="1732", target="40"))
    >>> len(first_of_numbers(model, prompt, "17"))
    100
    """
    said = re.findall(r"[0-9]*$", prompt.text)[0]
    if not stem.startswith(said):
        raise FactError(
            f"prob_greater: {prompt.text!r} ends in {said!r}, which {stem}00 to {stem}99 do not begin with. End it "
            "before a number, or with digits that all of these share."
        )
    numbers = [f"{stem}{last:02d}" for last in range(100)]
    rests = [number[len(said) :] if said else continuation(prompt.text, number) for number in numbers]
    exactly = replace(prompt, joined=True)
    base, *whole = model.tokenizer([prompt.text, *(prompt.text + rest for rest in rests)], add_special_tokens=False)[
        "input_ids"
    ]
    return [
        ids[len(base)]
        if not len(prompt.forced) and ids[: len(base)] == base and len(ids) > len(base)
        else int(encode_target(model, exactly, rest)[0])
        for ids, rest in zip(whole, rests, strict=True)
    ]


def prob_diff(answers: Sequence[str], others: Sequence[str]) -> Metric:
    """The probability of some answers less that of others, each by its first token; tokens of both count for neither.

    Raises:
        FactError: there are none, or, when runs are measured, all of a side begin like ones of the other.

    >>> locate.prob_diff(["he", "his"], ["she", "her"]).label
    'p(he, his) − p(she, her)'
    """
    return ProbabilityDifference(as_tuple("answers", answers), as_tuple("others", others))


def prob_greater() -> Metric:
    """The probability of numbers greater than the subject, less that of those that are not.

    Of the hundred numbers that differ from the subject in their last two digits, each by the first token that the
    prompt does not say yet; tokens that greater and other numbers begin with count for neither. After Hanna et al. 2023
    (arXiv:2305.00586), whose model has a token for each two digits.

    Raises:
        FactError: when runs are measured: a subject that is no number, a prompt that ends in digits of another number,
            or a tokenizer in which no token tells the two sides apart.

    >>> locate.prob_greater().label
    'p(greater) − p(not greater)'
    """
    return GreaterNumbers()


def _apart(
    model: TransformerBridge, prompt: Prompt, first: set[int], second: set[int], called: tuple[str, str]
) -> Sides:
    """The tokens that are of one side alone."""
    if not first - second or not second - first:
        both = token_strings(model, torch.tensor(sorted(first & second)))
        raise FactError(
            f"After {prompt.text!r} no token tells {called[0]} from {called[1]}: this tokenizer begins both with "
            f"{_few(list(map(repr, both)))}. Compare answers that begin apart, or let the prompt "
            "say what both begin with."
        )
    return sorted(first - second), sorted(second - first)


def _few(texts: Sequence[str]) -> str:
    return ", ".join(texts[:3]) + (", …" if len(texts) > 3 else "")
