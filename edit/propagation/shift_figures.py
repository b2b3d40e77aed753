"""Figures of shifts: what was before and after an edit, and the measures of it beside those of unrelated facts."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edit.propagation.circuits import CircuitShift
from edit.propagation.traces import SIDES, TraceShift
from edit.propagation.unrelated import Shift, interval
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import Sheet, sheet
from locate.figures.style import (
    HUES,
    WIDE,
    Whole,
    drawable,
    even_lightness,
    fitted,
    heat_map,
    label_rows,
    shown_text,
    token_label,
)

_KINDS = {"resid": "residual state", "mlp": "MLP", "attn": "attention"}
_MEASURES = {
    "overlap": "overlap of\n{k} best sites", "earth_mover": "earth mover's\ndistance", "spearman": "rank\ncorrelation",
    "best_apart": "layers between\nbest sites", "jaccard": "Jaccard, best\n{edges} edges", "mass_moved": "mass\nmoved",
}  # fmt: skip
# Of unrelated facts, their interval, and the shift itself.
_GREY, _BAND, _OWN = "0.35", "0.87", "#D55E00"
# In inches: a row of measures, a token of a map, and what stands around either.
_ROW, _TOKEN, _AROUND = 0.28, 0.16, 0.75


def plot_trace_shift(shift: TraceShift, **options: Unpack[PlotOptions]) -> Figure:
    """Both traces, each on a scale of its own, and below them the measures beside those of pairs of unrelated facts.

    Effects are shares of the total effect; a star marks the best site. Below, grey dots are pairs of unrelated facts
    and the band is their interval; the diamond is the shift, by role of the token as the pairs are.

    Args:
        shift: from ``edit.trace_shift``.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = traced_shift.plot()
    """
    kinds = [str(kind) for kind in shift.data["kind"].values]
    rows = len(shift.data["position"])

    def heights(width: float) -> list[float]:
        return [len(kinds) * (_TOKEN * rows + _AROUND), _high(shift, width)]

    n, several = 2 * len(kinds), len(shift.data["measure"])
    with sheet(
        options, "plot_trace_shift", width=5.4, height=lambda width: sum(heights(width)) + 0.4, panels=n + several
    ) as drawn:
        upper, lower = drawn.parts(heights(drawn.width))
        panels = upper.panels(len(kinds), 2, sharex=True, sharey=True)
        for place, kind in enumerate(kinds):
            _draw_sides(upper, panels[2 * place : 2 * place + 2], shift, kind, last=place == len(kinds) - 1)
        draw_measures(lower, shift, _KINDS)
        old, new = (drawable(shown_text(one)) for one in shift.info["answers"])
        drawn.headline(f"Where {old} came from, and where {new} comes from")
    return drawn.figure


def _draw_sides(upper: Sheet, panels: Sequence[Axes], shift: TraceShift, kind: str, *, last: bool) -> None:
    """Both sides of one kind, as shares of their total effects."""
    own = shift.data.sel(kind=kind)
    shares = (own["effect"] / own["total_effect"]).values
    reach = max(float(np.nanmax(shares, initial=0)), 1e-9)
    positions = [int(one) for one in own["position"].values]
    labels = [token_label(shift.tokens[at], shift.subject_span[0] <= at < shift.subject_span[1]) for at in positions]
    mesh = None
    for axes, side, values, answer in zip(panels, SIDES, shares, shift.info["answers"], strict=True):
        mesh = heat_map(axes, values, even_lightness(HUES[kind]), 0.0, reach)
        layer, position = own["best"].sel(side=side).values
        axes.plot(layer, positions.index(position), marker="*", color="white", markeredgecolor="black", markersize=8)
        title = f"{_KINDS[kind]}, {side}: {drawable(shown_text(answer))}"
        axes.set_title(fitted(title, 0.35 * upper.width), parse_math=False)
        axes.set_xlabel("layer" if last else "")
    label_rows(panels[0], labels)
    upper.side_bar(mesh, panels, "share of total effect")


def plot_circuit_shift(shift: CircuitShift, **options: Unpack[PlotOptions]) -> Figure:
    """Which share of all scores the writers of each layer have in both circuits, and the measures as of traces.

    Args:
        shift: from ``edit.circuit_shift``.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = circuits_shift.plot()
    """
    weights = np.nansum(np.abs(shift.data["scores"].values), axis=2)  # side writer
    weights = weights / weights.sum(1, keepdims=True)
    n_layers = max(one.layer for one in shift.readers)
    groups = {"heads": [one.head is not None for one in shift.writers],
              "MLP": [one.head is None and one.order > 0 for one in shift.writers]}  # fmt: skip
    layers = np.array([one.layer for one in shift.writers])

    def heights(width: float) -> list[float]:
        return [2.3, _high(shift, width)]

    panels = 1 + len(shift.data["measure"])
    with sheet(
        options, "plot_circuit_shift", width=5.4, height=lambda width: sum(heights(width)) + 0.2, panels=panels
    ) as drawn:
        upper, lower = drawn.parts(heights(drawn.width))
        (axes,) = upper.panels()
        for (name, own), (colour, marker) in zip(groups.items(), STYLES, strict=False):
            for side, share, dashes in zip(SIDES, weights, ("--", "-"), strict=True):
                written = np.bincount(layers[own], share[own], minlength=n_layers)
                axes.plot(written, dashes, color=colour, marker=marker, markersize=3, linewidth=1,
                          markerfacecolor="white" if side == "before" else colour, label=f"{name}, {side}")  # fmt: skip
        axes.set_xlabel("layer that writes")
        axes.set_ylabel("share of all scores")
        axes.xaxis.set_major_locator(Whole())
        axes.spines[["top", "right"]].set_visible(False)
        upper.legend(*axes.get_legend_handles_labels(), loc="outside upper center")
        draw_measures(lower, shift, {"edges": "edges", "nodes": "nodes"})
        old, new = (drawable(shift.info[name]) for name in ("old", "new"))
        drawn.headline(f"The circuit of {old} before, and of {new} after")
    return drawn.figure


def _across(shift: Shift, width: float) -> int:
    """How many panels of measures stand beside each other."""
    n = len(shift.data["measure"])
    return n if width >= WIDE else min(n, 2)


def _high(shift: Shift, width: float) -> float:
    """Of all panels of measures, in inches."""
    lines = -(-len(shift.data["measure"]) // _across(shift, width))
    return lines * (len(shift.data[shift.compared]) * _ROW + 0.65) + 0.4


def draw_measures(lower: Sheet, shift: Shift, names: Mapping[str, str]) -> None:
    """A panel for each measure, and in it a row for each thing compared."""
    what = [str(one) for one in shift.data[shift.compared].values]
    measures = [str(one) for one in shift.data["measure"].values]
    across = _across(shift, lower.width)
    panels = lower.grid(len(measures), across, sharey=True)
    for axes, measure in zip(panels, measures, strict=True):
        for row, one in enumerate(what):
            at = {shift.compared: one, "measure": measure}
            null, value = shift.data["null"].sel(at).values, float(shift.data["comparable"].sel(at))
            low, high = interval(null, shift.info["confidence"])
            axes.barh(row, high - low, left=low, height=0.6, color=_BAND)
            lifts = 0.22 * np.sin(2.4 * np.arange(len(null)))  # side by side, so that each is seen
            axes.plot(null, row + lifts, ".", color=_GREY, markersize=3.5, markeredgewidth=0)
            axes.plot(value, row, "D", color=_OWN, markersize=5, markeredgecolor="black", markeredgewidth=0.5)
        axes.set_title(_MEASURES[measure].format_map(shift.info), fontsize=lower.small)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(len(what) - 0.5, -0.5)
        if axes in panels[::across]:
            axes.set_yticks(range(len(what)), [names[one] for one in what])
    n = len(shift.info["null"])
    lower.note(f"◆ the edit    ·  pairs of {n + 1} unrelated facts, and their interval" if n else "◆ the edit")
