"""How components read the residual stream: through a norm, where there is one, and heads through a projection."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.hooking import hook_points, listen
from locate.errors import ModelError
from locate.model.anatomy import Anatomy, LayerAnatomy, anatomy
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.running import running
from locate.model.weights import read_by
from locate.sites.table import hook_name

_N_TOKENS = 4
_TOLERANCE = 1e-4
# Those that stand before a part first: one that has done its work already, as before the first block, changes nothing.
_NORMS = {"attn": ("ln1", "ln2", None), "mlp": ("ln2", "ln1", None)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Input:
    """How one part of a layer, attention or the MLP, reads the stream.

    Attributes:
        norm: what stands between, if anything does.
        parallel: whether it reads the stream as it enters the block; else with what attention has added.
    """

    norm: nn.Module | None
    parallel: bool

    def __call__(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What is made of the stream before anything is projected."""
        return stream if self.norm is None else self.norm(stream)

    def pulled_back(
        self, stream: Float[Tensor, "row position d_model"], gradient: Float[Tensor, "row position unit d_model"]
    ) -> Float[Tensor, "row position unit d_model"]:
        """Gradients with respect to what is read, made such with respect to the stream; unit by unit.

        Rules that are in force at the norm hold here as well.
        """
        if self.norm is None:
            return gradient
        # Beside the positions: norms take a state for each of them, and no further axis.
        given = rearrange(gradient, "row position unit d_model -> (unit row) position d_model")
        with torch.enable_grad():
            copies = stream.detach().repeat(gradient.shape[2], 1, 1).requires_grad_()
            (found,) = torch.autograd.grad(self.norm(copies), copies, given)
        return rearrange(found, "(unit row) position d_model -> row position unit d_model", row=len(stream))


def check_inputs(model: TransformerBridge) -> None:
    """Whether all layers' attention and MLPs read the stream through one norm at most; found before anything is run.

    Raises:
        ModelError: a layer does not.

    >>> check_inputs(model)
    """
    for layer, own in enumerate(_inputs(model)):
        for part in own:
            _input(model, layer, part)


def attention_input(model: TransformerBridge, layer: int) -> Input:
    """How a layer's attention reads the stream.

    Raises:
        ModelError: not through one of the block's norms, or none.

    >>> attention_input(model, 3).parallel
    True
    """
    return _input(model, layer, "attn")


def mlp_input(model: TransformerBridge, layer: int) -> Input:
    """How a layer's MLP reads the stream.

    Raises:
        ModelError: as ``attention_input`` does.

    >>> mlp_input(model, 3).parallel
    False
    """
    return _input(model, layer, "mlp")


@torch.no_grad()
def projection(model: TransformerBridge, layer: int, name: str) -> Float[Tensor, "unit d_head d_model"]:
    """The weights by which heads read: of their query, key or value, ``q``, ``k`` or ``v``.

    >>> len(projection(model, 3, "k"))
    3
    """
    weight = read_by(getattr(model.blocks[layer].attn, name).original_component, model.cfg.d_model)
    own = anatomy(model).layers[layer]
    n = own.n_heads if name == "q" else own.n_kv_heads
    return rearrange(weight.detach(), "d_model (unit d_head) -> unit d_head d_model", unit=n)


def _inputs(model: TransformerBridge) -> list[dict[str, Input | str]]:
    return once(model, "inputs", lambda: _find(model))


def _input(model: TransformerBridge, layer: int, part: str) -> Input:
    found = _inputs(model)[layer][part]
    if isinstance(found, Input):
        return found
    raise ModelError(
        f"What {part} reads in layer {layer} of {type(model.original_model).__name__} is not the residual "
        f"stream through one norm at most: {found}. Edges cannot be told apart there. Patch sites instead."
    )


def _find(model: TransformerBridge) -> list[dict[str, Input | str]]:
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        return lambda value: seen.__setitem__(name, value.detach())

    made_of = anatomy(model)
    names: list[str] = []
    for layer, own in _known(made_of):
        kinds = ["resid_pre", *(["attn_in", "attn_out", *(f"attn_head_{one}" for one in "qkv")] if own.n_heads else [])]
        names += [hook_name(one, layer) for one in (*kinds, *(["mlp_in"] if own.has_mlp else []))]
    handles = [listen(point, look(name)) for name, point in hook_points(model, names).items()]
    try:
        with running(model):
            model(torch.arange(1, _N_TOKENS + 1, device=input_device(model))[None])
            found: list[dict[str, Input | str]] = [
                dict.fromkeys(("attn", "mlp"), "other things are added as well") for _ in made_of.layers
            ]
            for layer, own in _known(made_of):
                parts: dict[str, Input | str] = {}
                stream = seen[hook_name("resid_pre", layer)]
                if own.n_heads:
                    parts["attn"] = _reading(
                        model, layer, "attn", stream, seen[hook_name("attn_in", layer)], parallel=True
                    )
                    if isinstance(parts["attn"], Input):
                        parts["attn"] = _checked(model, layer, seen) or parts["attn"]
                if own.has_mlp:
                    alone = own.parallel or not own.n_heads
                    before = stream if alone else stream + seen[hook_name("attn_out", layer)]
                    parts["mlp"] = _reading(
                        model, layer, "mlp", before, seen[hook_name("mlp_in", layer)], parallel=alone
                    )
                found[layer] = parts
    finally:
        for handle in handles:
            handle.remove()
    return found


def _known(made_of: Anatomy) -> Iterator[tuple[int, LayerAnatomy]]:
    """The layers that add nothing to the stream but attention and an MLP."""
    return ((layer, own) for layer, own in enumerate(made_of.layers) if own.adds_up)


def _reading(
    model: TransformerBridge, layer: int, part: str, stream: Tensor, read: Tensor, *, parallel: bool
) -> Input | str:
    """The norm by which this was read, by trying those that the block has."""
    for name in _NORMS[part]:
        norm = None if name is None else getattr(model.blocks[layer], name, None)
        if name is not None and norm is None:
            continue
        if _close(stream if norm is None else norm.original_component(stream), read):
            return Input(norm=norm, parallel=parallel)
    return "none of the block's norms makes it"


def _checked(model: TransformerBridge, layer: int, seen: dict[str, Tensor]) -> str | None:
    """Whether queries, keys and values are what the projections make of what attention reads."""
    read = seen[hook_name("attn_in", layer)]
    for one in "qkv":
        shown = seen[hook_name(f"attn_head_{one}", layer)]
        module = getattr(getattr(model.blocks[layer].attn, one, None), "original_component", None)
        if module is None:
            return f"there is no projection of {one} by itself"
        weight = projection(model, layer, one).to(read)
        made = einsum(weight, read, "unit d_head d_model, row position d_model -> row position unit d_head")
        made = made + module(torch.zeros_like(read)).reshape(made.shape)
        if made.shape != shown.shape or not _close(made, shown):
            return f"{one} is not what its projection makes of it"
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    size, eps = float(other.abs().max()), torch.finfo(other.dtype).eps
    return float((one - other).abs().max()) <= max(_TOLERANCE, 16 * eps) * size
