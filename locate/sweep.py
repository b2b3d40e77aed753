"""One patch at a time, at every (position, layer), over one frozen run.

Causal tracing and edit propagation are both this: give a run the states of another run, one site (or
window of layers) at a time, and measure the answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from locate.engine import Branch, FrozenRun, Measure
from locate.errors import SiteError
from locate.sites import Kind, check_kind, hook_name


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


def sweep(
    target: FrozenRun,
    source: FrozenRun,
    kinds: Sequence[Kind],
    measure: Measure,
    *,
    positions: Sequence[int],
    layers: Sequence[int] | None = None,
    window: int = 1,
    progress: tqdm | None = None,
) -> Float[Tensor, "kind position layer row"]:
    """Give every row of ``target`` the state of ``source`` at each site in turn, and measure.

    Args:
        target: the run that is patched.
        source: the run that the states come from: one row for all, or one per row of ``target``.
            For ``mlp`` and ``attn`` it must have kept its states (see ``kept_hooks``).
        kinds: ``resid`` patches one residual state; ``mlp`` and ``attn`` that module's outputs in a
            window of layers around the site's layer.
        measure: turns last-position logits into one number per row.
        positions: the token positions to visit.
        layers: the layers to visit; by default all.
        window: how many layers an ``mlp`` or ``attn`` patch spans.
        progress: a bar to advance once per position.

    Raises:
        SiteError: the window has no layer, or more than the model.
    """
    if not 1 <= window <= target.n_layers:
        raise SiteError(f"A window of {window} layers does not fit: the model has {target.n_layers} layers.")
    layers = range(target.n_layers) if layers is None else layers
    results = []
    for position in positions:
        # All kinds share one growing batch: the larger it is, the better the matrix products run.
        branches: list[Branch] = []
        for kind in kinds:
            if kind == "resid":
                branches += [_residual_branch(target, source, position, layer) for layer in layers]
            else:
                branches += _module_branches(target, source, kind, position, layers, window)
        measured = target.resume(position, branches, measure=measure)
        results.append(measured.view(len(kinds), len(layers), -1))
        if progress is not None:
            progress.update()
    return torch.stack(results, dim=1)


def _residual_branch(target: FrozenRun, source: FrozenRun, position: int, layer: int) -> Branch:
    # The state after block `layer` is the one that enters block `layer + 1`.
    states = target.residuals[layer + 1][:, position:].clone()
    states[:, 0] = source.residuals[layer + 1][:, position]
    return Branch(layer=layer + 1, rows=torch.arange(len(states)), states=states)


def _module_branches(
    target: FrozenRun, source: FrozenRun, kind: Kind, position: int, layers: Sequence[int], window: int
) -> list[Branch]:
    spans = [window_layers(layer, window, target.n_layers) for layer in layers]
    widest = max((span.stop for span in spans if span.start == 0), default=0)
    # Windows cut off at the first layer begin alike: they share one run up to where each of them ends.
    shared = [span.stop for span in spans if span.start == 0]
    trunk: dict[int, Tensor] = {}
    if target.resumable and len(shared) > 1:
        whole = _module_branch(target, source, kind, position, range(widest))
        trunk = target.advance(position, whole, sorted(set(shared)))
    rows = torch.arange(target.tokens.shape[0])
    return [
        Branch(layer=span.stop, rows=rows, states=trunk[span.stop])
        if span.start == 0 and span.stop in trunk
        else _module_branch(target, source, kind, position, span)
        for span in spans
    ]


def _module_branch(target: FrozenRun, source: FrozenRun, kind: Kind, position: int, layers: range) -> Branch:
    pins = {name: source.kept[name][:, position] for name in (hook_name(kind, layer) for layer in layers)}
    states = target.residuals[layers.start][:, position:]
    return Branch(layer=layers.start, rows=torch.arange(len(states)), states=states, pins=pins)
