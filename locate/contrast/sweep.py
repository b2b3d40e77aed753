"""One patch at a time, at every (position, layer), over one frozen run.

Causal tracing and edit propagation are both this: give a run the states of another run, one site (or
window of layers) at a time, and measure the answer.
"""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.branches import Graft
from locate.contrast.contrast import Contrast
from locate.engine import Branch, Measure
from locate.engine.rows import in_parts
from locate.errors import SiteError
from locate.sites.places import hooks_of, layers_with
from locate.sites.site import Kind, check_kind, hook_name


def kept_hooks(model: TransformerBridge, kinds: Sequence[str]) -> list[str]:
    """The hook points that a source run has to keep for a sweep of these kinds.

    Raises:
        SiteError: an unknown kind, or one that no layer of the model has.
    """
    return [name for kind in kinds if check_kind(kind) != "resid" for name in hooks_of(model, kind)]


def window_layers(center: int, window: int, n_layers: int) -> range:
    """The layers of a window around ``center``: [center - window // 2, center + (window + 1) // 2).

    Windows are cut off at the model's ends, as in the published causal traces.

    >>> window_layers(1, 10, 30)
    range(0, 6)
    """
    return range(max(0, center - window // 2), min(n_layers, center + (window + 1) // 2))


def check_window(window: int | None, n_layers: int, *, usual: int = 1) -> int:
    """The window, if the model has room for it; where none is given, the usual one, or all layers of a smaller model.

    Raises:
        SiteError: it has no layer, or more than the model.

    >>> check_window(None, 4, usual=10)
    4
    """
    if window is None:
        return min(usual, n_layers)
    if not 1 <= window <= n_layers:
        raise SiteError(f"A window of {window} layers does not fit: the model has {n_layers} layers.")
    return window


def sweep(
    contrast: Contrast,
    kinds: Sequence[Kind],
    measure: Measure,
    *,
    positions: Sequence[int | None],
    layers: Sequence[int] | None = None,
    window: int = 1,
    severed: str | None = None,
) -> Float[Tensor, "kind position layer row *metric"]:
    """Give every row of a contrast's target the state of its source at each site in turn, and measure.

    Args:
        contrast: the two runs. For ``mlp`` and ``attn`` the source must have kept its states (see ``kept_hooks``).
        kinds: ``resid`` patches one residual state; ``mlp`` and ``attn`` that module's outputs in a
            window of layers around the site's layer.
        measure: turns last-position logits into numbers for each row, as ``contrast.measure`` does.
        positions: the token positions to visit; None stands for all of them at once.
        layers: the layers to visit; by default all.
        window: how many layers an ``mlp`` or ``attn`` patch spans.
        severed: hold this module's outputs (``mlp`` or ``attn``) at the patched position at their values in
            the target, which must have kept them, in all layers after a ``resid`` patch.

    Returns:
        What was measured; NaN where no layer of a window has such a module, as in hybrids.

    Raises:
        SiteError: the window has no layer, or more than the model.
    """
    target = contrast.target
    check_window(window, target.n_layers)
    layers = range(target.n_layers) if layers is None else layers
    spans = [window_layers(layer, window, target.n_layers) for layer in layers]
    filled = has_states(target.model, kinds, spans)
    results = []
    for position in positions:
        # All kinds share one growing batch: the larger it is, the better the matrix products run.
        start = contrast.first if position is None else position
        graft = Graft(contrast, start, everywhere=position is None)
        branches: list[Branch] = []
        for kind, own in zip(kinds, filled, strict=True):
            if kind == "resid":
                # The state after block `layer` is the one that enters block `layer + 1`.
                branches += [graft.residual(layer + 1, severed) for layer in layers]
            else:
                branches += graft.windows(kind, [span for span, has in zip(spans, own, strict=True) if has])
        measured = target.resume(start, branches, measure=measure)
        measured = rearrange(measured, "(site row) ... -> site row ...", row=len(contrast.rows))
        table = measured.new_full((len(kinds), len(layers), *measured.shape[1:]), float("nan"))
        table[filled.to(table.device)] = measured
        results.append(table)
    return torch.stack(results, dim=1)


def has_states(model: TransformerBridge, kinds: Sequence[str], spans: Sequence[range]) -> Bool[Tensor, "kind span"]:
    """Whether any layer of a window has such states: in a hybrid, attention stands in some layers only."""
    present = {kind: range(model.cfg.n_layers) if kind == "resid" else layers_with(model, kind) for kind in kinds}
    found = [[any(layer in present[kind] for layer in span) for span in spans] for kind in kinds]
    return torch.tensor(found, dtype=torch.bool).reshape(len(kinds), len(spans))


def sweep_heads(
    contrast: Contrast, measure: Measure, *, positions: Sequence[int | None], layers: Sequence[int] | None = None
) -> Float[Tensor, "position layer head row *metric"]:
    """The same for the output of one head at one (layer, position) at a time; NaN in layers without attention.

    A position that is None stands for all at once.
    """
    results = []
    target = contrast.target
    visited = list(range(target.n_layers) if layers is None else layers)
    present = [layer for layer in layers_with(target.model, "attn_head") if layer in visited]
    if not present:
        n_heads = target.model.cfg.n_heads
        shape = len(positions), len(visited), n_heads, *measure(target.logits, target.at[0])[contrast.rows.target].shape
        return torch.full(shape, float("nan"))
    n_heads = contrast.source.kept[hook_name("attn_head", present[0])].shape[2]
    for position in positions:
        start = contrast.first if position is None else position
        graft = Graft(contrast, start, everywhere=position is None)
        # Only as many layers' states at a time as one pass takes.
        together = target.rows_at_a_time(start) // (n_heads * len(contrast.rows))
        for part in in_parts(present, together):
            branches = [graft.units(layer, hook_name("attn_head", layer)) for layer in part]
            results.append(target.resume(start, branches, measure=measure))
    table = "(position layer head row) ... -> position layer head row ..."
    found = rearrange(torch.cat(results), table, position=len(positions), layer=len(present), head=n_heads)
    every = found.new_full((len(positions), len(visited), *found.shape[2:]), float("nan"))
    every[:, [visited.index(layer) for layer in present]] = found
    return every


def exchange(
    contrast: Contrast, sets: Sequence[Mapping[str, Sequence[int] | None]], measure: Measure
) -> Float[Tensor, "set row *metric"]:
    """Give every row of a contrast's target states of its source at several places at once, set by set, and measure.

    Args:
        contrast: the two runs; the source must have kept the hook points.
        sets: of hook points in blocks, each with the heads or neurons (the axis after the position) that take the
            source's values at all positions, or None for whole states.
        measure: as in ``sweep``.

    >>> keep = ["blocks.5.hook_mlp_out", "blocks.6.attn.hook_z"]
    >>> contrast = locate.Contrast.of(model, fact, locate.TokenSwap("The Colosseum"), keep=keep)
    >>> exchange(contrast, [{keep[0]: None, keep[1]: [0, 2]}, {keep[1]: [0]}], contrast.measure()).shape
    torch.Size([2, 1, 1])
    """
    graft = Graft(contrast, contrast.first, everywhere=True)
    found = contrast.target.resume(contrast.first, [graft.several(places) for places in sets], measure=measure)
    return rearrange(found, "(set row) ... -> set row ...", row=len(contrast.rows))
