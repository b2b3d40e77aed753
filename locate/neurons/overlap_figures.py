"""The figure of overlaps: which facts or methods have neurons in common."""

from textwrap import shorten

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.figures.style import STYLE, add_colorbar, add_headline, even_lightness
from locate.neurons.overlap import NeuronOverlap

# Cells up to so many a side have their numbers written; and names as long as this.
_WRITTEN, _LONGEST = 8, 28


def plot_neuron_overlap(
    overlap: NeuronOverlap, *, k: int | None = None, figsize: tuple[float, float] | None = None
) -> Figure:
    """Two matrices side by side: the Jaccard index of the best ``k`` neurons, and the rank correlation of all.

    Colours reach to the largest value off the diagonal, which is grey.

    Args:
        overlap: what ``neuron_overlap`` gave.
        k: one of those that were asked for; by default the first.
        figsize: width and height in inches.

    Raises:
        LocateError: another ``k`` was asked for.

    >>> overlap = locate.neuron_overlap({"one": neurons, "two": neurons})
    >>> figure = locate.plots.plot_neuron_overlap(overlap)
    """
    k = int(overlap.data["k"][0]) if k is None else k
    names = [shorten(str(name), _LONGEST, placeholder=" …") for name in overlap.data["one"].values]
    apart = ~np.eye(len(names), dtype=bool)
    shared, ranked = (np.where(apart, one.values, np.nan) for one in (overlap.of(k), overlap.spearman))
    side = min(1.0 + 0.2 * len(names), 3.4)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (1.8 + 2 * side, 1.1 + side), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        most = max(0.05, float(np.nanmax(shared)))
        reach = max(0.05, float(np.nanmax(np.abs(np.nan_to_num(ranked)))))
        _draw(left, shared, names, even_lightness("Purples"), (0.0, most), f"Jaccard of the best {k}")
        _draw(right, ranked, names, "RdBu_r", (-reach, reach), "Spearman of all")
        facts = overlap.data.sizes["fact"]
        over = f", mean over {facts} facts" if facts > 1 else ""
        add_headline(figure, f"{overlap.info['neurons']} neurons, between {overlap.info['between']}{over}")
    plt.close(figure)
    return figure


def _draw(
    axes: Axes, values: np.ndarray, names: list[str], cmap: str | Colormap, ends: tuple[float, float], title: str
) -> None:
    few = len(names) <= _WRITTEN
    axes.set_facecolor("0.92")  # of each with itself
    sns.heatmap(
        values, vmin=ends[0], vmax=ends[1], cmap=cmap, square=True, ax=axes, annot=few, fmt=".2f", cbar=False,
        annot_kws={"size": 6}, linewidths=0.5 if few else 0,
    )  # fmt: skip
    add_colorbar(axes.get_figure(), axes.collections[0], axes, title)  # type: ignore[arg-type]
    places = np.arange(len(names)) + 0.5
    size = 7 if len(names) <= 2 * _WRITTEN else 5
    axes.set_xticks(places, [str(place + 1) for place in range(len(names))], rotation=0, fontsize=size)
    labels = [f"{name}  {place + 1}" for place, name in enumerate(names)]
    axes.set_yticks(places, labels, rotation=0, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
