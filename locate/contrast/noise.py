"""Noise and other embeddings in the subject's place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.corruption import Corrupted
from locate.engine.embedding import embedded
from locate.engine.hooking import hook_points, keep_in, listen
from locate.errors import LocateError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_fact
from locate.model.devices import input_device
from locate.model.running import running
from locate.sites.table import hook_name

_STREAM = hook_name("embed")


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
        own = _embeddings(model, [prompt])
        random_state = np.random.RandomState(self.seed)
        # What a model looks up beside the embedding gets noise in the same proportion to its own spread.
        stds = {name: float(values.float().std()) for name, values in own.items()}
        factor = 1.0 if self.std is None else self.std / stds[_STREAM]
        noisy = {name: values + self._noise(random_state, values, stds[name] * factor) for name, values in own.items()}
        return _corrupted(prompt.tokens.expand(self.samples, -1), noisy)

    def noise(self, embeddings: Float[Tensor, "span d_model"]) -> Float[Tensor, "sample span d_model"]:
        """The noise to add to the subject's embeddings, for each sample."""
        std = float(embeddings.float().std()) if self.std is None else self.std
        return self._noise(np.random.RandomState(self.seed), embeddings, std)

    def _noise(self, random_state: np.random.RandomState, embeddings: Tensor, std: float) -> Tensor:
        draws = self._draw(random_state, (self.samples, *embeddings.shape))
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
        own, known = _embeddings(model, [prompt]), _reference(model, self.reference)
        shape = (self.samples, len(own[_STREAM]), len(known[_STREAM]))
        # Independent weights on the centred reference embeddings have exactly their covariance.
        draws = torch.from_numpy(np.random.RandomState(self.seed).randn(*shape))
        noisy = {}
        for name, values in own.items():
            centred = known[name].double() - known[name].double().mean(0)
            spread = draws.to(centred.device) @ centred / (len(centred) - 1) ** 0.5
            noisy[name] = values + (self.scale * spread).to(values)
        return _corrupted(prompt.tokens.expand(self.samples, -1), noisy)


@dataclass(frozen=True, kw_only=True)
class ZeroEmbedding:
    """Zeros in place of the subject's embeddings.

    >>> ZeroEmbedding().samples
    1
    """

    samples = 1

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with zeros on its subject."""
        own = _embeddings(model, [prompt])
        return _corrupted(prompt.tokens[None], {name: torch.zeros_like(one)[None] for name, one in own.items()})


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
        known = _reference(model, self.reference)
        means = {name: one.mean(0).expand(1, end - start, -1) for name, one in known.items()}
        return _corrupted(prompt.tokens[None], means)


@dataclass(frozen=True, kw_only=True)
class ResampledEmbedding(_Sampled):
    """Subject-token embeddings drawn from those of a set of facts in place of the subject's own.

    >>> ResampledEmbedding(reference=tuple(facts), samples=5).samples
    5
    """

    reference: tuple[Fact, ...] = field(repr=False)

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt with drawn embeddings on its subject, once per sample."""
        known = _reference(model, self.reference)
        start, end = prompt.subject_span
        drawn = np.random.RandomState(self.seed).randint(len(known[_STREAM]), size=(self.samples, end - start))
        chosen = {name: one[torch.from_numpy(drawn).to(one.device)] for name, one in known.items()}
        return _corrupted(prompt.tokens.expand(self.samples, -1), chosen)


def subject_embeddings(model: TransformerBridge, prompts: Sequence[Prompt]) -> Float[Tensor, "token d_model"]:
    """The token embeddings of the subjects of some prompts, one after the other.

    >>> subject_embeddings(model, [locate.encode_fact(model, fact)]).shape
    torch.Size([4, 576])
    """
    return _embeddings(model, prompts)[_STREAM]


def _embeddings(model: TransformerBridge, prompts: Sequence[Prompt]) -> dict[str, Float[Tensor, "token _"]]:
    """The same, with what the model's other modules that look tokens up make of them, by name."""
    tokens = torch.cat([prompt.tokens[slice(*prompt.subject_span)] for prompt in prompts])
    kept: dict[str, Tensor] = {}
    with running(model):
        # As they pass the hook point, which may be scaled: the module's output alone is not.
        listener = listen(hook_points(model, [_STREAM])[_STREAM], keep_in(kept, _STREAM))
        try:
            model.embed(tokens.to(input_device(model))[None])
        finally:
            listener.remove()
        return {_STREAM: kept[_STREAM][0], **embedded(model, tokens)}


def _corrupted(tokens: Int[Tensor, "sample position"], made: dict[str, Tensor]) -> Corrupted:
    beside = {name: values for name, values in made.items() if name != _STREAM}
    return Corrupted(tokens=tokens, embeddings=made[_STREAM], beside=beside)


def reference_embeddings(model: TransformerBridge, facts: Sequence[Fact]) -> Float[Tensor, "token d_model"]:
    """The subject-token embeddings of a set of facts.

    Raises:
        LocateError: there are fewer than two.

    >>> reference_embeddings(model, facts).shape[1]
    576
    """
    return _reference(model, facts)[_STREAM]


def _reference(model: TransformerBridge, facts: Sequence[Fact]) -> dict[str, Float[Tensor, "token _"]]:
    known = _embeddings(model, [encode_fact(model, fact) for fact in facts]) if facts else {}
    if (n := len(known.get(_STREAM, ()))) < 2:
        raise LocateError(f"The reference set needs subjects with at least two tokens, found {n}.")
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
