"""Points of groups, with the mean of each and its interval, told apart with any colour vision and in print."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from locate.errors import LocateError
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import drawable, fitted

# In inches: a group's row, and what stands above and below them.
_ROW, _AROUND = 0.24, 1.0
# Of a mean's marker, in points, and how far several stand apart, in rows.
_SIZE, _APART = 4.0, 0.5
# Of a single point, in points, and how far it may stand from its row.
_POINT, _JITTER = 2.8, 0.16


def groups_figure(
    table: pd.DataFrame,
    *,
    value: str,
    by: str,
    order: Sequence[str] | None = None,
    hue: str | None = None,
    levels: Sequence[float] = (0.0,),
    unit: str,
    headline: str = "",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    **options: Unpack[PlotOptions],
) -> Figure:
    """A row for each group: every point, jittered, and their mean with its bootstrap interval.

    A group of a single point has no interval. The rows say how many points they are of.

    Args:
        table: a row for each point.
        value: the column that is drawn.
        by: the column of groups, such as a probe's role.
        order: of the groups, from above; by default as they come. Those without points are left out.
        hue: a column that tells apart points of a group, such as the method.
        levels: where thin lines stand.
        unit: of the values.
        headline: over all of it.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap and the jitter.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: a column that there is not, no points, or more of ``hue`` than can be told apart.

    >>> import pandas as pd
    >>> probes = pd.DataFrame({"role": ["edit", "neighbour", "neighbour"], "share": [1.0, 0.1, -0.1]})
    >>> figure = groups_figure(probes, value="share", by="role", unit="share of the edit's effect", resamples=50)
    """
    if missing := [column for column in (value, by, hue) if column is not None and column not in table]:
        raise LocateError(f"groups_figure: the table has {list(table)}; {missing[0]!r} is not among them.")
    table = table.dropna(subset=[value])
    present = list(dict.fromkeys(table[by]))
    shown = present if order is None else [group for group in order if group in present]
    kinds = [None] if hue is None else list(dict.fromkeys(table[hue]))
    if not shown or len(kinds) > len(STYLES):
        raise LocateError(
            f"groups_figure: needs points, and 1 to {len(STYLES)} of {hue}; found {len(shown)} groups, {len(kinds)}."
        )
    height = _AROUND + (_ROW + 0.1 * (len(kinds) - 1)) * len(shown) + 0.16 * (hue is not None)
    with sheet(options, "groups_figure", width=3.3, height=height) as drawn:
        (axes,) = drawn.panels()
        for level in levels:
            axes.axvline(level, color="0.6", linewidth=0.6, zorder=0)
        apart, random = _APART * (len(kinds) > 1), np.random.default_rng(seed)
        for at, (kind, (colour, _)) in enumerate(zip(kinds, STYLES, strict=False)):
            own: Any = table if kind is None else table[table[hue] == kind]
            own = own[own[by].isin(shown)]
            rows = own[by].map(shown.index).to_numpy() + apart * (at / max(len(kinds) - 1, 1) - 0.5)
            jitter = random.uniform(-_JITTER, _JITTER, len(own)) / len(kinds)
            axes.scatter(own[value], rows + jitter, s=_POINT**2, color=colour, alpha=0.45, linewidths=0)
        styles = [STYLES[0]] * len(shown) if hue is None else STYLES[: len(kinds)]
        told: dict[str, Any] = {
            "hue": by if hue is None else hue, "hue_order": shown if hue is None else kinds, "dodge": apart,
            "palette": [colour for colour, _ in styles], "markers": [marker for _, marker in styles],
        }  # fmt: skip
        sns.pointplot(
            data=table, x=value, y=by, order=shown, orient="y", ax=axes, legend=False, linestyle="none", seed=seed,
            errorbar=("ci", 100 * confidence), n_boot=resamples, err_kws={"linewidth": 1.2, "color": "black"},
            markersize=_SIZE, markeredgecolor="black", markeredgewidth=0.5, zorder=5, **told,
        )  # fmt: skip
        counts = table[by].value_counts()
        labels = [f"{drawable(str(group))} ({counts[group]})" for group in shown]
        axes.set_yticks(range(len(shown)), labels, parse_math=False)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set(ylabel="", xlabel="")
        axes.set_xlabel(fitted(unit, 0.7 * drawn.width), parse_math=False)
        sns.despine(ax=axes, left=True)
        if hue is not None:
            handles = [
                Line2D([], [], color=colour, marker=marker, markersize=_SIZE, lw=1, label=str(kind))
                for kind, (colour, marker) in zip(kinds, STYLES, strict=False)
            ]
            drawn.legend(handles)
        drawn.headline(headline)
    return drawn.figure
