"""Ways to make a model forget its subject.

A corruption says what stands in the subject's place: other embeddings, or another subject's tokens. A new
one is a class here with a ``corrupt`` method; everything else follows from the protocol.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.devices import input_device
from locate.engine import Hook
from locate.errors import FactError, LocateError
from locate.facts import Fact, bundled_facts
from locate.prompts import Prompt, encode_fact, token_strings
from locate.runs import fingerprint

EMBEDDING_HOOK = "embed.hook_out"


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted:
    """A prompt's corrupted versions.

    Attributes:
        tokens: what is run, one row per sample.
        embeddings: what stands in place of the subject's embeddings; None where the tokens say it all.
        subjects: the subjects that stand there, where they are subjects.
    """

    tokens: Int[Tensor, "sample position"]
    embeddings: Float[Tensor, "sample span d_model"] | None = None
    subjects: tuple[str, ...] = ()


@runtime_checkable
class Corruption(Protocol):
    """How the subject is corrupted.

    >>> isinstance(GaussianNoise(), Corruption)
    True
    """

    @property
    def samples(self) -> int:
        """How many corrupted versions each prompt gets."""
        ...

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt's corrupted versions."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """Samples drawn from a seed."""

    samples: int = 10
    seed: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.samples < 1:
            raise LocateError(f"{name} needs at least one sample, found samples={self.samples}.")
        if not 0 <= self.seed < 2**32:
            raise LocateError(f"{name} needs a seed from 0 to 2³² − 1, found seed={self.seed}.")
        if not getattr(self, "scale", 1) > 0:
            raise LocateError(f"{name} needs a positive scale, found scale={getattr(self, 'scale', 1)}.")


@dataclass(frozen=True, kw_only=True)
class _Noise(_Sampled):
    """Noise added to the embeddings, in units of their standard deviation."""

    scale: float = 3.0
    std: float | None = None

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with noise on its subject, once per sample."""
        embeddings = subject_embeddings(model, [prompt])
        return Corrupted(
            tokens=prompt.tokens.expand(self.samples, -1), embeddings=embeddings + self.noise(embeddings)
        )  # fmt: skip

    def noise(self, embeddings: Float[Tensor, "span d_model"]) -> Float[Tensor, "sample span d_model"]:
        """The noise to add to the subject's embeddings, for each sample."""
        std = float(embeddings.float().std()) if self.std is None else self.std
        draws = self._draw(np.random.RandomState(self.seed), (self.samples, *embeddings.shape))
        return torch.from_numpy(draws * self.scale * std).to(embeddings)

    def _draw(self, random_state: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(_Noise):
    """Gaussian noise on the subject's token embeddings (Meng et al. 2022, arXiv:2202.05262).

    Args:
        samples: how many noise samples to average over.
        seed: of ``numpy.random.RandomState``; 1 gives the noise of the original study.
        scale: standard deviation of the noise, in units of ``std``.
        std: what to scale by; by default the standard deviation of the entries of this subject's token
            embeddings. ``embedding_std`` gives that of a set of subjects; 1.0 makes ``scale`` absolute.

    >>> GaussianNoise(scale=3.0, samples=10, seed=1).samples
    10
    """

    def _draw(self, random_state: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return random_state.randn(*shape)


@dataclass(frozen=True, kw_only=True)
class UniformNoise(_Noise):
    """Noise drawn evenly from [−scale, scale] × ``std``; the arguments are those of ``GaussianNoise``.

    >>> UniformNoise(scale=3.0).noise(torch.ones(2, 4) * torch.arange(4)).shape
    torch.Size([10, 2, 4])
    """

    def _draw(self, random_state: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return random_state.uniform(-1, 1, shape)


@dataclass(frozen=True, kw_only=True)
class MultivariateNoise(_Sampled):
    """Gaussian noise with the covariance of the subject-token embeddings of a set of facts.

    Args:
        reference: the facts whose subjects give the covariance.
        samples: how many noise samples to average over.
        seed: of ``numpy.random.RandomState``.
        scale: a factor on the noise; at 1 it spreads as the embeddings themselves do.

    >>> MultivariateNoise(reference=tuple(facts)).scale
    1.0
    """

    reference: tuple[Fact, ...] = field(repr=False)
    scale: float = 1.0

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with noise on its subject, once per sample."""
        known = reference_embeddings(model, self.reference).double()
        embeddings = subject_embeddings(model, [prompt])
        centred = (known - known.mean(0)) / (len(known) - 1) ** 0.5
        shape = (self.samples, len(embeddings), len(centred))
        # Independent weights on the centred reference embeddings have exactly their covariance.
        draws = torch.from_numpy(np.random.RandomState(self.seed).randn(*shape)).to(centred.device)
        return Corrupted(
            tokens=prompt.tokens.expand(self.samples, -1),
            embeddings=embeddings + (self.scale * draws @ centred).to(embeddings),
        )


@dataclass(frozen=True, kw_only=True)
class ZeroEmbedding:
    """Zeros in place of the subject's embeddings.

    >>> ZeroEmbedding().samples
    1
    """

    samples = 1

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with zeros on its subject."""
        embeddings = subject_embeddings(model, [prompt])
        return Corrupted(tokens=prompt.tokens[None], embeddings=torch.zeros_like(embeddings)[None])


@dataclass(frozen=True, kw_only=True)
class MeanEmbedding:
    """The mean subject-token embedding of a set of facts in place of the subject's embeddings.

    >>> MeanEmbedding(reference=tuple(facts)).samples
    1
    """

    reference: tuple[Fact, ...] = field(repr=False)

    samples = 1

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with the mean embedding on its subject."""
        start, end = prompt.subject_span
        mean = reference_embeddings(model, self.reference).mean(0)
        return Corrupted(tokens=prompt.tokens[None], embeddings=mean.expand(1, end - start, -1))


@dataclass(frozen=True, kw_only=True)
class ResampledEmbedding(_Sampled):
    """Subject-token embeddings drawn from those of a set of facts in place of the subject's own.

    >>> ResampledEmbedding(reference=tuple(facts), samples=5).samples
    5
    """

    reference: tuple[Fact, ...] = field(repr=False)

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with drawn embeddings on its subject, once per sample."""
        known = reference_embeddings(model, self.reference)
        start, end = prompt.subject_span
        drawn = np.random.RandomState(self.seed).randint(len(known), size=(self.samples, end - start))
        return Corrupted(
            tokens=prompt.tokens.expand(self.samples, -1), embeddings=known[torch.from_numpy(drawn).to(known.device)]
        )


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
            if self.subject == fact.subject:
                raise FactError(f"TokenSwap: {self.subject!r} is the prompt's own subject; give another one.")
            other = encode_fact(model, replace(fact, subject=self.subject))
            check_alike(model, prompt, other)
            return Corrupted(tokens=other.tokens[None], subjects=(self.subject,))
        chosen: dict[str, Prompt] = {}
        for subject in self._candidates(fact):
            other = encode_fact(model, replace(fact, subject=subject))
            if _alike(prompt, other):
                chosen[subject] = other
            if len(chosen) == self.samples:
                break
        if len(chosen) < self.samples:
            start, end = prompt.subject_span
            raise FactError(
                f"TokenSwap needs {self.samples} other subject(s) of {end - start} tokens for {fact.subject!r} "
                f"({token_strings(model, prompt.tokens[start:end])}), found {list(chosen)}. "
                "Name one that fits, or give a larger pool of facts."
            )
        return Corrupted(tokens=torch.stack([other.tokens for other in chosen.values()]), subjects=tuple(chosen))

    def _candidates(self, fact: Fact) -> list[str]:
        pool = bundled_facts() if self.pool is None else list(self.pool)
        # A subject with the same answer would not be a corruption.
        same_answer = {one.subject for one in pool if one.target == fact.target} | {fact.subject}
        related = {one.subject for one in pool if fact.relation is not None and one.relation == fact.relation}
        groups = [sorted(related - same_answer), sorted({one.subject for one in pool} - related - same_answer)]
        generator = random.Random(self.seed)
        for group in groups:
            generator.shuffle(group)
        return [subject for group in groups for subject in group]


def describe(corruption: Corruption) -> dict[str, Any]:
    """What a corruption is, as plain data for a result's record; of facts it draws on, their number and a hash.

    >>> describe(GaussianNoise(samples=3))["corruption"]
    'GaussianNoise'
    """
    plain: dict[str, Any] = {}
    for name, value in vars(corruption).items():
        if name in ("reference", "pool"):
            plain |= {} if value is None else {name: f"{len(value)} facts ({fingerprint(value)[:12]})"}
        else:  # a swap's subject is not the prompt's own, of which a record tells as well
            plain["other_subject" if name == "subject" else name] = value
    return {"corruption": type(corruption).__name__, "samples": corruption.samples, **plain}


def run_corrupted(
    parts: Sequence[Corrupted], prompts: Sequence[Prompt]
) -> tuple[Int[Tensor, "row position"], list[Hook]]:
    """The rows to run for several corrupted prompts of one length, and the hooks that corrupt them."""
    tokens = torch.cat([part.tokens for part in parts])
    places: list[tuple[slice, slice, Tensor]] = []
    first = 0
    for part, prompt in zip(parts, prompts, strict=True):
        rows = slice(first, first + len(part.tokens))
        first = rows.stop
        if part.embeddings is not None:
            places.append((rows, slice(*prompt.subject_span), part.embeddings))
    if not places:
        return tokens, []

    def replace_subjects(value: Tensor, hook: object = None) -> Tensor:
        value = value.clone()
        for rows, span, embeddings in places:
            value[rows, span] = embeddings.to(value)
        return value

    return tokens, [(EMBEDDING_HOOK, replace_subjects)]


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


def _alike(clean: Prompt, other: Prompt) -> bool:
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


def subject_embeddings(model: TransformerBridge, prompts: Sequence[Prompt]) -> Float[Tensor, "token d_model"]:
    """The token embeddings of the subjects of some prompts, one after the other.

    >>> subject_embeddings(model, [locate.encode_fact(model, fact)]).shape
    torch.Size([4, 576])
    """
    spans = [prompt.tokens[slice(*prompt.subject_span)] for prompt in prompts]
    with torch.no_grad():
        return model.embed(torch.cat(spans).to(input_device(model))[None])[0]


def reference_embeddings(model: TransformerBridge, facts: Sequence[Fact]) -> Float[Tensor, "token d_model"]:
    """The subject-token embeddings of a set of facts.

    Raises:
        LocateError: there are fewer than two.

    >>> reference_embeddings(model, facts).shape[1]
    576
    """
    known = subject_embeddings(model, [encode_fact(model, fact) for fact in facts]) if facts else torch.empty(0)
    if len(known) < 2:
        raise LocateError(f"The reference set needs subjects with at least two tokens, found {len(known)}.")
    return known


def embedding_std(model: TransformerBridge, prompts: Sequence[Prompt] | Sequence[Fact]) -> float:
    """Standard deviation of the subject-token embedding entries over several facts or prompts.

    >>> std = embedding_std(model, facts)
    >>> noise = GaussianNoise(scale=3.0, std=std)
    """
    if not prompts:
        raise LocateError("embedding_std needs at least one prompt or fact.")
    encoded = [one if isinstance(one, Prompt) else encode_fact(model, one) for one in prompts]
    return float(subject_embeddings(model, encoded).float().std())
