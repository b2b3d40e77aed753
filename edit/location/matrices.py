"""The matrices that a change adds to, each as the model multiplies by it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from locate.model.anatomy import down_module
from locate.model.weights import down_projection, edited_layers, stored_transposed


@dataclass(frozen=True, kw_only=True, eq=False)
class ChangedMatrix:
    """A matrix and what is added to it, whichever way round it is stored.

    Attributes:
        name: of the parameter.
        layer: whose it is; None outside of the layers.
        delta: what is added, ``out × in``: of a down-projection a column is what one neuron writes.
    """

    name: str
    layer: int | None
    delta: LowRank


def changed_matrices(model: TransformerBridge, change: WeightUpdate) -> list[ChangedMatrix]:
    """What a change adds to, in the order of the layers.

    Raises:
        ModelError: a matrix whose sides are not told apart.

    >>> [one.layer for one in changed_matrices(model, update)]
    [4]
    """
    found = []
    for name, delta in change.deltas.items():
        if stored_transposed(model, name):
            delta = LowRank(left=delta.right.T, right=delta.left.T)
        layers = edited_layers(model, [name])
        found.append(ChangedMatrix(name=name, layer=layers[0] if layers else None, delta=delta))
    return sorted(found, key=lambda one: -1 if one.layer is None else one.layer)


def changed_down_projections(model: TransformerBridge, change: WeightUpdate) -> Sequence[ChangedMatrix]:
    """Those of a change that are the down-projection of their layer.

    >>> [one.name for one in changed_down_projections(model, update)]
    ['model.layers.4.mlp.down_proj.weight']
    """
    return [
        one for one in changed_matrices(model, change)
        if one.layer is not None and down_module(model.blocks[one.layer]) is not None
        and down_projection(model, one.layer).name == one.name
    ]  # fmt: skip
