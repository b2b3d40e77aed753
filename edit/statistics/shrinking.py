"""Shrinking a second moment of few keys towards its diagonal: Ledoit and Wolf's intensity, with rows for samples.

Of few keys, C⁻¹ makes too much of the directions in which they happen to be small: with four for each dimension an edit
disturbs other text by half more than with many, shrunk by a tenth more (benchmarks/RESULTS.md). The intensity is
that of ``sklearn.covariance.ledoit_wolf`` on uncentred keys, with two differences. Keys of one row of text resemble
each other, so that the rows are what is drawn, and not the keys. And neurons differ in size by orders of magnitude:
each is measured in its own, so that the target is the diagonal of C and what one large neuron does decides nothing.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from locate.errors import NumericsError


def intensity(mean: Float[Tensor, "d d"], squares: Float[Tensor, "d d"], rows: int, length: int) -> float:
    """How far to go from C to its diagonal, from 0 to 1: what is noise in C's correlations, as a share of them.

    Args:
        mean: C, over all keys.
        squares: over rows of keys K, the sum of the squares of the entries of KᵀK; only the upper half is read.
        rows: how many there are.
        length: keys in each.

    Raises:
        NumericsError: the squares are too large for their precision.

    >>> keys = torch.ones(5, 1, 2)                                # five rows that say the same
    >>> intensity(torch.ones(2, 2), sum((k.T @ k).square() for k in keys), 5, 1)
    0.0
    """
    mean, squares = mean.double(), squares.double().cpu()
    sizes = mean.diagonal()
    one = torch.where(sizes > 0, 1 / sizes, 0)
    upper = squares.triu(1)
    varied = float(2 * (one @ upper @ one) + one.square() @ squares.diagonal()) / length**2 / rows
    whole = float(one @ mean.square() @ one)
    apart = whole - int((sizes > 0).sum())
    if not math.isfinite(varied):
        raise NumericsError(
            'The keys\' products are too large to square in float32. Use statistics="full", or load the model in '
            "bfloat16 or float32."
        )
    if rows < 2 or apart <= 0:
        return 1.0
    return min(1.0, max(0.0, (varied - whole) / (rows - 1) / apart))


def shrunk(mean: Float[Tensor, "d d"], by: float) -> Float[Tensor, "d d"]:
    """(1 − λ)C + λ·diag(C).

    >>> shrunk(torch.ones(2, 2), 0.5).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    made = mean * (1 - by)
    made.diagonal().copy_(mean.diagonal())
    return made
