"""Ways to make a model forget its subject."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.devices import input_device
from locate.engine import Hook
from locate.errors import LocateError
from locate.prompts import Prompt

EMBEDDING_HOOK = "embed.hook_out"


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Gaussian noise on the subject's token embeddings (Meng et al. 2022, arXiv:2202.05262).

    Args:
        scale: standard deviation of the noise, in standard deviations of the entries of the
            subject's token embeddings.
        samples: how many noise samples to average over.
        seed: of ``numpy.random.RandomState``; 1 gives the noise of the original study.
        std: the embeddings' standard deviation to scale by, instead of this subject's own
            (for example over a whole set of subjects, see ``embedding_std``).

    >>> GaussianNoise(scale=3.0, samples=10, seed=1).samples
    10
    """

    scale: float = 3.0
    samples: int = 10
    seed: int = 1
    std: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise LocateError(f"GaussianNoise needs at least one sample, found samples={self.samples}.")
        if not 0 <= self.seed < 2**32:
            raise LocateError(f"GaussianNoise needs a seed from 0 to 2³² − 1, found seed={self.seed}.")
        if not self.scale > 0:
            raise LocateError(f"GaussianNoise needs a positive scale, found scale={self.scale}.")

    def noise(self, embeddings: Float[Tensor, "span d_model"]) -> Float[Tensor, "sample span d_model"]:
        """The noise to add to the subject's embeddings, for each sample."""
        std = float(embeddings.float().std()) if self.std is None else self.std
        draws = np.random.RandomState(self.seed).randn(self.samples, *embeddings.shape)
        return torch.from_numpy(draws * self.scale * std).to(embeddings)

    def hooks(self, prompt: Prompt, embeddings: Float[Tensor, "span d_model"]) -> list[Hook]:
        """TransformerLens hooks that corrupt a batch of ``samples`` copies of the prompt."""
        start, end = prompt.subject_span
        noise = self.noise(embeddings)

        def add(value: Tensor, hook: object = None) -> Tensor:
            value = value.clone()
            value[:, start:end] += noise
            return value

        return [(EMBEDDING_HOOK, add)]


def embedding_std(model: TransformerBridge, prompts: list[Prompt]) -> float:
    """Standard deviation of the subject-token embedding entries over several prompts.

    >>> std = embedding_std(model, [locate.encode_fact(model, fact) for fact in facts])
    >>> noise = GaussianNoise(scale=3.0, std=std)
    """
    device = input_device(model)
    with torch.no_grad():
        spans = [p.tokens[p.subject_span[0] : p.subject_span[1]].to(device) for p in prompts]
        entries = torch.cat([model.embed(span[None])[0] for span in spans])
    return float(entries.float().std())
