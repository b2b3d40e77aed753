"""Figures of a study of layers: edits above, what locating says below, and how the two go together."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edit.location.layer_study import CORRELATED, LayerStudy
from locate.contrast.correlation import WAYS
from locate.figures.lines import STYLES, draw_lines
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet

_SHOWN = ("rewrite", "paraphrase rewrite", "neighbourhood")
_TITLES = {
    "rewrite": "rewrite", "paraphrase rewrite": "paraphrases", "neighbourhood": "neighbours kept", "score": "score",
}  # fmt: skip
# Of a legend's entry, in inches.
_ENTRY = 1.35


def plot_layer_choice(study: LayerStudy, **options: Unpack[PlotOptions]) -> Figure:
    """What edits at each layer do, and below it what each way of locating says of the layer, on one axis of layers.

    Above, means over facts with their intervals: how much of what was to gain edits gain on prompts and paraphrases,
    the share of neighbours that are kept, and the harmonic mean of successes. Below, mean scores as shares of each
    way's largest. The best layer is dashed.

    Args:
        study: from ``edit.layer_choice``.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_layer_choice(study)
    >>> len(figure.axes)
    2
    """
    with sheet(options, "plot_layer_choice", width=4.6, height=5.0, panels=2) as drawn:
        upper, lower = drawn.panels(2, 1, sharex=True)
        _edits(upper, study)
        _scores(lower, study)
        for axes in (upper, lower):
            axes.axvline(study.best().layer, color="0.35", linewidth=0.8, linestyle=(0, (3, 2)))
            columns = max(1, int(drawn.width / _ENTRY))
            handles, labels = axes.get_legend_handles_labels()
            if legend := axes.get_legend():
                legend.remove()
            axes.legend(
                handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False,
                columnspacing=1.0, handlelength=1.6, handletextpad=0.5,
            )  # fmt: skip
        upper.set_xlabel("")
        facts = study.data.sizes["fact"]
        drawn.headline(
            f"{study.info['model']}, {facts} fact{'s' * (facts != 1)}, each edited alone by {study.info['method']} at "
            f"{len(study.layers)} layers, best at layer {study.best().layer}",
        )
    return drawn.figure


def _edits(axes: Axes, study: LayerStudy) -> None:
    table: Any = study.table().reset_index()
    shown = [name for name in (*_SHOWN, "score") if table[name].notna().any()]
    parts = []
    for name in shown:
        bounds = {of: table[f"{name} {of}"] if f"{name} {of}" in table else table[name] for of in ("low", "high")}
        parts.append(pd.DataFrame({"layer": table["layer"], "value": table[name], "name": _TITLES[name], **bounds}))
    styles = {_TITLES[name]: STYLES[index] for index, name in enumerate((*_SHOWN, "score")) if name in shown}
    draw_lines(axes, pd.concat(parts, ignore_index=True), "value", "name", styles)
    axes.set_ylabel(f"edits by {study.info['method']}")
    axes.set_ylim(top=1.03)


def _scores(axes: Axes, study: LayerStudy) -> None:
    parts, styles = [], {}
    for index, way in enumerate(str(one) for one in study.data["way"].values):
        own = study.data["score"].sel(way=way)
        mean = own.mean("fact")
        if not mean.notnull().any() or not (size := float(np.abs(mean).max())):
            continue
        parts.append(pd.DataFrame({"layer": mean["layer"].values, "value": mean.values / size, "way": way}))
        styles[way] = STYLES[index]
    if parts:
        draw_lines(axes, pd.concat(parts, ignore_index=True).dropna(), "value", "way", styles)
    axes.set_ylabel("locating, scaled")


def plot_correlations(
    study: LayerStudy,
    *,
    outcomes: Sequence[str] = CORRELATED,
    resamples: int = 500,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Rank correlations of every way of locating with what edits do, a panel for each outcome, with intervals.

    Args:
        study: from ``edit.layer_choice``.
        outcomes: the panels.
        resamples: of the bootstrap over facts.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: there is no such outcome.

    >>> figure = plot_correlations(study, outcomes=["rewrite"], resamples=10)
    """
    table = study.correlations(outcomes, resamples=resamples)
    ways = list(dict.fromkeys(table["way"]))
    n = len(outcomes)

    def beside(width: float) -> bool:
        return width >= 1.2 + 1.1 * n

    def height(width: float) -> float:
        return 0.9 + 0.34 * len(ways) * (1 if beside(width) else n) + (0 if beside(width) else 0.25 * n)

    with sheet(options, "plot_correlations", width=max(3.5, 1.5 + 1.8 * n), height=height, panels=n) as drawn:
        panels = drawn.panels(*((1, n) if beside(drawn.width) else (n, 1)), sharex=True, sharey=True)
        for axes, outcome in zip(panels, outcomes, strict=True):
            axes.axvline(0, color="black", linewidth=0.5)
            for index, (over, (colour, marker)) in enumerate(zip(WAYS, STYLES, strict=False)):
                own = table.query("outcome == @outcome and over == @over")
                at = np.arange(len(ways)) + 0.22 * (index - 1)
                axes.hlines(at, own["low"], own["high"], color=colour, linewidth=1)
                axes.plot(own["rho"], at, color=colour, marker=marker, markersize=3.5, linewidth=0, label=over)
            axes.set_title(_TITLES.get(outcome, outcome))
            axes.set_xlim(-1.05, 1.05)
            axes.set_xlabel("Spearman's ρ" if beside(drawn.width) or axes is panels[-1] else "")
            axes.set_ylim(len(ways) - 0.5, -0.5)
            sns.despine(ax=axes)
        panels[0].set_yticks(range(len(ways)), ways)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels)
        told = f"rank correlations of what locating says with what edits by {study.info['method']} do"
        drawn.headline(f"{study.info['model']}, {study.data.sizes['fact']} facts: {told}")
    return drawn.figure
