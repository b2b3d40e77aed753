"""The figure of attention that an edit moves, and of what holding it undoes."""

from typing import Unpack

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edit.propagation.attention import TOTAL, AttentionDrift
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import WIDE, as_percent, even_lightness, heat_map, label_rows

_TITLES = {"lost": "undone: base patterns, edited model", "gained": "brought: edited patterns, base model"}


def plot_attention_drift(
    found: AttentionDrift,
    *,
    key: str = "subject",
    cmap: str | Colormap | None = None,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Each head's drift, and which share of the edit goes through patterns of the heads that drifted most.

    Both are means over probes; bands span heads taken at random, as many each.

    Args:
        found: from ``edit.attention_drift``.
        key: whose drift is drawn: ``subject``, ``first``, ``other`` or ``total``.
        cmap: a colour map; by default one that diverges, or for ``total`` one that does not.
        options: what every figure takes, ``PlotOptions``; where it is narrow, the panels stand below each other.

    >>> figure = plot_attention_drift(edit.attention_drift(model, update, request, roles="edit", masked=[1]))
    """
    drift = (found.data["total"] if key == TOTAL else found.drift.sel(key=key)).mean("probe")
    values = drift.transpose("head", "layer").values

    def height(width: float) -> float:
        return 2.9 if width >= WIDE else 4.8

    with sheet(options, "plot_attention_drift", width=7.0, height=height, panels=2) as drawn:
        left, right = drawn.panels(*((1, 2) if drawn.wide else (2, 1)))
        reach = float(np.abs(values).max()) or 1.0
        usual, low = (even_lightness("Reds"), 0.0) if key == TOTAL else ("RdBu_r", -reach)
        mesh = heat_map(left, values, usual if cmap is None else cmap, low, reach)
        for layer in found.info["layers"]:
            left.axvline(layer, color="black", linewidth=0.8, linestyle=(0, (2, 2)))
        label_rows(left, [str(head) for head in range(len(values))], "head")
        unit = "total variation" if key == TOTAL else f"change of attention to the {key}"
        drawn.colorbar(mesh, left, unit)
        _draw_masks(right, found)
        drawn.headline(f"{found.info['method']}: attention of the last token, {found.info['subject']}")
    return drawn.figure


def _draw_masks(axes: Axes, found: AttentionDrift) -> None:
    share = found.undone().mean("probe")
    places = np.arange(share.sizes["mask"])
    for direction, (colour, marker) in zip(_TITLES, STYLES, strict=False):
        own = share.sel(direction=direction).transpose("mask", "sample").values
        axes.plot(places, own[:, 0], color=colour, marker=marker, markersize=4, linewidth=1, label=_TITLES[direction])
        if own.shape[1] > 1:
            low, high = own[:-1, 1:].min(1, initial=np.inf), own[:-1, 1:].max(1, initial=-np.inf)
            axes.fill_between(places[:-1], low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(places, [str(one) if one > 0 else "all" for one in share["mask"].values])
    axes.set_xlabel("heads held")
    axes.set_ylabel("share of the effect")
    top = max(1.0, axes.get_ylim()[1])
    axes.set_ylim(axes.get_ylim()[0], 1.5 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(as_percent))
    axes.legend(frameon=False, loc="upper left", borderaxespad=0)
    sns.despine(ax=axes)
