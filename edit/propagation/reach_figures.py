"""Figures of an edit's reach: what is foretold of each probe, and how well scores told of many."""

from textwrap import fill, shorten
from typing import Any, Unpack

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edit.propagation.predicted import ReachPrediction
from edit.propagation.reach import ReachStudy
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import WIDE, drawable, label_rows

_SHOWN = {"answered": "answered", "margin": "logit o* − o after the edit", "share": "share of the edit's effect"}
_COLOUR = "#0072B2"
# Lines of one score stand this far apart, where scores are one apart.
_APART = 0.22
# So many panels stand beside each other where there is no room for all.
_NARROW = 3


def plot_reach_prediction(found: ReachPrediction, **options: Unpack[PlotOptions]) -> Figure:
    """Every score of every probe, a panel for each score: what stands further right should be reached more.

    Args:
        found: from ``edit.predict_reach``.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_reach_prediction(foreseen)
    """
    names = [str(one) for one in found.data["feature"].values if found.score(str(one)).notnull().any()]
    places = np.arange(len(found.probes))

    def across(width: float) -> int:
        return len(names) if width >= WIDE else _NARROW

    def height(width: float) -> float:
        return 0.5 + (1.0 + 0.22 * len(places)) * -(-len(names) // across(width))

    with sheet(options, "plot_reach_prediction", width=7.0, height=height, panels=len(names)) as drawn:
        beside = across(drawn.width)
        panels = drawn.grid(len(names), beside, sharey=True)
        for axes, name in zip(panels, names, strict=True):
            axes.barh(places, found.score(name), color=_COLOUR, height=0.6)
            axes.axvline(0, color="black", linewidth=0.5)
            axes.xaxis.set_major_locator(MaxNLocator(2))
            axes.set_title(fill(name, 12), fontsize=drawn.small)
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(len(places) - 0.5, -0.5)
            sns.despine(ax=axes, left=True)
        texts = [
            f"{shorten(row['text'], 40, placeholder=' …')} [{row['new']}]" for row in found.probes.to_dict("records")
        ]
        labels = [drawable(one) for one in (texts if drawn.wide else found.probes["new"])]
        for axes in panels[::beside]:
            label_rows(axes, labels)
        drawn.headline(f"before the edit: {found.info['request']}")
    return drawn.figure


def plot_reach_study(
    found: ReachStudy, *, confidence: float = 0.95, seed: int = 0, **options: Unpack[PlotOptions]
) -> Figure:
    """Spearman's correlation of every score with every outcome, with intervals that draw facts.

    Args:
        found: from ``edit.reuse_study`` or ``edit.judge_reach``.
        confidence: of the intervals.
        seed: of the bootstrap.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_reach_study(studied)
    """
    table: Any = found.correlations(confidence=confidence, seed=seed)
    names = list(dict.fromkeys(table["score"]))
    with sheet(options, "plot_reach_study", width=3.5, height=1.5 + 0.3 * len(names)) as drawn:
        (axes,) = drawn.panels()
        for place, ((what, label), (colour, marker)) in enumerate(zip(_SHOWN.items(), STYLES, strict=False)):
            own = table[table["outcome"] == what].set_index("score").loc[names]
            at = np.arange(len(names)) + _APART * (place - 1)
            axes.hlines(at, own["low"], own["high"], color=colour, linewidth=1)
            axes.plot(own["value"], at, marker, color=colour, markersize=4, label=label)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set(xlim=(-1.05, 1.05), ylim=(len(names) - 0.5, -0.5), xlabel="rank correlation")
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.tick_params(axis="y", length=0)
        drawn.legend(*axes.get_legend_handles_labels())
        sns.despine(ax=axes)
        n = int(table["probes"].max())
        drawn.headline(f"{found.info['method']}: {n} probes of {found.info['facts']} facts")
    return drawn.figure
