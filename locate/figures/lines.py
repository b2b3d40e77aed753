"""Lines over layers, told apart with any colour vision and in print."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from locate.errors import LocateError
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import Whole, fitted

_COLOURS = sns.color_palette("colorblind").as_hex()
# Those of the palette that differ most, first; each with a marker of its own.
STYLES: tuple[tuple[str, str], ...] = tuple(
    (_COLOURS[colour], marker) for colour, marker in zip((0, 3, 2, 4, 1, 9, 7), "osD^vPX", strict=True)
)
# How opaque an interval is.
_SHADE = 0.2


def draw_lines(
    axes: Axes, table: pd.DataFrame, value: str, by: str, styles: Mapping[str, tuple[str, str]], *, legend: bool = True
) -> None:
    """A line over layers for each of some names, with its interval shaded where the table has ``low`` and ``high``.

    Args:
        axes: to draw on.
        table: one row per layer and name.
        value: the column that is drawn.
        by: the column of names.
        styles: a colour and a marker for each name, in the order of the lines.
        legend: whether the names are told in a legend.
    """
    colours, markers = ({name: style[part] for name, style in styles.items()} for part in (0, 1))
    names, every = list(styles), max(1, table["layer"].nunique() // 10)
    sns.lineplot(
        data=table, x="layer", y=value, hue=by, hue_order=names, style=by, style_order=names, ax=axes, palette=colours,
        markers=markers, dashes=False, estimator=None, errorbar=None, legend="full" if legend else False, linewidth=1,
        markersize=3.5, markeredgewidth=0, markevery=every,
    )  # fmt: skip
    if {"low", "high"} <= set(table.columns):
        for name, own in table.groupby(by, sort=False):
            axes.fill_between(
                own["layer"], own["low"], own["high"], color=colours[str(name)], alpha=_SHADE, linewidth=0
            )
    axes.xaxis.set_major_locator(Whole())
    axes.axhline(0, color="black", linewidth=0.5)
    sns.despine(ax=axes)


def line_panels(
    table: pd.DataFrame,
    *,
    value: str,
    by: str,
    panel: str,
    unit: str,
    headline: str = "",
    marked: Sequence[int] = (),
    **options: Unpack[PlotOptions],
) -> Figure:
    """Lines over layers in panels of one scale, such as two answers before and after an edit.

    Args:
        table: a row for each layer, name and panel, with an interval where it has ``low`` and ``high``.
        value: the column that is drawn.
        by: the column of names, which have the same colours everywhere.
        panel: the column of panels, in the order in which they come.
        unit: of the values.
        headline: over all of it.
        marked: layers with a dashed line, such as the edited ones.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: a column that there is not, no rows, or more names than can be told apart.

    >>> import pandas as pd
    >>> rows = [(layer, name, state, 0.1 * layer) for layer in (0, 1) for name in "ab" for state in ("before", "after")]
    >>> table = pd.DataFrame(rows, columns=["layer", "token", "state", "probability"])
    >>> figure = line_panels(table, value="probability", by="token", panel="state", unit="probability")
    """
    if missing := [column for column in ("layer", value, by, panel) if column not in table]:
        raise LocateError(f"line_panels: the table has {list(table)}; {missing[0]!r} is not among them.")
    panels, names = (list(dict.fromkeys(table[column])) for column in (panel, by))
    if not 1 <= len(names) <= len(STYLES):
        raise LocateError(f"line_panels: give 1 to {len(STYLES)} names of {by!r}, found {len(names)}.")
    styles = dict(zip(map(str, names), STYLES, strict=False))
    n, width = len(panels), max(3.3, 1.9 * len(panels))
    with sheet(options, "line_panels", width=width, height=2.3, panels=n) as drawn:
        grid = drawn.panels(1, n, sharex=True, sharey=True)
        for axes, name in zip(grid, panels, strict=True):
            own = table[table[panel] == name]
            draw_lines(axes, own.assign(**{by: own[by].astype(str)}), value, by, styles, legend=axes is grid[-1])
            for layer in marked:
                axes.axvline(layer, color="0.3", linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
            axes.set_title(str(name), parse_math=False)
            axes.set_ylabel(fitted(unit, 1.6) if axes is grid[0] else "", parse_math=False)
        handles, labels = grid[-1].get_legend_handles_labels()
        if legend := grid[-1].get_legend():
            legend.remove()
        drawn.legend(handles, labels)
        drawn.headline(headline)
    return drawn.figure
