"""What a model is made of: its layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import ModelError, SiteError
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.running import running

_N_TOKENS = 4
# Of the largest state in a sum, in units of its precision: a few roundings, and much less than any term.
_ROUNDING = 16
# By how much of its spread an input must move to have read a stream that was disturbed by about its own spread.
_MOVED = 0.1


def check_layer(model: TransformerBridge, layer: int) -> int:
    """The layer as a non-negative index.

    Raises:
        SiteError: the model has no such layer.
    """
    n = model.cfg.n_layers
    if not -n <= layer < n:
        raise SiteError(f"Layer {layer} is out of range: the model has {n} layers, 0 to {n - 1}.")
    return int(layer) % n


@dataclass(frozen=True, kw_only=True)
class LayerAnatomy:
    """What one layer is made of.

    Attributes:
        n_heads: how many heads ask; 0 where the layer has no attention.
        n_kv_heads: how many heads have keys and values; each serves a group of the heads that ask.
        d_head: the width of a head's output.
        has_mlp: whether it has an MLP, or experts that write as one.
        parallel: whether attention and MLP read the same stream.
        norm_after_attention: whether a norm stands between attention and the stream.
        norm_after_mlp: whether one stands between the MLP and the stream.
        multiplier: what both are multiplied by before they are added, 1 in most architectures.
        one_down_projection: whether the MLP is one, and writes through one matrix.
        adds_up: whether the stream after the layer is the stream before it and what attention and MLP add, each
            made of its projection's output by the norm and the multiplier above.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    has_mlp: bool
    parallel: bool
    norm_after_attention: bool
    norm_after_mlp: bool
    multiplier: float
    one_down_projection: bool
    adds_up: bool


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What a model is made of, layer by layer, and as one where all layers are alike in it."""

    layers: tuple[LayerAnatomy, ...]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """How many heads ask in each layer."""
        return self._alike("n_heads")

    @property
    def n_kv_heads(self) -> int:
        """How many heads have keys and values in each layer."""
        return self._alike("n_kv_heads")

    @property
    def d_head(self) -> int:
        """The width of a head's output."""
        return self._alike("d_head")

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same stream."""
        return self._alike("parallel")

    @property
    def multiplier(self) -> float:
        """What attention's and the MLP's outputs are multiplied by before they are added."""
        return self._alike("multiplier")

    def _alike(self, name: str) -> Any:
        values = [getattr(layer, name) for layer in self.layers]
        if len(set(values)) > 1:
            raise ModelError(f"{name} differs between layers: {values}. Ask anatomy(model).layers[layer].{name}.")
        return values[0]


def anatomy(model: TransformerBridge) -> Anatomy:
    """What the model is made of, found once by its structure and tried on a few tokens.

    >>> found = anatomy(model)
    >>> found.n_heads, found.n_kv_heads, found.parallel, found.layers[5].adds_up
    (9, 3, False, True)
    """
    return once(model, "anatomy", lambda: _find(model))


def down_module(block: nn.Module) -> nn.Module | None:
    """The module of a block's single down-projection, if it has one."""
    module = _part(block, "mlp.out.original_component")
    return module if isinstance(module, nn.Module) else None


def norm_after(block: nn.Module, part: str) -> nn.Module | None:
    """The norm between a block's ``attn`` or ``mlp`` and the stream, if there is one."""
    module = _part(block, {"attn": "ln1_post", "mlp": "ln2_post"}[part] + ".original_component")
    return module if isinstance(module, nn.Module) else None


def _part(block: nn.Module, path: str) -> Any:
    found: Any = block
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


# What is looked at in each block, under TransformerLens' names within it: the table of places stands above this room.
_LOOKED_AT = {
    "entering": "hook_in", "leaving": "hook_out", "z": "attn.hook_z", "k": "attn.hook_k", "attn": "hook_attn_out",
    "attn_own": "attn.o.hook_out", "mlp": "hook_mlp_out", "mlp_own": "mlp.out.hook_out", "mlp_module": "mlp.hook_out",
    "mlp_in": "mlp.hook_in",
}  # fmt: skip


@torch.no_grad()
def _find(model: TransformerBridge) -> Anatomy:
    n = model.cfg.n_layers
    # Row 0 is left alone; row l + 1 has what layer l's attention adds disturbed.
    tokens = torch.arange(1, _N_TOKENS + 1, device=input_device(model)).expand(n + 1, -1)
    seen: list[dict[str, Tensor]] = [{} for _ in range(n)]
    generator = torch.Generator().manual_seed(0)

    def look(layer: int, name: str) -> Callable[..., Tensor | None]:
        def hook(value: Tensor, hook: object) -> Tensor | None:
            seen[layer][name] = value[[0, layer + 1]].detach().clone()
            if name != "attn":
                return None
            # By about as much as the stream that the MLP would read.
            spread = sum(float(seen[layer][one].float().std()) for one in ("entering", "attn"))
            changed = value.clone()
            noise = torch.randn(value.shape[1:], generator=generator, dtype=torch.float32)
            changed[layer + 1] += (noise * spread).to(value)
            return changed

        return hook

    hooks = []
    for layer, block in enumerate(model.blocks):
        known = {name: f"blocks.{layer}.{path}" for name, path in _LOOKED_AT.items() if _part(block, path) is not None}
        hooks += [(path, look(layer, name)) for name, path in known.items()]
    with running(model), model.hooks(fwd_hooks=hooks), _one_logit(model):
        model(tokens)
    after = [*(one["entering"] for one in seen[1:]), seen[-1]["leaving"]]
    return Anatomy(layers=tuple(map(_layer, model.blocks, seen, after)))


def _layer(block: nn.Module, seen: dict[str, Tensor], after: Tensor) -> LayerAnatomy:
    multiplier = float(getattr(block, "residual_contribution_scale", 1.0))
    alone = {name: value[0] for name, value in seen.items()}
    has_attention, has_mlp = "z" in seen and "attn" in seen, "mlp" in seen
    added = [alone[name] for name in ("attn", "mlp") if name in seen]
    total = sum((one.to(after.device) for one in added), alone["entering"].to(after.device))
    own = {"attn": alone.get("attn_own"), "mlp": alone.get("mlp_own", alone.get("mlp_module"))}
    holds = [_close(total, alone["leaving"], *added), _close(alone["leaving"], after[0])]
    # What is written there must count, or nothing would follow from what it moves.
    holds.append("attn" not in seen or not torch.equal(*seen["leaving"]))
    holds += [_made(block, part, own[part], alone[part], multiplier) for part in ("attn", "mlp") if part in seen]
    parallel = False
    if has_attention and has_mlp and "mlp_in" in seen:
        before, moved = seen["mlp_in"].float()
        parallel = float((moved - before).std()) < _MOVED * float(before.std())
    return LayerAnatomy(
        n_heads=alone["z"].shape[-2] if has_attention else 0,
        n_kv_heads=alone["k"].shape[-2] if has_attention and "k" in seen else 0,
        d_head=alone["z"].shape[-1] if has_attention else 0,
        has_mlp=has_mlp,
        parallel=parallel,
        norm_after_attention=norm_after(block, "attn") is not None,
        norm_after_mlp=norm_after(block, "mlp") is not None,
        multiplier=multiplier,
        one_down_projection=down_module(block) is not None,
        adds_up=all(holds),
    )


def _made(block: nn.Module, part: str, own: Tensor | None, added: Tensor, multiplier: float) -> bool:
    """Whether what a part adds is its own output through the norm and the multiplier that were found."""
    if own is None:
        return False
    norm = norm_after(block, part)
    return _close((own if norm is None else norm(own[None])[0]) * multiplier, added)


def _close(one: Tensor, other: Tensor, *terms: Tensor) -> bool:
    size = max(float(value.abs().max()) for value in (one, other, *terms))
    return float((one - other.to(one.device)).abs().max()) <= _ROUNDING * torch.finfo(one.dtype).eps * size


@contextmanager
def _one_logit(model: TransformerBridge) -> Iterator[None]:
    """While active, the unembedding is spared all rows but one position."""

    def pick(_module: nn.Module, args: tuple[Float[Tensor, "row position d_model"], ...]) -> tuple[Tensor, ...]:
        return (args[0][:1, -1:], *args[1:])

    handle = model.unembed.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
