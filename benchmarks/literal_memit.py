"""MEMIT, PMET, AlphaEdit and EMMET as published, written down literally: one request, one text, one layer at a time.

Nothing here uses the engine or the solves of ``edit``: it is the yardstick for ``edit.methods``. Matrices are
inverted outright, and every state is read from a whole pass over one unpadded text.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.literal_rome import halved_mean, optimise_value, state_at, text_rows
from edit.requests.requests import EditRequest
from edit.values.objective import ValueObjective
from locate.model.weights import down_projection

PLACES = {"MEMIT": "resid", "AlphaEdit": "resid", "PMET": "attn+mlp", "EMMET": "mlp"}


def deltas(
    model: TransformerBridge,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    layers: Sequence[int],
    objective: ValueObjective,
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    *,
    method: str = "MEMIT",
    weight: float = 15_000.0,
    energy: float = 0.1,
    ridge: float | Mapping[int, float] = 10.0,
    slack: float = 0.1,
) -> dict[int, Float[Tensor, "d_model d_mlp"]]:
    """What each layer's down-projection gains.

    >>> list(deltas(model, [request], ["", "I am here. "], [3, 4], ValueObjective(steps=2), moments))  # doctest: +SKIP
    [3, 4]
    """
    place = PLACES[method]
    values = [optimise_value(model, request, prefixes, layers[-1], objective, place)[0] for request in requests]
    found: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            keys, missing = [], []
            for request, value in zip(requests, values, strict=True):
                key, residual = _key_and_residual(model, request, prefixes, layer, layers[-1], value, method)
                left = len(layers) - index
                keys.append(key.cpu())
                missing.append(residual.cpu() / (left**0.5 if method == "PMET" else left))
            k, r = torch.stack(keys, dim=1).double(), torch.stack(missing, dim=1).double()
            moment = moments[layer].double()
            if method in ("MEMIT", "PMET"):
                delta = r @ k.T @ torch.linalg.inv(weight * moment + k @ k.T)
            elif method == "EMMET":
                inverse = torch.linalg.inv(moment)
                inner = k.T @ inverse @ k + slack * torch.eye(k.shape[1], dtype=torch.float64)
                delta = r @ torch.linalg.inv(inner) @ k.T @ inverse
            else:
                projector = null_projector(moment, energy)
                own = ridge[layer] if isinstance(ridge, Mapping) else ridge
                system = projector @ k @ k.T + own * torch.eye(len(k), dtype=torch.float64)
                delta = torch.linalg.solve(system, projector @ k @ r.T).T
            found[layer] = delta
            stack.enter_context(added(model, layer, delta))
    return found


def null_projector(moment: Float[Tensor, "d d"], energy: float) -> Float[Tensor, "d d"]:
    """P onto the eigenvectors of the smallest eigenvalues that together hold at most this share of the trace."""
    values, vectors = torch.linalg.eigh(moment)
    small = vectors[:, values.cumsum(0) <= energy * values.sum()]
    return small @ small.T


@contextmanager
def added(model: TransformerBridge, layer: int, delta: Float[Tensor, "d_model d_mlp"]):
    """The model with a change in one down-projection."""
    down = down_projection(model, layer)
    before = down.parameter.detach().clone()
    with torch.no_grad():
        down.parameter.add_((delta.T if down.transposed else delta).to(down.parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            down.parameter.copy_(before)


def _key_and_residual(
    model: TransformerBridge, request: EditRequest, prefixes: Sequence[str], layer: int, last: int, value: Tensor,
    method: str,
) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_model"]]:  # fmt: skip
    rows, sites, _, _ = text_rows(model, request, prefixes)
    places = list(zip(rows[:-1], sites[:-1], strict=True))
    keys = torch.stack([state_at(model, row, f"blocks.{layer}.mlp.out.hook_in", site) for row, site in places])
    if method == "EMMET":
        outputs = [state_at(model, row, f"blocks.{layer}.mlp.out.hook_out", site) for row, site in places]
        return halved_mean(keys), value - halved_mean(torch.stack(outputs))
    end = f"blocks.{last}.hook_resid_post" if PLACES[method] == "resid" else f"blocks.{last}.mlp.out.hook_out"
    residual = value - state_at(model, *_named(places[0], end))
    factor = _gain(model, places[0], layer)
    if PLACES[method] != "resid":
        factor = factor / _gain(model, places[0], last)
    return halved_mean(keys), residual * factor


def _gain(model: TransformerBridge, place: tuple[Tensor, int], layer: int) -> Tensor:
    """What the down-projection must add for the residual stream to gain one: 1, unless a norm stands between."""
    output = state_at(model, *_named(place, f"blocks.{layer}.mlp.out.hook_out"))
    return output / state_at(model, *_named(place, f"blocks.{layer}.hook_mlp_out"))


def _named(place: tuple[Tensor, int], name: str) -> tuple[Tensor, str, int]:
    return place[0], name, place[1]
