"""What activation patching can exchange, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.branches import Graft
from locate.engine import Branch, FrozenRun, check_live
from locate.errors import SiteError, suggest
from locate.sites.places import layers_with
from locate.sites.table import PATCH_SITES, TABLE, Row, hook_name

# The block whose input the stream is: the place's own, or the one after it.
_STREAM = {"resid_pre": 0, "block_in": 0, "resid_post": 1}
_PATTERN = "attn_head_pattern"


@dataclass(frozen=True, kw_only=True)
class PatchSite:
    """A kind of site, and what its sites are told apart by.

    Attributes:
        name: as the user typed it.
        row: of the table of places.
        unit: ``head`` or ``neuron``, where single ones are patched.
        by: what tells sites apart: ``layer``, ``position``, and the unit.
    """

    name: str
    row: Row
    unit: str | None
    by: tuple[str, ...]

    @property
    def of_both(self) -> bool:
        """Whether both runs must keep the hook point."""
        return self.is_middle

    @property
    def is_middle(self) -> bool:
        """Whether this is the stream between attention and MLP, which is no hook point's value alone."""
        return self.row.name == "resid_mid"

    @property
    def is_pattern(self) -> bool:
        """Whether the heads come before the positions."""
        return self.row.name == _PATTERN

    def kept(self, layer: int) -> list[str]:
        """The hook points that must be kept."""
        if self.is_middle:
            return [hook_name("attn_out", layer), self.row.at(layer)]
        return [] if self.row.name in _STREAM else [self.row.at(layer)]

    def n_units(self, value: Tensor) -> int:
        """How many heads or neurons a kept value has."""
        return value.shape[self.row.unit_axis]

    def states(self, run: FrozenRun, layer: int) -> Tensor:
        """The states that a run has there."""
        if self.is_middle:
            return run.residuals[layer] + run.kept[hook_name("attn_out", layer)]
        if self.row.name in _STREAM:
            return run.residuals[layer + _STREAM[self.row.name]]
        return run.kept[self.row.at(layer)]

    def gradient_hook(self, layer: int) -> str:
        """The hook point where a gradient is that of these states: of the middle, with both of its readers."""
        return hook_name("attn_out", layer) if self.is_middle else self.row.at(layer)

    def branch(self, graft: Graft, layer: int, units: Sequence[int]) -> Branch:
        """The rows that patch this layer's sites, unit by unit."""
        if self.is_middle:
            return graft.middle(layer)
        if self.row.name in _STREAM:
            return graft.residual(layer + _STREAM[self.row.name], everything=self.row.name == "block_in")
        if self.is_pattern:
            return graft.patterns(layer, self.row.at(layer), units)
        if self.unit is not None:
            return graft.units(layer, self.row.at(layer), units)
        return graft.state(range(layer, layer + 1), [self.row.at(layer)])

    def check(self, run: FrozenRun, layers: Sequence[int]) -> None:
        """Whether the architecture has these states.

        Raises:
            SiteError: there is no state between attention and MLP, because the two run side by side; or a hook
                point that shows a state but whose changes the model does not take.
        """
        if self.is_middle:
            for layer in layers:
                shown = run.kept[self.row.at(layer)]
                if not torch.allclose(self.states(run, layer), shown, rtol=1e-3, atol=1e-4):
                    raise SiteError(_no_middle(run.model))
        elif self.row.name not in _STREAM:
            check_live(run.model, self.row.at(layers[0]))

    def layers(self, model: TransformerBridge) -> tuple[int, ...]:
        """The layers that have such sites."""
        if self.row.name in _STREAM:
            return tuple(range(model.cfg.n_layers))
        both = [layers_with(model, self.row), *([layers_with(model, "attn_out")] if self.is_middle else [])]
        return tuple(layer for layer in both[0] if all(layer in one for one in both))


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
    row = _row(model, name)
    # Key-value heads are heads where sites are told apart.
    unit = None if row.unit is None else row.unit.removeprefix("kv_")
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
    if row.name == "resid_mid" and row.at(0) not in model.hook_dict:
        raise SiteError(_no_middle(model))
    if row.name not in _STREAM:
        layers_with(model, row)
    typed = name.removeprefix("hook_") if row in TABLE else name
    return PatchSite(name=typed, row=row, unit=unit, by=chosen)


def _row(model: TransformerBridge, name: str) -> Row:
    """The table's row, or one for a hook point that it does not have."""
    named = {one: row for row in TABLE for one in row.names if row.name in PATCH_SITES}
    if name in named:
        return named[name]
    prefix = "blocks.0."
    known = {hook.removeprefix(prefix) for hook in model.hook_dict if hook.startswith(prefix)}
    pairs = [row for row in TABLE if row.layered and not row.by_position]
    if any(name in (row.hook, *row.names) for row in pairs):
        raise SiteError(f"{name} has a value for each pair of tokens, and none by position: patch {_PATTERN}.")
    if name not in known:
        raise SiteError(f"There is no site {name!r} to patch. {suggest(name, [*named, *known])}")
    return Row(name=name, title=name, hook=name, axes="row position d_model")


def _no_middle(model: TransformerBridge) -> str:
    return (
        f"{type(model.original_model).__name__} has no residual stream between attention and MLP: its blocks compute "
        "them side by side. Patch resid_pre, attn_out or mlp_out."
    )
