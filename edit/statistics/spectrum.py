"""What the eigenvalues of key statistics say: how many there are to speak of, how far apart, and how unequal."""

import math
from dataclasses import dataclass

import torch

from edit.statistics.moments import KeyStatistics

# Eigenvalues below this share of the largest are rounding of the float32 products that were added up.
_ROUNDING = 1e-7


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The eigenvalues of C, described.

    Attributes:
        rank: how many are more than rounding.
        condition: the largest over the smallest; infinite where C is singular.
        effective_rank: the exponential of the entropy of their shares (Roy and Vetterli 2007).
        share_of_largest_tenth: how much of the trace the largest tenth of them holds.

    >>> edit.spectrum(edit.key_statistics(model, layer=4)).rank                     # doctest: +SKIP
    1536
    """

    rank: int
    condition: float
    effective_rank: float
    share_of_largest_tenth: float


def spectrum(statistics: KeyStatistics) -> Spectrum:
    """Describe the eigenvalues of key statistics, which takes minutes for wide models.

    Raises:
        NumericsError: the statistics are not finite.

    >>> edit.spectrum(edit.key_statistics(model, layer=4)).condition > 1            # doctest: +SKIP
    True
    """
    values = statistics.eigen()[0].clamp(min=0)
    largest, smallest = float(values[-1]), float(values[0])
    shares = values / values.sum()
    entropy = float(torch.special.entr(shares).sum())
    tenth = math.ceil(len(values) / 10)
    return Spectrum(
        rank=int((values > _ROUNDING * largest).sum()),
        condition=largest / smallest if smallest > 0 else math.inf,
        effective_rank=math.exp(entropy),
        share_of_largest_tenth=float(shares[-tenth:].sum()),
    )
