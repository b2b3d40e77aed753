"""The figure of what a change does to each parameter."""

import re
from typing import Any, Unpack

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edit.propagation.footprint import WeightFootprint
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import WIDE, as_percent, shown_text

_OTHERS = ("0.6", ".")


def plot_footprint(found: WeightFootprint, **options: Unpack[PlotOptions]) -> Figure:
    """How large each parameter's change is, along how many directions it goes, and what these write.

    Args:
        found: from ``edit.weight_footprint``.
        options: what every figure takes, ``PlotOptions``; where it is narrow, the panels stand below each other.

    >>> figure = plot_footprint(edit.weight_footprint(model, update, request))
    """
    kinds = [re.sub(r"(^|\.)\d+\.", r"\1*.", str(name)) for name in found.data["parameter"].values]
    named = dict.fromkeys(kinds)
    styles = dict(zip(named, STYLES, strict=False))
    aligned = bool(found.data["alignment"].notnull().any())
    panels = 3 if aligned else 2

    def height(width: float) -> float:
        return 2.6 if width >= WIDE else 1.9 * panels

    with sheet(options, "plot_footprint", width=7.0, height=height, panels=panels) as drawn:
        sizes, spectrum, *rest = drawn.panels(*((1, panels) if drawn.wide else (panels, 1)))
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
        sizes.set(xlabel="layer", ylabel="‖ΔW‖ ∕ ‖W‖ (log axis)", yscale="log")
        layers = found.data["layer"].values
        sizes.set_xlim(layers.min() - 0.6, layers.max() + 0.6)
        sizes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for text in sizes.legend(frameon=False, loc="best").get_texts():
            text.set_parse_math(False)
        spectrum.set(xlabel="singular directions\n(log₂ axis)", ylabel="share of ‖ΔW‖²", ylim=(0, 1.05))
        spectrum.yaxis.set_major_formatter(FuncFormatter(as_percent))
        for axes in rest:
            _alignments(axes, found)
        for axes in (spectrum, *rest):
            axes.set_xscale("log", base=2)
            axes.set_xticks([2**power for power in range(found.data.sizes["direction"].bit_length())])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        for axes in (sizes, spectrum, *rest):
            sns.despine(ax=axes)
        drawn.headline(f"{found.info['method']}: change of {len(kinds)} parameter{'s' * (len(kinds) > 1)}")
    return drawn.figure


def _alignments(axes: Axes, found: WeightFootprint) -> None:
    new, old = (shown_text(one) for one in found.info["answers"])
    axes.axhspan(-found.chance, found.chance, color="0.9", linewidth=0)
    axes.axhline(0, color="black", linewidth=0.5)
    largest: Any = max(0.3, float(np.nanmax(np.abs(found.data["alignment"]))) * 1.15)
    axes.set(xlabel="singular direction\n(log₂ axis)", ylim=(-largest, largest))
    axes.set_ylabel(f"cosine with “{new}” − “{old}”", parse_math=False)


def _short(kind: str) -> str:
    """Without what stands before the layer's number, and the last word."""
    return kind.split("*.")[-1].removesuffix(".weight")
