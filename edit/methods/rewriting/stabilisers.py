"""What keeps many edits from breaking a model; each may be combined with any method that optimises values.

KN, which does not, takes those that act on the change alone: ``PRUNE`` and ``RECT``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.sparse.linalg import svds
from torch import Tensor

from edit.changes.lowrank import LowRank, thin_svd
from edit.hyperparameters import NotNegative, Positive, Told, hyperparameters
from edit.values.objective import Value, ValueObjective


@hyperparameters
class Stabiliser:
    """What a stabiliser may do; the base class does nothing.

    >>> Stabiliser().stages((3, 4, 5))
    ((3, 4, 5),)
    """

    # Whether it acts on values and how they are written, and not on the change alone: then a method needs values.
    acts_on_values: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """As files and messages name it."""
        return type(self).__name__

    @property
    def anchored(self) -> bool:
        """Whether it wants the mean norm of values found on the unedited model."""
        return False

    def objective(self, objective: ValueObjective) -> ValueObjective:
        """How values are optimised."""
        return objective

    def stages(self, layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Which layers share a value; the last layer of a stage is where it is optimised."""
        return (layers,)

    def values(self, values: Sequence[Value], anchor: float | None) -> list[Value]:
        """The values that are written."""
        return list(values)

    def ridge(self, diagonal: Float[Tensor, "d"]) -> float:
        """What is added to the diagonal of the matrix of what is to be preserved."""
        return 0.0

    def change(self, delta: LowRank, weight: Float[Tensor, "out in"], earlier: LowRank | None) -> LowRank:
        """The change that is made to a parameter.

        Args:
            delta: the method's.
            weight: the parameter's present values.
            earlier: what earlier edits have changed in it.
        """
        return delta


@hyperparameters
class NAS(Stabiliser):
    """Norm-anchor scaling: values keep the norm of those solved on the unedited model (arXiv:2602.02543).

    Each value's MLP part v₀ + δ is rescaled to a reference norm, which breaks the growth of values and weights
    that feed each other over a sequence of edits.

    Args:
        norm: the reference; by default the mean over the values of the first batch of a session, which is fitted on
            the unedited model.

    >>> edit.MEMIT(stabilisers=(NAS(),)).stabilisers
    (NAS(norm=None),)
    """

    norm: Positive | None = None

    @property
    def anchored(self) -> bool:
        """Where no norm is given."""
        return self.norm is None

    def values(self, values: Sequence[Value], anchor: float | None) -> list[Value]:
        """The values with their MLP parts rescaled."""
        reference = anchor if self.norm is None else self.norm
        if reference is None:
            reference = reference_norm(values)
        return [_rescaled(value, reference) for value in values]


def reference_norm(values: Sequence[Value]) -> float:
    """The mean norm of the MLP parts of values.

    >>> reference_norm(values)                                                     # doctest: +SKIP
    9.7
    """
    return float(torch.stack([_own_part(value).norm() for value in values]).mean())


@hyperparameters
class ENCORE(Stabiliser):
    """Early stopping and a norm constraint for long sequences of edits (Gupta et al. 2025, arXiv:2502.01636).

    A value's optimisation stops as soon as the new object is first under every prefix, and λₙ·I is added to what is
    to be preserved, which keeps ‖Δ‖ small.

    Args:
        strength: λₙ in units of the mean diagonal of what is to be preserved; the published values are absolute
            and belong to their models.

    >>> ENCORE().objective(edit.ValueObjective(stop="loss")).stop
    'first'
    """

    strength: NotNegative = 0.1

    def objective(self, objective: ValueObjective) -> ValueObjective:
        """With the early stop."""
        return replace(objective, stop="first", probability=0.0)

    def ridge(self, diagonal: Float[Tensor, "d"]) -> float:
        """λₙ."""
        return self.strength * float(diagonal.mean())


@hyperparameters
class BLUE(Stabiliser):
    """Boundary-layer update: the first and the last layer alone, each with its own value (arXiv:2502.03748).

    A method that edits a single layer stays as it is.

    >>> BLUE().stages((3, 4, 5, 6))
    ((3,), (6,))
    """

    def stages(self, layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """First and last."""
        return tuple((layer,) for layer in dict.fromkeys((layers[0], layers[-1])))


@hyperparameters
class PRUNE(Stabiliser):
    """Keeps the accumulated change's singular values near the original matrix's (Ma et al. 2024, arXiv:2405.16821).

    A singular value σ of the accumulated Δ above the largest one σ_max of W₀ becomes ln σ − ln σ_max + σ_max, or stays
    where that is less restraint than none (σ_max below 1). What was lowered after earlier edits counts as it was
    before, so that many batches end where lowering once at their end does; earlier edits must have had it as well.

    >>> PRUNE().change(delta, weight, None).rank                                    # doctest: +SKIP
    1
    """

    acts_on_values: ClassVar[bool] = False

    def change(self, delta: LowRank, weight: Float[Tensor, "out in"], earlier: LowRank | None) -> LowRank:
        """The change, with what is too large in the accumulated one taken back."""
        original = weight.detach().cpu().double()
        if earlier is not None:
            original = original - earlier.dense().double()
        limit = _spectral_norm(original)
        if earlier is not None and (raised := _respaced(earlier, limit, _raised)) is not None:
            delta = delta.joined(raised)
        lowered = _respaced(delta if earlier is None else earlier.joined(delta), limit, _lowered)
        return delta if lowered is None else delta.joined(lowered)


_Kept = Annotated[float, Field(gt=0, le=1), Told("must be above 0 and at most 1, found {}.")]


@hyperparameters
class RECT(Stabiliser):
    """Keeps only the entries whose relative change |Δ/W| is largest (Gu et al. 2024, arXiv:2401.04700).

    The change is then sparse and no longer of low rank, so that files grow to the matrix's size.

    Args:
        share: of the entries to keep.

    >>> RECT(share=0.2).share
    0.2
    """

    acts_on_values: ClassVar[bool] = False

    share: _Kept = 0.4

    def change(self, delta: LowRank, weight: Float[Tensor, "out in"], earlier: LowRank | None) -> LowRank:
        """The kept entries; the others are exactly zero."""
        dense = delta.dense()
        relative = (dense / weight.detach().cpu().float()).abs().nan_to_num(nan=0.0, posinf=torch.inf).flatten()
        kept = relative.topk(max(1, round(self.share * relative.numel()))).indices
        sparse = torch.zeros_like(dense).flatten()
        sparse[kept] = dense.flatten()[kept]
        return LowRank.exactly(sparse.view_as(dense))


def _own_part(value: Value) -> Tensor:
    """v₀ + δ: what the MLP itself should write."""
    return value.written + (value.value - value.initial)


def _rescaled(value: Value, norm: float) -> Value:
    own = _own_part(value)
    return replace(value, value=value.initial - value.written + own * (norm / own.norm()))


def _spectral_norm(matrix: Float[Tensor, "out in"]) -> float:
    """The largest singular value, in float64, by Lanczos' iteration: all of them take a wide model minutes."""
    start = np.ones(min(matrix.shape))
    largest: Any = svds(matrix.numpy(), k=1, v0=start, return_singular_vectors=False)
    return float(largest[0])


def _respaced(delta: LowRank, limit: float, to: Callable[[Tensor, float], Tensor]) -> LowRank | None:
    """What has to be added to a change for its singular values above a limit, if there are any, to become others."""
    left, values, right = thin_svd(delta)
    large = values > limit
    if not large.any():
        return None
    moved = to(values[large], limit) - values[large]
    return LowRank(left=(left[:, large] * moved).float(), right=right[large].float())


def _lowered(values: Tensor, limit: float) -> Tensor:
    return torch.minimum(values, values.log() - math.log(limit) + limit)


def _raised(values: Tensor, limit: float) -> Tensor:
    """What ``_lowered`` made these of. Nothing that it lowers comes from above a million limits."""
    return torch.maximum(values, limit * (values - limit).clamp(max=math.log(1e6)).exp())
