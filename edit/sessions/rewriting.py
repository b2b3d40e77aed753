"""Writing a batch of a session again: its keys and wanted values, on other edits than it was made on."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from edit.changes.lowrank import LowRank
from edit.methods import KN, EarlierEdits, LocateThenEdit
from edit.methods.base import Written, stored
from locate.model.weights import DownProjection


def written_again(
    method: LocateThenEdit | KN,
    own: Written,
    down: DownProjection,
    original: Float[Tensor, "d_model d_mlp"],
    earlier: EarlierEdits,
) -> LowRank:
    """The change of a layer that gives a batch's keys their wanted values, after earlier edits.

    Args:
        method: with the statistics of the unedited model.
        own: what the batch writes.
        down: the layer's down-projection.
        original: its weights in the unedited model.
        earlier: the edits before this batch.
    """
    assert isinstance(method, LocateThenEdit)
    statistics = method.statistics if not isinstance(method.statistics, Mapping) else method.statistics[down.layer]
    assert statistics is not None
    known = earlier.written.get(down.layer)
    keys = torch.zeros(0, own.keys.shape[1]) if known is None else known.keys
    changes, total = dict(earlier.changes), None
    everything = list(range(len(own.keys)))
    for group in [[i] for i in everything] if method.one_by_one else [everything]:
        weight = original
        if down.name in changes:
            change = changes[down.name].dense().double()
            weight = weight + (change.T if down.transposed else change)
        residuals = own.values[group].double() - own.keys[group].double() @ weight.T
        factors = method.solve(own.keys[group], residuals, statistics, keys)
        # A stabiliser sees the weights as they are when it comes to them.
        now = (weight.T if down.transposed else weight).to(down.parameter.dtype)
        before = replace(down, parameter=torch.nn.Parameter(now, requires_grad=False))
        delta = method.stabilised(stored(*factors, down), before, replace(earlier, changes=changes))
        changes[down.name] = changes[down.name].joined(delta) if down.name in changes else delta
        total = delta if total is None else total.joined(delta)
    assert total is not None
    return total
