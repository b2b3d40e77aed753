"""The figure of compared propagation: measure by measure, methods beside each other with intervals over facts."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edit.propagation.comparison import PropagationComparison
from locate.errors import LocateError, suggest
from locate.figures.lines import STYLES
from locate.figures.style import STYLE, add_headline

# Of one measure's row, what the methods take.
_SPREAD = 0.7


def plot_comparison(
    found: PropagationComparison,
    *,
    measures: Sequence[str] | None = None,
    confidence: float = 0.95,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """A row for each measure, in it a mark for each method's mean over facts with its interval.

    Args:
        found: from ``edit.compare_propagation``.
        measures: which rows; by default what reaches each role of probes, and what is answered.
        confidence: of the intervals.
        figsize: width and height in inches.

    Raises:
        LocateError: there is no such measure, or more methods than can be told apart.

    >>> figure = edit.compare_propagation({"ROME": [followed]}).plot()
    """
    known = found.measures
    chosen = (
        [one for one in known if ": share: " in one or ": answered: " in one] if measures is None else list(measures)
    )
    for one in chosen:
        if one not in known:
            raise LocateError(f"There is no measure {one!r}. {suggest(one, known)}")
    if not chosen or len(found.methods) > len(STYLES):
        raise LocateError(
            f"plot_comparison: give measures, and at most {len(STYLES)} methods; found {len(chosen)} and "
            f"{len(found.methods)}. The measures are {', '.join(known)}."
        )
    table: Any = found.table(confidence=confidence).loc[chosen]
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (5.2, 0.9 + 0.26 * len(chosen)), layout="constrained")
        axes = figure.subplots()
        for place, (method, (colour, marker)) in enumerate(zip(found.methods, STYLES, strict=False)):
            _draw(axes, table[method], place, len(found.methods), colour, marker, method)
        axes.set_yticks(range(len(chosen)), [one.removeprefix("flow: ") for one in chosen], parse_math=False)
        axes.set_ylim(len(chosen) - 0.5, -0.5)
        axes.axvline(0, color="0.6", linewidth=0.6, zorder=0)
        axes.set_xlabel("mean over facts, with its interval")
        sns.despine(ax=axes)
        figure.legend(loc="outside lower center", ncols=min(3, len(found.methods)), frameon=False)
        n = found.data.sizes["fact"]
        add_headline(figure, f"{found.info['model']}: what reaches the answers, {n} fact{'s' if n != 1 else ''}")
    plt.close(figure)
    return figure


def _draw(axes: Axes, own: Any, place: int, methods: int, colour: str, marker: str, name: str) -> None:
    at = np.arange(len(own)) + _SPREAD * ((place + 0.5) / methods - 0.5)
    mean, low, high = (own[column].to_numpy(float) for column in ("mean", "low", "high"))
    there = ~np.isnan(low)
    axes.hlines(at[there], low[there], high[there], color=colour, linewidth=1)
    axes.plot(mean, at, color=colour, marker=marker, markersize=4, linewidth=0, label=name)
