"""Whether an MLP's activations are a function of one projection, or of one times another, found by trying."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.hooking import has_hook_point, hook_points, listen
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.running import running

Kind = Literal["plain", "gated"]
_N_TOKENS = 4
_ROWS = 4  # as it is; the linear part doubled; the MLP's input disturbed; one half of what is projected disturbed
_TOLERANCE = 1e-2


def how_mlps_multiply(model: TransformerBridge) -> tuple[Kind | None, ...]:
    """For each layer, whether what its down-projection reads is f(x), or f(x) · y, entry by entry.

    None where it is neither, as in mixtures of experts, or where there is no MLP.

    >>> how_mlps_multiply(model)[0]
    'gated'
    """
    return once(model, "how MLPs multiply", lambda: _find(model))


def _find(model: TransformerBridge) -> tuple[Kind | None, ...]:
    n = model.cfg.n_layers
    gates = [has_hook_point(model, f"blocks.{layer}.mlp.gate.hook_out") for layer in range(n)]
    known = [
        all(has_hook_point(model, f"blocks.{layer}.mlp.{one}") for one in ("in.hook_out", "out.hook_in"))
        for layer in range(n)
    ]
    made: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    def disturb(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[2] += noise(value[2])
        return changed

    def projected(*, linear: bool) -> Callable[[Tensor], Tensor]:
        def hook(value: Tensor) -> Tensor:
            changed = value[:1].repeat(_ROWS, *[1] * (value.ndim - 1))
            if linear:
                changed[1] *= 2
            half = value.shape[-1] // 2
            changed[3, ..., :half] += noise(changed[3, ..., :half])
            return changed

        return hook

    def look(layer: int) -> Callable[[Tensor], None]:
        return lambda value: made.__setitem__(layer, value.detach().float())

    handles = []
    try:
        for layer in (layer for layer in range(n) if known[layer]):
            prefix = f"blocks.{layer}.mlp"
            hooks: dict[str, Callable[[Tensor], Tensor | None]] = {
                f"{prefix}.hook_in": disturb, f"{prefix}.in.hook_out": projected(linear=gates[layer]),
                f"{prefix}.out.hook_in": look(layer),
            }  # fmt: skip
            if gates[layer]:
                hooks[f"{prefix}.gate.hook_out"] = projected(linear=False)
            handles += [listen(hook_points(model, [name])[name], one) for name, one in hooks.items()]
        with running(model):
            model(torch.arange(1, _N_TOKENS + 1, device=input_device(model)).expand(_ROWS, -1))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_kind(made[layer], gated=gates[layer]) if layer in made else None for layer in range(n))


def _kind(made: Tensor, *, gated: bool) -> Kind | None:
    own, doubled, disturbed, other = made
    half = own.shape[-1] // 2
    wanted = [(doubled, 2 * own if gated else own), (disturbed, own), (other[..., half:], own[..., half:])]
    size = float(own.abs().max())
    if all(float((a - b).abs().max()) <= _TOLERANCE * size for a, b in wanted):
        return "gated" if gated else "plain"
    return None
