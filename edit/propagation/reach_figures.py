"""Figures of an edit's reach: what is foretold of each probe, and how well scores told of many."""

from textwrap import fill, shorten
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edit.propagation.predicted import ReachPrediction
from edit.propagation.reach import ReachStudy
from locate.figures.lines import STYLES
from locate.figures.style import STYLE, add_headline, drawable

_SHOWN = {"answered": "answered", "margin": "logit o* − o after the edit", "share": "share of the edit's effect"}
_COLOUR = "#0072B2"
# Lines of one score stand this far apart, where scores are one apart.
_APART = 0.22
# From how many inches on all panels stand in a row; else so many.
_WIDE, _NARROW = 5, 4


def plot_reach_prediction(found: ReachPrediction, *, figsize: tuple[float, float] | None = None) -> Figure:
    """Every score of every probe, a panel for each score: what stands further right should be reached more.

    Args:
        found: from ``edit.predict_reach``.
        figsize: in inches.

    >>> figure = plot_reach_prediction(foreseen)
    """
    names = [str(one) for one in found.data["feature"].values if found.score(str(one)).notnull().any()]
    places = np.arange(len(found.probes))
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (7.0, 1.5 + 0.22 * len(places)), layout="constrained")
        wide = figure.get_figwidth() > _WIDE
        across = len(names) if wide else _NARROW
        panels = figure.subplots(-(-len(names) // across), across, sharey=True, squeeze=False)
        for axes, name in zip(panels.flat, names, strict=False):
            axes.barh(places, found.score(name), color=_COLOUR, height=0.6)
            axes.axvline(0, color="black", linewidth=0.5)
            axes.xaxis.set_major_locator(MaxNLocator(2))
            axes.set_title(fill(name, 12), fontsize=7)
            axes.tick_params(axis="y", length=0, labelsize=6.5)
            sns.despine(ax=axes, left=True)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        texts = [
            f"{shorten(row['text'], 40, placeholder=' …')} [{row['new']}]" for row in found.probes.to_dict("records")
        ]
        labels = [drawable(one) for one in (texts if wide else found.probes["new"])]
        panels[0, 0].set_yticks(places, labels, parse_math=False, fontsize=6.5)
        panels[0, 0].invert_yaxis()
        add_headline(figure, f"before the edit: {found.info['request']}")
    plt.close(figure)
    return figure


def plot_reach_study(
    found: ReachStudy, *, confidence: float = 0.95, seed: int = 0, figsize: tuple[float, float] | None = None
) -> Figure:
    """Spearman's correlation of every score with every outcome, with intervals that draw facts.

    Args:
        found: from ``edit.reuse_study`` or ``edit.judge_reach``.
        confidence: of the intervals.
        seed: of the bootstrap.
        figsize: in inches.

    >>> figure = plot_reach_study(studied)
    """
    table: Any = found.correlations(confidence=confidence, seed=seed)
    names = list(dict.fromkeys(table["score"]))
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (3.5, 1.5 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        for place, ((what, label), (colour, marker)) in enumerate(zip(_SHOWN.items(), STYLES, strict=False)):
            own = table[table["outcome"] == what].set_index("score").loc[names]
            at = np.arange(len(names)) + _APART * (place - 1)
            axes.hlines(at, own["low"], own["high"], color=colour, linewidth=1)
            axes.plot(own["value"], at, marker, color=colour, markersize=4, label=label)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set(xlim=(-1.05, 1.05), ylim=(len(names) - 0.5, -0.5), xlabel="rank correlation")
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=1 if figure.get_figwidth() < 5 else 3, frameon=False)
        sns.despine(ax=axes)
        n = int(table["probes"].max())
        add_headline(figure, f"{found.info['method']}: {n} probes of {found.info['facts']} facts")
    plt.close(figure)
    return figure
