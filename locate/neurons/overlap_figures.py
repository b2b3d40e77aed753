"""The figure of overlaps: which facts or methods have neurons in common."""

from textwrap import shorten
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from locate.figures.options import PlotOptions
from locate.figures.sheet import Sheet, sheet
from locate.figures.style import even_lightness, heat_map, label_rows
from locate.neurons.overlap import NeuronOverlap

# Cells up to so many a side have their numbers written; and names as long as this.
_WRITTEN, _LONGEST = 8, 28
# In inches: from here on the matrices stand beside each other; a letter with 7 points.
_WIDE, _LETTER = 4.0, 0.055


def plot_neuron_overlap(
    overlap: NeuronOverlap,
    *,
    k: int | None = None,
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """Two matrices side by side: the Jaccard index of the best ``k`` neurons, and the rank correlation of all.

    Colours reach to the largest value off the diagonal, which is grey.

    Args:
        overlap: what ``neuron_overlap`` gave.
        k: one of those that were asked for; by default the first.
        cmap: a diverging colour map of the correlation.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: another ``k`` was asked for.

    >>> overlap = locate.neuron_overlap({"one": neurons, "two": neurons})
    >>> figure = locate.plots.plot_neuron_overlap(overlap)
    """
    k = int(overlap.data["k"][0]) if k is None else k
    n = len(overlap.data["one"])
    apart = ~np.eye(n, dtype=bool)
    shared, ranked = (np.where(apart, one.values, np.nan) for one in (overlap.of(k), overlap.spearman))
    side = min(1.0 + 0.2 * n, 3.4)

    def height(width: float) -> float:
        return 1.1 + side if width >= _WIDE else 0.6 + 2 * min(side + 0.9, 2.6)

    with sheet(options, "plot_neuron_overlap", width=1.8 + 2 * side, height=height, panels=2) as drawn:
        left, right = drawn.panels(*((1, 2) if drawn.width >= _WIDE else (2, 1)), sharey=True)
        room = min(_LONGEST, int(0.4 * drawn.width / _LETTER))
        names = [shorten(str(name), room, placeholder=" …") for name in overlap.data["one"].values]
        most = max(0.05, float(np.nanmax(shared)))
        reach = max(0.05, float(np.nanmax(np.abs(np.nan_to_num(ranked)))))
        _draw(drawn, left, shared, names, even_lightness("Purples"), (0.0, most), f"Jaccard of the best {k}")
        _draw(drawn, right, ranked, names, cmap, (-reach, reach), "Spearman of all")
        facts = overlap.data.sizes["fact"]
        over = f", mean over {facts} facts" if facts > 1 else ""
        drawn.headline(f"{overlap.info['neurons']} neurons, between {overlap.info['between']}{over}")
    return drawn.figure


def _draw(
    drawn: Sheet,
    axes: Axes,
    values: np.ndarray,
    names: list[str],
    cmap: str | Colormap,
    ends: tuple[float, float],
    title: str,
) -> None:
    few = len(names) <= (_WRITTEN if drawn.wide else _WRITTEN // 2)
    mesh = heat_map(axes, values, cmap, *ends)
    axes.patch.set(facecolor="0.92", hatch="")  # of each with itself
    for (row, column), value in np.ndenumerate(values):
        if few and np.isfinite(value):
            dark = np.dot(mesh.cmap(mesh.norm(value))[:3], [0.3, 0.6, 0.1]) < 0.5
            axes.text(column, row, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=drawn.small,
                      color="white" if dark else "0.15")  # fmt: skip
    drawn.colorbar(mesh, axes, title)
    axes.set_xlabel("")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place + 1:.0f}" if place >= 0 else ""))
    label_rows(axes, [f"{name}  {place + 1}" for place, name in enumerate(names)])
    axes.tick_params(length=0)
