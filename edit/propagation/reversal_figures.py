"""The figure of what is left of an edit as singular directions are dropped."""

from typing import Unpack

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edit.propagation.reversal import BLIND, DROPPED, KEPT, Reversal
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import WIDE, as_percent

_TITLES = {
    DROPPED: "ΔW without its k largest",
    KEPT: "only the k largest of ΔW",
    BLIND: "edited W without its own k largest",
}


def plot_reversal(found: Reversal, **options: Unpack[PlotOptions]) -> Figure:
    """The share of the edit that is undone by the number of directions, and both answers' log-probabilities.

    Lines are means over probes, and thin ones single probes. In the second panel the dashed lines are the base model's,
    and the dotted ones the edited model's.

    Args:
        found: from ``edit.reversibility``.
        options: what every figure takes, ``PlotOptions``; where it is narrow, the panels stand below each other.

    >>> figure = plot_reversal(edit.reversibility(model, update, request, counts=[1, 2]))
    """
    undone, k = found.undone(), found.data["k"].values

    def height(width: float) -> float:
        return 2.9 if width >= WIDE else 5.4

    with sheet(options, "plot_reversal", width=7.0, height=height, panels=2) as drawn:
        left, right = drawn.panels(*((1, 2) if drawn.wide else (2, 1)))
        for way, (colour, marker) in zip(found.data["way"].values, STYLES, strict=False):
            own = undone.sel(way=way).values
            if len(own) > 1:
                left.plot(k, own.T, color=colour, linewidth=0.5, alpha=0.35)
            left.plot(k, np.nanmean(own, 0), color=colour, marker=marker, markersize=3.5, label=_TITLES[str(way)])
        for bound in (0, 1):
            left.axhline(bound, color="black", linewidth=0.5)
        # Where a matrix loses its own directions, it may lose much more than the edit.
        least, most = float(np.nanmin(undone)), float(np.nanmax(undone))
        left.set_ylim(max(-1.0, min(-0.1, least)), min(2.0, max(1.15, most)))
        left.set_ylabel("share of the effect undone" + (" (axis cut)" if least < -1 or most > 2 else ""))
        left.yaxis.set_major_formatter(FuncFormatter(as_percent))
        left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        _answers(right, found)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(k, [str(one) for one in k], minor=False)
            axes.set_xlabel("singular directions k\nof each matrix (log₂ axis)")
            sns.despine(ax=axes)
        rank = f"ΔW of rank {found.rank}" + (": k = 1 is all of it" if found.rank == 1 else "")
        drawn.headline(f"{found.info['method']}, {rank}")
    return drawn.figure


def _answers(axes: Axes, found: Reversal) -> None:
    way = str(found.data["way"].values[0])
    mean = found.data["value"].sel(way=way).mean("probe")
    ends = found.data["ends"].mean("probe")
    for name, (colour, marker) in zip(("new", "old"), (STYLES[1], STYLES[0]), strict=True):
        what = f"logprob_{name}"
        label = f"{'new' if name == 'new' else 'old'} answer"
        axes.plot(mean["k"], mean.sel(answer=what), color=colour, marker=marker, markersize=3.5, label=label)
        for side, dash in (("base", "--"), ("edited", ":")):
            axes.axhline(float(ends.sel(side=side, answer=what)), color=colour, linewidth=0.8, linestyle=dash)
    axes.set_ylabel("log-probability [nat]")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles, labels, title=_TITLES[way], frameon=False, loc="lower left",
        bbox_to_anchor=(0, 1), alignment="left",
    )  # fmt: skip
