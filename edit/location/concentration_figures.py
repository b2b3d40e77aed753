"""The figure of how changes are spread: their columns as a heat map, and how much the largest of them hold."""

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edit.location.concentration import Concentration
from locate.errors import LocateError
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import WIDE, as_percent, even_lightness, label_rows

_BINS = 48


def plot_concentration(
    found: Concentration | Mapping[str, Concentration],
    *,
    bins: int = _BINS,
    cmap: str | Colormap | None = None,
    **options: Unpack[PlotOptions],
) -> Figure:
    """A row for each matrix, with the energy of its columns in bins; and how much the largest columns hold together.

    Args:
        found: one, or several by name.
        bins: of the columns, in their order; their energy is shown in units of an even spread.
        cmap: a colour map of the energy.
        options: what every figure takes, ``PlotOptions``; where it is narrow, the panels stand below each other.

    Raises:
        LocateError: no change, or more than can be told apart, or no bins.

    >>> figure = edit.concentration(update, model).plot(bins=12)
    """
    named = found if isinstance(found, Mapping) else {str(found.info["method"]): found}
    if not 1 <= len(named) <= len(STYLES):
        raise LocateError(f"plot_concentration: give 1 to {len(STYLES)} changes, found {len(named)}.")
    if bins < 1:
        raise LocateError(f"bins: must be 1 or more, found {bins}.")
    labels = [_label(name, layer, len(named)) for name, one in named.items() for layer in one.layers]
    heat = np.concatenate([_binned(one, bins) for one in named.values()])
    tall = 1.1 + 0.17 * len(labels)

    def height(width: float) -> float:
        return max(2.5, tall) if width >= WIDE else tall + 2.2

    with sheet(options, "plot_concentration", width=7.0, height=height, panels=2) as drawn:
        shape, ratios = ((1, 2), {"width_ratios": [1.5, 1]}) if drawn.wide else ((2, 1), {"height_ratios": [tall, 2]})
        left, right = drawn.panels(*shape, gridspec_kw=ratios)
        edges = np.linspace(0, 1, heat.shape[1] + 1), np.arange(len(labels) + 1) - 0.5
        hue = even_lightness("Greens") if cmap is None else cmap
        mesh = left.pcolormesh(
            *edges, heat, cmap=hue, vmin=0, vmax=float(np.nanmax(heat)), edgecolors="face",
            linewidth=0.2,
        )  # fmt: skip
        label_rows(left, labels)
        left.set_ylim(len(labels) - 0.5, -0.5)
        left.tick_params(axis="y", length=0)
        left.set_xlabel("columns of ΔW, in their order")
        _as_percent(left)
        drawn.colorbar(mesh, left, "‖ΔW‖² in units of an even spread")
        _draw_curves(right, named)
        drawn.headline(", ".join(sorted({one.info["model"] for one in named.values()})))
    return drawn.figure


def _draw_curves(axes: Axes, named: Mapping[str, Concentration]) -> None:
    for (name, one), (colour, _) in zip(named.items(), STYLES, strict=False):
        counts = one.data["column_energy"].count("column").values
        for index, (curve, size) in enumerate(zip(one.curve(), counts, strict=True)):
            own = np.concatenate([[0.0], curve[:size]])
            axes.plot(
                np.arange(size + 1) / size, own, color=colour, linewidth=1, label=name if index == 0 else None
            )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", label="even spread")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="columns, the largest first", ylabel="share of ‖ΔW‖²")
    _as_percent(axes)
    for text in axes.legend(loc="lower right", framealpha=0.85, edgecolor="none").get_texts():
        text.set_parse_math(False)
    sns.despine(ax=axes)


def _binned(found: Concentration, bins: int) -> Float[np.ndarray, "matrix bin"]:
    """The energy of columns in each bin, 1 where it is that of an even spread."""
    rows = []
    for values in found.shares().transpose("matrix", "column").values:
        own = values[~np.isnan(values)]
        parts = np.array_split(own, min(bins, len(own)))
        even = np.array([part.sum() * len(own) / len(part) for part in parts])
        rows.append(np.pad(even, (0, bins - len(even)), constant_values=np.nan))
    return np.stack(rows)[:, : max(int((~np.isnan(row)).sum()) for row in rows)]


def _label(name: str, layer: int, several: int) -> str:
    where = "" if layer < 0 else f"layer {layer}"
    return f"{name}, {where}".strip(", ") if several > 1 else where or name


def _as_percent(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(as_percent))
