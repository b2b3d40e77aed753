"""The figure of relative similarity: RSim over how many layers are considered."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edit.location.similarity import LocalisationSimilarity
from locate.figures.lines import STYLES
from locate.figures.style import STYLE, add_headline

_NAMES = {"paraphrases": "paraphrases of a fact", "hops": "a fact and the hops of its chain"}
# The published finding: below this once more than five layers are considered.
_PUBLISHED, _FIVE = 0.6, 5
_SHADE = 0.2


def plot_localisation_similarity(
    found: LocalisationSimilarity, *, figsize: tuple[float, float] | None = None
) -> Figure:
    """RSim of each group over k with its interval over facts, and Sim_all of unrelated facts, on which it is based.

    The level that the survey found RSim to fall below past five layers is dotted.

    Args:
        found: from ``edit.localisation_similarity``.
        figsize: width and height in inches.

    >>> figure = plot_localisation_similarity(similarity)
    """
    ks = found.data["k"].values
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (3.6, 2.9), layout="constrained")
        axes = figure.subplots()
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
        figure.legend(loc="outside lower center", ncols=1 if figure.get_figwidth() < 5 else 2, frameon=False)
        sns.despine(ax=axes)
        add_headline(figure, found.info["model"])
    plt.close(figure)
    return figure
