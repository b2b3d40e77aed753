"""What activation patching can exchange, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.branches import Graft
from locate.engine import Branch, FrozenRun, check_live, hook_points
from locate.errors import SiteError, suggest
from locate.sites.patched import PATCH_SITES, STATES


@dataclass(frozen=True, kw_only=True)
class PatchSite:
    """A kind of site, and what its sites are told apart by.

    Attributes:
        name: as users type it.
        hook: the hook point within a block whose value is exchanged; None for the residual stream itself.
        unit: ``head`` or ``neuron``, where single ones are patched.
        by: what tells sites apart: ``layer``, ``position``, and the unit.
        offset: of the residual stream: 0 for what enters the block, 1 for what leaves it.
    """

    name: str
    hook: str | None
    unit: str | None
    by: tuple[str, ...]
    offset: int = 0

    @property
    def of_both(self) -> bool:
        """Whether both runs must keep the hook point."""
        return self.name == "resid_mid"

    def kept(self, layer: int) -> list[str]:
        """The hook points that must be kept."""
        if self.name == "resid_mid":
            return [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_resid_mid"]
        return [] if self.hook is None else [f"blocks.{layer}.{self.hook}"]

    def n_units(self, value: Tensor) -> int:
        """How many heads or neurons a kept value has."""
        return value.shape[1] if self.name == "attn_head_pattern" else value.shape[2]

    def branch(self, graft: Graft, layer: int, units: Sequence[int]) -> Branch:
        """The rows that patch this layer's sites, unit by unit."""
        if self.name == "resid_mid":
            return graft.middle(layer)
        if self.hook is None:
            return graft.residual(layer + self.offset)
        name = f"blocks.{layer}.{self.hook}"
        if self.name == "attn_head_pattern":
            return graft.patterns(layer, name, units)
        if self.unit is not None:
            return graft.units(layer, name, units)
        return graft.state(range(layer, layer + 1), [name])

    def check(self, run: FrozenRun, layers: Sequence[int]) -> None:
        """Whether the architecture has these states.

        Raises:
            SiteError: there is no state between attention and MLP, because the two run side by side; or a hook
                point that shows a state but whose changes the model does not take.
        """
        if self.name == "resid_mid":
            for layer in layers:
                middle = run.residuals[layer] + run.kept[f"blocks.{layer}.hook_attn_out"]
                if not torch.allclose(middle, run.kept[f"blocks.{layer}.hook_resid_mid"], rtol=1e-3, atol=1e-4):
                    raise SiteError(_no_middle(run.model))
        elif self.hook is not None:
            check_live(run.model, f"blocks.{layers[0]}.{self.hook}")


# Under TransformerLens' names as well: the hook point of the middle shows what the MLP's norm reads, and not the sum.
_STREAM = ("resid_pre", "resid_mid", "resid_post")
_HEADS_FIRST = ("hook_pattern", "hook_attn_scores")


def patch_site(model: TransformerBridge, name: str, by: Sequence[Any] | None = None) -> PatchSite:
    """The kind of site of this name.

    Args:
        model: a raw-mode bridge.
        name: one of ``PATCH_SITES``, or a hook point within a block.
        by: what tells its sites apart, or None for the usual.

    Raises:
        SiteError: no such site or hook point (the nearest names are suggested), or a ``by`` that it does not have.

    >>> patch_site(model, "attn_head_z").by
    ('layer', 'head')
    """
    if name.removeprefix("hook_") in _STREAM:
        name = name.removeprefix("hook_")
    if name in STATES:
        hook, unit, offset = STATES[name]
    else:
        hook, unit, offset = _own_hook(model, name), None, 0
    dims = ("layer", "position") if unit is None else ("layer", "position", unit)
    if by is None:
        chosen = dims if unit is None else ("layer", unit)
    else:
        if unknown := [one for one in by if one not in dims]:
            raise SiteError(f"by: {name} has no {unknown[0]!r} to tell sites apart; it has {', '.join(dims)}.")
        chosen = tuple(dim for dim in dims if dim in by)
        for needed in ("layer", *([unit] if unit else [])):
            if needed not in chosen:
                raise SiteError(f"by: sites of {name} are told apart by {needed} at least; add it.")
    if name == "resid_mid" and "blocks.0.hook_resid_mid" not in model.hook_dict:
        raise SiteError(_no_middle(model))
    if hook is not None:
        hook_points(model, [f"blocks.0.{hook}"])
    return PatchSite(name=name, hook=hook, unit=unit, by=chosen, offset=offset)


def _own_hook(model: TransformerBridge, name: str) -> str:
    prefix = "blocks.0."
    known = {hook.removeprefix(prefix) for hook in model.hook_dict if hook.startswith(prefix)}
    if name not in known:
        raise SiteError(f"There is no site {name!r} to patch. {suggest(name, [*PATCH_SITES, *known])}")
    if name.endswith(_HEADS_FIRST):
        raise SiteError(f"{name} has a value for each pair of tokens, and none by position: patch attn_head_pattern.")
    return name


def _no_middle(model: TransformerBridge) -> str:
    return (
        f"{type(model.original_model).__name__} has no residual stream between attention and MLP: its blocks compute "
        "them side by side. Patch resid_pre, attn_out or mlp_out."
    )
