"""The figure of what sets of neurons do: each fact's own set beside its random ones."""

from typing import Unpack

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import fitted
from locate.neurons.effects import NeuronEffects

_OWN, _RANDOM, _LINE = "#0173b2", "0.45", "0.8"
_APART = 0.25
# Of a panel beside others, in inches.
_PANEL = 2.2
_SHOWN = {"fact": "own prompt", "paraphrases": "paraphrases", "unrelated": "unrelated"}


def plot_neuron_effects(
    effects: NeuronEffects, *, confidence: float = 0.95, seed: int = 0, **options: Unpack[PlotOptions]
) -> Figure:
    """A panel for each factor: of each kind of prompt, every fact's random sets (their mean) joined to its own set.

    Large marks are means over facts with their bootstrap intervals; p is of the signed-rank test of the pairs.

    Args:
        effects: what ``verify_neurons`` gave, in the metric in view.
        confidence: of the intervals.
        seed: of the bootstrap.
        options: what every figure takes, ``PlotOptions``.

    >>> effects = locate.verify_neurons(model, facts[:3], neurons.top(5), random=2, progress=False)
    >>> figure = locate.plots.plot_neuron_effects(effects.of("probability"))
    """
    table, told = effects.to_dataframe(), effects.summary(confidence=confidence, seed=seed)
    factors = [float(one) for one in effects.data["factor"].values]
    n = len(factors)

    def beside(width: float) -> bool:
        return width >= _PANEL * n

    def height(width: float) -> float:
        return 2.7 if beside(width) else 0.7 + 2.0 * n

    with sheet(options, "plot_neuron_effects", width=1.0 + 2.1 * n, height=height, panels=n) as drawn:
        panels = drawn.panels(*((1, n) if beside(drawn.width) else (n, 1)), sharey=True)
        for axes, factor in zip(panels, factors, strict=True):
            _draw(axes, table.query("factor == @factor"), told.query("factor == @factor"), drawn.small)
            axes.set_title(f"{_verb(factor)} (×{factor:g})")
        for axes in panels[:: n if beside(drawn.width) else 1]:
            axes.set_ylabel(fitted(f"change of {effects.info['metrics'][effects.metric]}", 1.6), parse_math=False)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels)
        facts = len(effects.data["fact"])
        drawn.headline(f"{effects.info['model']}, {facts} fact{'s' * (facts > 1)}, neurons of each")
    return drawn.figure


def _draw(axes: Axes, table: pd.DataFrame, told: pd.DataFrame, size: float) -> None:
    axes.axhline(0, color="black", linewidth=0.5)
    for place, row in enumerate(told.to_dict("records")):
        own = table[table["on"] == row["on"]]
        ends = np.stack([own["random"], own["effect"]])
        axes.plot(place + np.array([-_APART, _APART]), ends, color=_LINE, linewidth=0.6, zorder=1)
        for name, side, colour, marker in (("random", -_APART, _RANDOM, "s"), ("effect", _APART, _OWN, "o")):
            mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
            spread = np.nan_to_num([[mean - low], [high - mean]])
            axes.errorbar(
                place + side, mean, spread, color=colour, marker=marker, markersize=4, linewidth=1.2, zorder=3,
                label={"random": "random sets", "effect": "the fact's neurons"}[name] if place == 0 else None,
            )  # fmt: skip
        if np.isfinite(row["wilcoxon"]):
            p = f"p {_shown(row['wilcoxon'])}"
            axes.annotate(p, (place, 1), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=size)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(told)), [_SHOWN[on] for on in told["on"]])
    axes.set_xlim(-0.5, len(told) - 0.5)
    sns.despine(ax=axes)


def _shown(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-3 else f"< 10$^{{{int(np.ceil(np.log10(p)))}}}$"


def _verb(factor: float) -> str:
    return "suppressed" if abs(factor) < 1 else "amplified" if factor > 1 else "scaled"
