"""A waterfall: what parts add to a number, one after the other, from where it begins to where it ends."""

from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from locate.errors import LocateError
from locate.figures.layered import SIGNS
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import drawable, fitted, shown_number

# In inches: a row, and what stands around them. A bar's height, in rows.
_ROW, _AROUND, _HIGH = 0.16, 0.95, 0.7
_ENDS = "0.45"
# Of the way, where the parts miss the end by more than rounding.
_MISSED = 1e-3


def waterfall_figure(
    parts: pd.DataFrame,
    *,
    start: float,
    end: float,
    names: tuple[str, str] = ("base", "edited"),
    n: int = 12,
    unit: str = "logit difference",
    headline: str = "",
    **options: Unpack[PlotOptions],
) -> Figure:
    """Bars from a running total to the next, in the order that parts have, between a bar for each end.

    The parts of the largest values are shown, the others gathered as one bar; where all together do not reach the end,
    a hatched bar says by how much.

    Args:
        parts: a row for each: ``name`` and ``value``.
        start: the number before any part.
        end: the number that was measured with all of them.
        names: of the two.
        n: how many parts are shown by themselves, at most.
        unit: of all of them.
        headline: over all of it.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: no part, one that is not finite, or fewer than one shown.

    >>> import pandas as pd
    >>> parts = pd.DataFrame({"name": ["m4", "a6.h2"], "value": [3.0, -1.0]})
    >>> figure = waterfall_figure(parts, start=-2.0, end=0.0)
    """
    rows = waterfall(parts, start=start, end=end, n=n)
    ends = [{"name": names[0], "low": 0.0, "value": start}, {"name": names[1], "low": 0.0, "value": end}]
    with sheet(options, "waterfall_figure", width=3.3, height=_AROUND + _ROW * (len(rows) + 2)) as drawn_on:
        (axes,) = drawn_on.panels()
        drawn = [ends[0], *rows.to_dict("records"), ends[1]]
        for row, one in enumerate(drawn):
            value, missed = one["value"], one.get("missed", False)
            colour = _ENDS if one in ends else SIGNS[int(value < 0)]
            look: dict[str, Any] = (
                {"facecolor": "white", "edgecolor": _ENDS, "hatch": "/////"} if missed else {"color": colour}
            )
            axes.barh(row, value, left=one["low"], height=_HIGH, linewidth=0.6 if missed else 0, **look)
            if row < len(drawn) - 1:
                reached = one["low"] + value
                axes.plot([reached] * 2, [row - _HIGH / 2, row + 1 + _HIGH / 2], color="0.3", linewidth=0.5, zorder=3)
            _write(axes, row, one["low"], value, signed=one not in ends)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.use_sticky_edges = False
        axes.margins(x=0.2)
        axes.set_yticks(range(len(drawn)), [drawable(str(one["name"])) for one in drawn], parse_math=False)
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(fitted(unit, 0.8 * drawn_on.width), parse_math=False)
        drawn_on.headline(headline)
    return drawn_on.figure


def _write(axes: Axes, row: int, low: float, value: float, *, signed: bool) -> None:
    """A bar's value beyond its end."""
    text = ("+" if signed and value >= 0 else "") + shown_number(value)
    axes.annotate(
        text, (low + value, row), xytext=(-2 if value < 0 else 2, 0), textcoords="offset points",
        ha="right" if value < 0 else "left", va="center", fontsize=7,
    )  # fmt: skip


def waterfall(parts: pd.DataFrame, *, start: float, end: float, n: int) -> pd.DataFrame:
    """The bars between the two ends: ``name``, ``low`` (where it begins), ``value``, and whether it is what is missed.

    Raises:
        LocateError: as in ``waterfall_figure``.

    >>> import pandas as pd
    >>> parts = pd.DataFrame({"name": ["m4", "m5", "m6"], "value": [3.0, 0.5, -1.0]})
    >>> waterfall(parts, start=0.0, end=3.0, n=2)["name"].tolist()
    ['m4', 'm6', '1 other', 'not attributed']
    """
    values = parts["value"].to_numpy(float)
    if n < 1 or not len(values) or not np.isfinite([*values, start, end]).all():
        raise LocateError(
            f"A waterfall is of finite parts, of which one or more are shown; found n={n} and {len(values)} parts, "
            f"{int((~np.isfinite(values)).sum())} of them not finite, from {start} to {end}."
        )
    largest = np.sort(np.argsort(-np.abs(values), kind="stable")[:n])
    rest = np.setdiff1d(np.arange(len(values)), largest)
    names, shown = [str(parts["name"].iloc[one]) for one in largest], list(values[largest])
    if len(rest):
        names.append(f"{len(rest)} other{'s' * (len(rest) > 1)}")
        shown.append(float(values[rest].sum()))
    missed = end - start - float(values.sum())
    told = abs(missed) > _MISSED * max(float(np.abs(values).max()), abs(end - start))
    names, shown = names + ["not attributed"] * told, shown + [missed] * told
    lows = start + np.concatenate([[0.0], np.cumsum(shown)[:-1]])
    flags = [False] * (len(shown) - told) + [True] * told
    return pd.DataFrame({"name": names, "low": lows, "value": shown, "missed": flags})
