"""The figure of faithfulness curves: what share of the answer circuits carry, by their size."""

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from locate.circuits.faithfulness import Faithfulness
from locate.errors import LocateError
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import as_percent, shown_number

_BY_CHANCE, _RANDOM = "random circuits", "0.6"
_SHADE = 0.2


def plot_faithfulness(
    curves: Faithfulness | Mapping[str, Faithfulness],
    *,
    confidence: float = 0.95,
    **options: Unpack[PlotOptions],
) -> Figure:
    """f over the share of edges that are kept, each curve with its interval over pairs shaded.

    Random circuits are grey, from the lowest to the highest of their samples, with their mean dashed. The legend says
    CMD (less is better) and CPR (more is better) of curves that reach all edges.

    Args:
        curves: one, or several by name.
        confidence: of the intervals.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: no curve, or more than can be told apart.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> curve = circuit.faithfulness(model, pairs, sizes=[20, 1.0], random=2, progress=False)
    >>> figure = locate.plots.plot_faithfulness({"made up": curve, "the same": curve})
    """
    named = curves if isinstance(curves, Mapping) else {str(curves.info.get("method") or "circuit"): curves}
    if not 1 <= len(named) <= len(STYLES):
        raise LocateError(f"plot_faithfulness: give 1 to {len(STYLES)} curves, found {len(named)}.")
    rows = len(named) + any("random" in one.data for one in named.values())
    with sheet(options, "plot_faithfulness", width=3.5, height=2.5 + 0.16 * rows) as drawn:
        (axes,) = drawn.panels()
        for bound in (0, 1):
            axes.axhline(bound, color="black", linewidth=0.5)
        for one in named.values():
            _draw_random(axes, one)
        for (name, one), (colour, marker) in zip(named.items(), STYLES, strict=False):
            shares, label = _shares(one), f"{name}{_areas(one)}"
            axes.fill_between(shares, *one.interval(confidence), color=colour, alpha=_SHADE, linewidth=0)
            axes.plot(shares, one.curve, color=colour, marker=marker, markersize=3.5, linewidth=1, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(as_percent))
        axes.set_xlabel("edges kept, on a logarithmic axis")
        axes.set_ylabel("faithfulness")
        sns.despine(ax=axes)
        handles, labels = axes.get_legend_handles_labels()
        own = dict(zip(labels, handles, strict=True))  # random circuits once, and last
        order = sorted(own, key=_BY_CHANCE.__eq__)
        drawn.legend([own[label] for label in order], order)
        drawn.headline(_headline(list(named.values())))
    return drawn.figure


def _draw_random(axes: Axes, curve: Faithfulness) -> None:
    if "random" not in curve.data:
        return
    shares, by_chance = _shares(curve), curve.random
    low, high, mean = (getattr(by_chance, of)("sample") for of in ("min", "max", "mean"))
    axes.fill_between(shares, low, high, color=_RANDOM, alpha=_SHADE, linewidth=0)
    axes.plot(shares, mean, color=_RANDOM, linewidth=1, linestyle="--", label=_BY_CHANCE)


def _shares(curve: Faithfulness) -> np.ndarray:
    return curve.data["size"].values / curve.info["n_possible"]


def _areas(curve: Faithfulness) -> str:
    reaches_all = _shares(curve)[-1] == 1
    return f": CMD {shown_number(curve.cmd)}, CPR {shown_number(curve.cpr)}" if reaches_all else ""


def _headline(curves: list[Faithfulness]) -> str:
    """What all of them have in common."""
    told = [{str(one.info[name]) for one in curves if one.info.get(name)} for name in ("model", "metric")]
    pairs = {one.data.sizes["pair"] for one in curves}
    common = [next(iter(one)) for one in told if len(one) == 1]
    return ", ".join([*common, *([f"{pairs.pop()} pairs"] if len(pairs) == 1 else [])])
