"""What all methods share that rewrite down-projections: the texts before a prompt, stabilisers, and what is stored."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Count, Told, hyperparameters, refused
from edit.methods.base import EarlierEdits, EditingMethod, Job
from edit.methods.rewriting.stabilisers import Stabiliser
from edit.values.contexts import sample_prefixes
from locate.errors import NumericsError
from locate.model.weights import DownProjection

# Of sampled prefixes: pairs of a length and a count.
Lengths = Annotated[
    tuple[tuple[Count, Count], ...],
    Told("give pairs of a length and a count, both 1 or more, such as ((5, 10), (10, 10)); found {}."),
]


def _several(prefixes: Any) -> Any:
    if isinstance(prefixes, str):
        raise refused("give several texts, or one as ({},).")
    return None if prefixes is None else tuple(prefixes)  # a generator gives them once only


@hyperparameters
class _First:
    """The fields that stand before those of every method."""

    prefix_lengths: Lengths = ((10, 5),)
    prefixes: Annotated[tuple[str, ...] | None, BeforeValidator(_several)] = None
    stabilisers: Annotated[tuple[Stabiliser, ...], Told("give several, or one as (edit.NAS(),); found {}.")] = ()


@hyperparameters
class Rewriting(EditingMethod[WeightUpdate], _First):
    """A method that rewrites down-projections.

    Args:
        prefix_lengths: (length, count) of the sampled prefixes.
        prefixes: texts to use instead of sampled ones, each put before the prompt as it is (so that it should end in
            a space); the bare prompt is added.
        stabilisers: what keeps many edits from breaking the model: ``NAS``, ``ENCORE``, ``BLUE``, ``PRUNE``, ``RECT``.
    """

    def texts_before(self, model: TransformerBridge) -> list[str]:
        """The prefixes, of which the first is empty.

        >>> edit.ROME(prefixes=("I am here. ",)).texts_before(model)
        ['', 'I am here. ']
        """
        if self.prefixes is None:
            return sample_prefixes(model, self.prefix_lengths, self.seed)
        return ["", *self.prefixes]

    def on_unedited(self, job: Job, known: Mapping[str, Any]) -> tuple[EditingMethod[WeightUpdate], dict[str, Any]]:
        """See ``EditingMethod.on_unedited``; the prefixes known are taken, because another device may sample others."""
        return replace(self, prefixes=tuple(known.get("prefixes") or self.texts_before(job.model)[1:])), {}

    def stabilised(self, delta: LowRank, down: DownProjection, earlier: EarlierEdits) -> LowRank:
        """The change of a layer after all stabilisers.

        Raises:
            NumericsError: it is not finite.
        """
        for stabiliser in self.stabilisers:
            delta = stabiliser.change(delta, down.parameter, earlier.changes.get(down.name))
        if not delta.is_finite():
            raise NumericsError(
                f"The change of layer {down.layer} holds NaN or infinite values; nothing was changed. Collect more key "
                "statistics, or lower the learning rate."
            )
        return delta


def under(model: TransformerBridge, deltas: Mapping[str, LowRank]) -> AbstractContextManager[Any]:
    """The model with these changes, for the length of a ``with`` block."""
    return WeightUpdate.make(model, deltas, method="partial").applied(model) if deltas else nullcontext()


def stored(left: Float[Tensor, "d_model rank"], right: Float[Tensor, "rank d_mlp"], down: DownProjection) -> LowRank:
    """Factors of a change of W in the orientation in which the model keeps it."""
    # With orthonormal columns on one side rounding harms neither: where keys are alike, the factors are large and
    # cancel.
    left, triangle = torch.linalg.qr(left.double())
    left, right = left.float(), (triangle @ right.double()).float()
    return LowRank(left=right.T, right=left.T) if down.transposed else LowRank(left=left, right=right)


def matrix_of(down: DownProjection) -> Float[Tensor, "d_model d_mlp"]:
    """W in float64 on the CPU."""
    weight = down.parameter.detach().cpu().double()
    return weight.T if down.transposed else weight
