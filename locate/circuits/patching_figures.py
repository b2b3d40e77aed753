"""The figure of patched edges: what cutting each of them does to the answer."""

from typing import Unpack

import numpy as np
from matplotlib.figure import Figure

from locate.circuits.patching import EdgeEffects
from locate.errors import LocateError
from locate.figures.layered import SIGNS
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import fitted, metric_label, shown_number

# A row's height and what stands around them, in inches.
_ROW, _AROUND = 0.145, 1.25


def plot_edge_effects(effects: EdgeEffects, *, n: int = 30, **options: Unpack[PlotOptions]) -> Figure:
    """The edges of the largest effects as bars from zero, with a standard error over pairs where there are several.

    Args:
        effects: of any number of edges.
        n: how many to show, the largest first.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: fewer than one edge was asked for.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> best = locate.find_circuit(model, pairs, method="eap", progress=False).top(12)
    >>> figure = locate.patch_edges(model, pairs, edges=best, progress=False).plot()
    """
    if n < 1:
        raise LocateError(f"plot_edge_effects: n must be 1 or more, found {n}.")
    table = effects.to_dataframe().sort_values("effect", key=abs, ascending=False, kind="stable").head(n)
    names = [f"{writer} → {reader}" for writer, reader in zip(table["writer"], table["reader"], strict=True)]
    values, errors = table["effect"].to_numpy(), table["standard_error"].to_numpy()
    with sheet(options, "plot_edge_effects", width=3.5, height=_AROUND + _ROW * len(table)) as drawn:
        (axes,) = drawn.panels()
        rows = np.arange(len(table))
        axes.barh(rows, values, height=0.7, color=[SIGNS[bool(value < 0)] for value in values], linewidth=0)
        if not np.isnan(errors).any():
            axes.errorbar(values, rows, xerr=errors, fmt="none", ecolor="0.2", elinewidth=0.7, capsize=1.5)
        axes.axvline(0, color="0.3", linewidth=0.6)
        axes.set_yticks(rows, names, parse_math=False)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        info = effects.info
        unit = metric_label(info["metric"], {**info, "metrics": {info["metric"]: info["metric_label"]}}, info["answer"])
        label = f"change of {unit} where the edge is cut"
        axes.set_xlabel(fitted(label, 0.6 * drawn.width), parse_math=False)
        every, pairs = effects.data.sizes["edge"], effects.info["pairs"]
        shown = f"the {len(table)} largest of {every} edges" if len(table) < every else _many(every, "edge")
        ends = f"{shown_number(effects.clean)} clean, {shown_number(effects.corrupted)} corrupted"
        drawn.headline(f"{effects.info['model']}, {shown}, {_many(pairs, 'pair')}: {ends}")
    return drawn.figure


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
