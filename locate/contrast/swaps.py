"""Another subject in the subject's place."""

import random
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.corruption import Corrupted
from locate.errors import FactError, LocateError, counted
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts
from locate.facts.prompts import Prompt, encode_fact, token_strings
from locate.facts.subjects import same_text


@dataclass(frozen=True)
class TokenSwap:
    """Another subject with the same number of tokens in the subject's place.

    Zhang and Nanda 2023 (arXiv:2309.16042) recommend it over noise: the corrupted prompt stays a text that
    the model could have met.

    Args:
        subject: the other subject; by default chosen from ``pool``, of the same relation where there is one.
        samples: how many subjects to choose and to average over.
        seed: of the choice.
        pool: the facts whose subjects are chosen from; by default those that ship with the project.

    >>> locate.TokenSwap("The Colosseum").subject
    'The Colosseum'
    """

    subject: str | None = None
    samples: int = field(default=1, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    pool: tuple[Fact, ...] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise LocateError(f"TokenSwap needs at least one sample, found samples={self.samples}.")
        if self.subject is not None and self.samples > 1:
            raise LocateError("TokenSwap has one sample where the subject is given; leave the subject or samples out.")

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt about other subjects.

        Raises:
            FactError: no other subject fits, or the one given has another number of tokens.
        """
        if self.subject is not None:
            if same_text(self.subject, fact.subject):
                raise FactError(f"TokenSwap: {self.subject!r} is the prompt's own subject; give another one.")
            other = encode_fact(model, replace(fact, subject=self.subject))
            check_alike(model, prompt, other)
            return Corrupted(tokens=other.tokens[None], subjects=(self.subject,))
        chosen: dict[str, Prompt] = {}
        for subject in self._candidates(fact):
            other = encode_fact(model, replace(fact, subject=subject))
            if alike(prompt, other):
                chosen[subject] = other
            if len(chosen) == self.samples:
                break
        if len(chosen) < self.samples:
            start, end = prompt.subject_span
            raise FactError(
                f"TokenSwap needs {counted(self.samples, 'other subject')} of {counted(end - start, 'token')} for "
                f"{fact.subject!r} ({token_strings(model, prompt.tokens[start:end])}), found {list(chosen)}. "
                "Name one that fits, or give a larger pool of facts."
            )
        return Corrupted(tokens=torch.stack([other.tokens for other in chosen.values()]), subjects=tuple(chosen))

    def _candidates(self, fact: Fact) -> list[str]:
        pool = bundled_facts() if self.pool is None else list(self.pool)
        # A subject with the same answer would not be a corruption.
        same_answer = {
            one.subject for one in pool if same_text(one.target, fact.target) or same_text(one.subject, fact.subject)
        }
        related = {one.subject for one in pool if fact.relation is not None and one.relation == fact.relation}
        groups = [sorted(related - same_answer), sorted({one.subject for one in pool} - related - same_answer)]
        generator = random.Random(self.seed)
        for group in groups:
            generator.shuffle(group)
        return [subject for group in groups for subject in group]


def check_alike(model: TransformerBridge, clean: Prompt, other: Prompt) -> None:
    """Two prompts can be patched into each other: as many tokens, with the subject in the same place.

    Raises:
        FactError: they cannot; the message shows which tokens differ.
    """
    if len(clean.tokens) != len(other.tokens):
        raise FactError(
            f"Clean and corrupt prompt need the same number of tokens, found {len(clean.tokens)} and "
            f"{len(other.tokens)}. {_differences(model, clean.tokens, other.tokens)}"
        )
    spans = (clean.subject_span, other.subject_span)
    if (0, 0) not in spans and spans[0] != spans[1]:  # a plain text has no subject
        raise FactError(
            f"The subject stands at tokens {clean.subject_span} in the clean prompt and at {other.subject_span} in the "
            f"corrupt one. {_differences(model, clean.tokens, other.tokens)}"
        )


def alike(clean: Prompt, other: Prompt) -> bool:
    """Whether two prompts differ in the tokens of their subjects, and nowhere else.

    >>> prompts = [locate.encode_fact(model, fact, "{} is in"), locate.encode_fact(model, fact, "{} is at")]
    >>> alike(*prompts), alike(prompts[0], prompts[0])
    (False, False)
    """
    if len(clean.tokens) != len(other.tokens) or clean.subject_span != other.subject_span:
        return False
    start, end = clean.subject_span
    outside = torch.ones(len(clean.tokens), dtype=torch.bool)
    outside[start:end] = False
    return bool((clean.tokens == other.tokens)[outside].all()) and not torch.equal(clean.tokens, other.tokens)


def _differences(model: TransformerBridge, clean: Tensor, other: Tensor) -> str:
    a, b = token_strings(model, clean), token_strings(model, other)
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    stop = next(
        (i for i, (x, y) in enumerate(zip(reversed(a[start:]), reversed(b[start:]), strict=False)) if x != y),
        min(len(a), len(b)) - start,
    )
    return f"They differ in {a[start : len(a) - stop]} and {b[start : len(b) - stop]}, from token {start} on."
