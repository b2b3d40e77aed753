"""Lines over layers, told apart with any colour vision and in print."""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

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
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.axhline(0, color="black", linewidth=0.5)
    sns.despine(ax=axes)
