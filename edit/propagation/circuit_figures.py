"""Figures of an edit's circuit: the graph of it, and how much circuits of each size carry."""

from typing import Unpack

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edit.propagation.circuit import EditCircuit
from locate.circuits.figures import plot_circuit
from locate.errors import LocateError
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import as_percent, shown_number

_RANDOM = {"all": "of all edges", "ways": "of those on a way", "grown": "grown from the logits"}
_GREY = {"all": "0.7", "ways": "0.45", "grown": "0.2"}


def plot_edit_circuit(
    found: EditCircuit, *, edges: int = 100, **options: Unpack[PlotOptions]
) -> Figure:  # fmt: skip
    """A layered graph of its largest edges, from what was edited, outlined in bold, up to the logits.

    Edges below zero (blue) work for the edit: without one, less of its effect is left.

    Args:
        found: from ``edit.edit_circuit``.
        edges: how many at the most.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: no way leads along so few edges from what was edited to the logits.

    >>> figure = plot_edit_circuit(carrier)
    """
    shown = found.largest(edges)
    if not shown.n_edges:
        raise LocateError(
            f"plot_edit_circuit: {edges} edges are too few for a way from {', '.join(found.edited)} to the logits. "
            "Draw more."
        )
    drawn = "" if shown.n_edges == found.n_edges else f"; drawn: the largest {shown.n_edges}"
    titled: PlotOptions = {"title": _headline(found) + drawn, **options}
    return plot_circuit(shown, marked=found.edited, **titled)


def plot_edit_curve(found: EditCircuit, **options: Unpack[PlotOptions]) -> Figure:
    """The share of the effect that circuits carry, over the share of all edges that they have; and random edges.

    The circuit itself is the star. Of as many random edges, bars reach from the mean to the bounds of 95% of them.

    Args:
        found: from ``edit.edit_circuit``.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_edit_curve(carrier)
    """
    curve, own = found.curve, STYLES[0][0]
    sizes = curve["size"].values
    with sheet(options, "plot_edit_curve", width=3.5, height=3.1) as drawn:
        (axes,) = drawn.panels()
        for bound in (0, 1):
            axes.axhline(bound, color="black", linewidth=0.5)
        axes.axhline(found.info["share"], color=own, linewidth=0.6, linestyle=(0, (3, 3)))
        axes.plot(
            sizes[sizes > 0] / found.n_possible, curve.values[sizes > 0], color=own, marker="o", markersize=2.5,
            linewidth=1, label="best edges",
        )  # fmt: skip
        axes.plot(found.size, found.share, marker="*", markersize=11, color=own, markeredgecolor="black",
                  markeredgewidth=0.6, linestyle="", label=f"the circuit: {found.n_edges} edges", zorder=5)  # fmt: skip
        if "random" in found.data:
            for place, (among, values) in enumerate(
                zip(found.random["among"].values, found.random.values, strict=True)
            ):
                low, high = np.percentile(values, [2.5, 97.5])
                at = found.size * 1.12 ** (place - 1)  # side by side
                axes.errorbar(
                    at, values.mean(), yerr=[[values.mean() - low], [high - values.mean()]], color=_GREY[among],
                    marker="osD"[place], markersize=3, linewidth=1, linestyle="", label=f"random, {_RANDOM[among]}",
                )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(as_percent))
        axes.set_xlabel("edges kept, of all in the model (log axis)")
        axes.set_ylabel("share of the edit's effect")
        sns.despine(ax=axes)
        drawn.legend(*axes.get_legend_handles_labels())
        drawn.headline(_headline(found))
    return drawn.figure


def _headline(found: EditCircuit) -> str:
    one = found.probes[0]
    asked = f"{one.old} → {one.new}" if len(found.probes) == 1 else f"{len(found.probes)} probes"
    share = shown_number(100 * found.size)
    return f"{found.info['edit']}, {asked}: {found.n_edges} edges ({share}%) carry {100 * found.share:.0f}%"
