"""The figure of what changed columns say: Hit@n of the new object before and after."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from edit.location.readout import STATES, ColumnReadout
from locate.errors import LocateError
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet

# Before and after stand apart by so much, in units of a method's place.
_APART = 0.26


def plot_column_readout(
    found: ColumnReadout | Mapping[str, ColumnReadout],
    *,
    first: Sequence[int] = (1, 10, 50),
    confidence: float = 0.95,
    **options: Unpack[PlotOptions],
) -> Figure:
    """A panel for each n: Hit@n before (open) and after the edit (filled), with intervals over facts.

    Args:
        found: one, or several by name.
        first: the n.
        confidence: of the intervals.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: no readout, more than can be told apart, or no n.

    >>> figure = edit.column_readout(model, update, [request]).plot(first=[10])
    """
    named = found if isinstance(found, Mapping) else {str(found.info["method"]): found}
    if not 1 <= len(named) <= len(STYLES) or not first:
        raise LocateError(f"plot_column_readout: give 1 to {len(STYLES)} readouts and some n, found {len(named)}.")
    n_panels = len(first)
    with sheet(
        options, "plot_column_readout", width=max(3.5, 0.9 + 1.7 * n_panels), height=2.4, panels=n_panels
    ) as drawn:
        panels = drawn.panels(1, n_panels, sharey=True)
        for axes, n in zip(panels, first, strict=True):
            for place, ((name, one), (colour, marker)) in enumerate(zip(named.items(), STYLES, strict=False)):
                del name
                _draw(axes, one.rates([n], confidence=confidence).iloc[0].to_dict(), place, colour, marker)
            axes.set_title(f"Hit@{n}")
            axes.set_xticks(range(len(named)), list(named), rotation=30, ha="right", parse_math=False)
            axes.set_xlim(-0.6, len(named) - 0.4)
            sns.despine(ax=axes)
        panels[0].set_ylim(-0.04, 1.04)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[0].set_ylabel("facts")
        grey = {"color": "0.3", "marker": "o", "linewidth": 0, "markersize": 4}
        handles = [
            Line2D([], [], markerfacecolor="white" if state == "before" else "0.3", label=f"{state} the edit", **grey)
            for state in STATES
        ]
        drawn.legend(handles)
        drawn.headline(_headline(list(named.values())))
    return drawn.figure


def _draw(axes: Axes, rates: Mapping[str, float], place: int, colour: str, marker: str) -> None:
    at = [place + (index - 0.5) * _APART for index in range(len(STATES))]
    values = [rates[state] for state in STATES]
    axes.plot(at, values, color=colour, linewidth=0.8, alpha=0.5)
    for x, state, value in zip(at, STATES, values, strict=True):
        if not np.isnan(rates[f"{state} low"]):
            axes.plot([x, x], [rates[f"{state} low"], rates[f"{state} high"]], color=colour, linewidth=1)
        fill = "white" if state == "before" else colour
        axes.plot(x, value, marker=marker, color=colour, markerfacecolor=fill, markersize=4, linewidth=0)


def _headline(found: Sequence[ColumnReadout]) -> str:
    columns, facts = ({one.data.sizes[name] for one in found} for name in ("column", "fact"))
    models = sorted({one.info["model"] for one in found})
    said = f"the new object among the first n tokens of the {columns.pop()} most changed columns"
    return f"{', '.join(models)}: {said}" + (f", {facts.pop()} facts" if len(facts) == 1 else "")
