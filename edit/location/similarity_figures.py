"""The figure of relative similarity: RSim over how many layers are considered."""

from typing import Unpack

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edit.location.similarity import LocalisationSimilarity
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet

_NAMES = {"paraphrases": "paraphrases of a fact", "hops": "a fact and the hops of its chain"}
# The published finding: below this once more than five layers are considered.
_PUBLISHED, _FIVE = 0.6, 5
_SHADE = 0.2


def plot_localisation_similarity(found: LocalisationSimilarity, **options: Unpack[PlotOptions]) -> Figure:
    """RSim of each group over k with its interval over facts, and Sim_all of unrelated facts, on which it is based.

    The level that the survey found RSim to fall below past five layers is dotted.

    Args:
        found: from ``edit.localisation_similarity``.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_localisation_similarity(similarity)
    """
    ks = found.data["k"].values
    with sheet(options, "plot_localisation_similarity", width=3.6, height=2.9) as drawn:
        (axes,) = drawn.panels()
        for (group, label), (colour, marker) in zip(_NAMES.items(), STYLES, strict=False):
            own = found.data.sel(group=group)
            if np.isnan(own["rsim"]).all():
                continue
            axes.fill_between(ks, own["rsim_low"], own["rsim_high"], color=colour, alpha=_SHADE, linewidth=0)
            n = found.info["facts"][group]
            axes.plot(
                ks, own["rsim"], color=colour, marker=marker, markersize=3.5, linewidth=1, label=f"{label} ({n} facts)"
            )  # fmt: skip
        axes.plot(ks, found.data["unrelated"], color="0.5", linewidth=1, linestyle="--", label="unrelated facts (Sim)")
        axes.plot([_FIVE, max(_FIVE, ks[-1])], [_PUBLISHED] * 2, color="black", linewidth=0.8, linestyle=":",
                  label="published: below, past five layers")  # fmt: skip
        axes.set(xlabel="layers considered (k)", ylabel="RSim", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        drawn.legend(*axes.get_legend_handles_labels())
        sns.despine(ax=axes)
        drawn.headline(found.info["model"])
    return drawn.figure
