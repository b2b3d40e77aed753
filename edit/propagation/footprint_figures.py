"""The figure of what a change does to each parameter."""

import re
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edit.propagation.footprint import WeightFootprint
from locate.figures.lines import STYLES
from locate.figures.style import STYLE, add_headline, shown_text

# In inches: below this the panels stand below each other.
_WIDE = 5.0
_OTHERS = ("0.6", ".")


def plot_footprint(found: WeightFootprint, *, figsize: tuple[float, float] | None = None) -> Figure:
    """How large each parameter's change is, along how many directions it goes, and what these write.

    Args:
        found: from ``edit.weight_footprint``.
        figsize: in inches; where it is narrow, the panels stand below each other.

    >>> figure = plot_footprint(edit.weight_footprint(model, update, request))
    """
    kinds = [re.sub(r"(^|\.)\d+\.", r"\1*.", str(name)) for name in found.data["parameter"].values]
    named = dict.fromkeys(kinds)
    styles = dict(zip(named, STYLES, strict=False))
    aligned = bool(found.data["alignment"].notnull().any())
    with mpl.rc_context(STYLE):
        panels = 3 if aligned else 2
        size = figsize or (7.0, 2.6)
        wide = size[0] >= _WIDE
        figure = plt.figure(figsize=size if wide or figsize else (size[0], 2.2 * panels), layout="constrained")
        sizes, spectrum, *rest = figure.subplots(*((1, panels) if wide else (panels, 1)))
        labelled: set[str] = set()
        for index, kind in enumerate(kinds):
            colour, marker = styles.get(kind, _OTHERS)
            label = None if kind in labelled else _short(kind) if kind in styles else "others"
            labelled |= {kind} if kind in styles else set(kinds) - set(styles)
            own = found.data.isel(parameter=index)
            sizes.plot(own["layer"], own["relative_norm"], color=colour, marker=marker, markersize=4, linestyle="",
                       label=label)  # fmt: skip
            share = np.cumsum(np.nan_to_num(found.shares().isel(parameter=index).values)).clip(max=1)
            numbers = found.data["direction"].values
            spectrum.plot(numbers, share, color=colour, marker=marker, markersize=3, linewidth=0.8)
            for axes in rest:
                axes.plot(numbers, own["alignment"], color=colour, marker=marker, markersize=3, linewidth=0.8)
        sizes.set(xlabel="layer", ylabel="‖ΔW‖ ∕ ‖W‖", yscale="log")
        layers = found.data["layer"].values
        sizes.set_xlim(layers.min() - 0.6, layers.max() + 0.6)
        sizes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for text in sizes.legend(frameon=False, fontsize=6.5, loc="best").get_texts():
            text.set_parse_math(False)
        spectrum.set(xlabel="singular directions", ylabel="share of ‖ΔW‖²", ylim=(0, 1.05))
        spectrum.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
        for axes in rest:
            _alignments(axes, found)
        for axes in (spectrum, *rest):
            axes.set_xscale("log", base=2)
            axes.set_xticks([2**power for power in range(found.data.sizes["direction"].bit_length())])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        for axes in (sizes, spectrum, *rest):
            sns.despine(ax=axes)
        add_headline(figure, f"{found.info['method']}: change of {len(kinds)} parameter{'s' * (len(kinds) > 1)}")
    plt.close(figure)
    return figure


def _alignments(axes: Axes, found: WeightFootprint) -> None:
    new, old = (shown_text(one) for one in found.info["answers"])
    axes.axhspan(-found.chance, found.chance, color="0.9", linewidth=0)
    axes.axhline(0, color="black", linewidth=0.5)
    largest: Any = max(0.3, float(np.nanmax(np.abs(found.data["alignment"]))) * 1.15)
    axes.set(xlabel="singular direction", ylim=(-largest, largest))
    axes.set_ylabel(f"cosine with “{new}” − “{old}”", parse_math=False)


def _short(kind: str) -> str:
    """Without what stands before the layer's number, and the last word."""
    return kind.split("*.")[-1].removesuffix(".weight")
