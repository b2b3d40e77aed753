"""One patch at a time, at every (position, layer), over one frozen run.

Causal tracing and edit propagation are both this: give a run the states of another run, one site (or
window of layers) at a time, and measure the answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from locate.contrast.branches import Graft, Pairing
from locate.engine import Branch, FrozenRun, Measure
from locate.errors import SiteError
from locate.sites.site import Kind, check_kind, hook_name


def kept_hooks(kinds: Sequence[str], n_layers: int) -> list[str]:
    """The hook points that a source run has to keep for a sweep of these kinds."""
    return [hook_name(kind, layer) for kind in kinds if check_kind(kind) != "resid" for layer in range(n_layers)]


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
    target: FrozenRun,
    source: FrozenRun,
    kinds: Sequence[Kind],
    measure: Measure,
    *,
    positions: Sequence[int],
    layers: Sequence[int] | None = None,
    window: int = 1,
    pairing: Pairing | None = None,
    severed: str | None = None,
    progress: tqdm | None = None,
) -> Float[Tensor, "kind position layer row *metric"]:
    """Give every row of ``target`` the state of ``source`` at each site in turn, and measure.

    Args:
        target: the run that is patched.
        source: the run that the states come from. For ``mlp`` and ``attn`` it must have kept its states
            (see ``kept_hooks``).
        kinds: ``resid`` patches one residual state; ``mlp`` and ``attn`` that module's outputs in a
            window of layers around the site's layer.
        measure: turns last-position logits into numbers for each row.
        positions: the token positions to visit.
        layers: the layers to visit; by default all.
        window: how many layers an ``mlp`` or ``attn`` patch spans.
        pairing: which rows belong together; by default row by row, or one row with all.
        severed: hold this module's outputs (``mlp`` or ``attn``) at the patched position at their values in
            ``target``, which must have kept them, in all layers after a ``resid`` patch.
        progress: a bar to advance once per position.

    Raises:
        SiteError: the window has no layer, or more than the model.
    """
    check_window(window, target.n_layers)
    layers = range(target.n_layers) if layers is None else layers
    spans = [window_layers(layer, window, target.n_layers) for layer in layers]
    pairing = Pairing.of(target, source) if pairing is None else pairing
    results = []
    for position in positions:
        # All kinds share one growing batch: the larger it is, the better the matrix products run.
        graft = Graft(target, source, pairing, position)
        branches: list[Branch] = []
        for kind in kinds:
            if kind == "resid":
                # The state after block `layer` is the one that enters block `layer + 1`.
                branches += [graft.residual(layer + 1, severed) for layer in layers]
            else:
                branches += graft.windows(kind, spans)
        measured = target.resume(position, branches, measure=measure)
        results.append(measured.unflatten(0, (len(kinds), len(layers), len(pairing))))
        if progress is not None:
            progress.update()
    return torch.stack(results, dim=1)


def sweep_heads(
    target: FrozenRun, source: FrozenRun, measure: Measure, *, positions: Sequence[int], pairing: Pairing
) -> Float[Tensor, "position layer head row *metric"]:
    """The same for the output of one head at one (layer, position) at a time."""
    results = []
    n_layers, n_heads = target.n_layers, source.kept[hook_name("attn_head", 0)].shape[2]
    for position in positions:
        graft = Graft(target, source, pairing, position)
        # Only as many layers' states at a time as one pass takes.
        together = max(1, target.rows_at_a_time(position) // (n_heads * len(pairing)))
        for first in range(0, n_layers, together):
            layers = range(first, min(first + together, n_layers))
            branches = [graft.units(layer, hook_name("attn_head", layer)) for layer in layers]
            results.append(target.resume(position, branches, measure=measure))
    return torch.cat(results).unflatten(0, (len(positions), n_layers, n_heads, len(pairing)))
