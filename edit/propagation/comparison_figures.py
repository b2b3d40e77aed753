"""The figure of compared propagation: measure by measure, methods beside each other with intervals over facts."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edit.propagation.comparison import PropagationComparison
from locate.errors import LocateError, suggest
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet

# Of one measure's row, what the methods take.
_SPREAD = 0.7


def plot_comparison(
    found: PropagationComparison,
    *,
    measures: Sequence[str] | None = None,
    confidence: float = 0.95,
    **options: Unpack[PlotOptions],
) -> Figure:
    """A row for each measure, in it a mark for each method's mean over facts with its interval.

    Args:
        found: from ``edit.compare_propagation``.
        measures: which rows; by default what reaches each role of probes, and what is answered.
        confidence: of the intervals.
        options: what every figure takes, ``PlotOptions``.

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
    with sheet(options, "plot_comparison", width=5.2, height=0.9 + 0.26 * len(chosen)) as drawn:
        (axes,) = drawn.panels()
        for place, (method, (colour, marker)) in enumerate(zip(found.methods, STYLES, strict=False)):
            _draw(axes, table[method], place, len(found.methods), colour, marker, method)
        axes.set_yticks(range(len(chosen)), [one.removeprefix("flow: ") for one in chosen], parse_math=False)
        axes.set_ylim(len(chosen) - 0.5, -0.5)
        axes.axvline(0, color="0.6", linewidth=0.6, zorder=0)
        axes.set_xlabel("mean over facts, with its interval")
        sns.despine(ax=axes)
        drawn.legend(*axes.get_legend_handles_labels())
        n = found.data.sizes["fact"]
        drawn.headline(f"{found.info['model']}: {found.about}, {n} fact{'s' if n != 1 else ''}")
    return drawn.figure


def _draw(axes: Axes, own: Any, place: int, methods: int, colour: str, marker: str, name: str) -> None:
    at = np.arange(len(own)) + _SPREAD * ((place + 0.5) / methods - 0.5)
    mean, low, high = (own[column].to_numpy(float) for column in ("mean", "low", "high"))
    there = ~np.isnan(low)
    axes.hlines(at[there], low[there], high[there], color=colour, linewidth=1)
    axes.plot(mean, at, color=colour, marker=marker, markersize=4, linewidth=0, label=name)
