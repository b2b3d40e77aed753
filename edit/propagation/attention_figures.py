"""The figure of attention that an edit moves, and of what holding it undoes."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edit.propagation.attention import TOTAL, AttentionDrift
from locate.figures.lines import STYLES
from locate.figures.style import STYLE, add_colorbar, add_headline, even_lightness, heat_map

_TITLES = {"lost": "undone: base patterns in the edited model", "gained": "brought: edited patterns in the base model"}
# In inches: below this the panels stand below each other.
_WIDE = 5.0


def plot_attention_drift(
    found: AttentionDrift, *, key: str = "subject", figsize: tuple[float, float] | None = None
) -> Figure:
    """Each head's drift, and which share of the edit goes through patterns of the heads that drifted most.

    Both are means over probes; bands span heads taken at random, as many each.

    Args:
        found: from ``edit.attention_drift``.
        key: whose drift is drawn: ``subject``, ``first``, ``other`` or ``total``.
        figsize: in inches; where it is narrow, the panels stand below each other.

    >>> figure = plot_attention_drift(edit.attention_drift(model, update, request, roles="edit", masked=[1]))
    """
    drift = (found.data["total"] if key == TOTAL else found.drift.sel(key=key)).mean("probe")
    values = drift.transpose("head", "layer").values
    with mpl.rc_context(STYLE):
        size = figsize or (7.0, 2.8)
        figure = plt.figure(figsize=size, layout="constrained")
        left, right = figure.subplots(*((1, 2) if size[0] >= _WIDE else (2, 1)))
        reach = float(np.abs(values).max()) or 1.0
        cmap, low = (even_lightness("Reds"), 0.0) if key == TOTAL else ("PuOr_r", -reach)
        mesh = heat_map(left, values, cmap, low, reach)
        for layer in found.info["layers"]:
            left.axvline(layer, color="black", linewidth=0.8, linestyle=(0, (2, 2)))
        left.set_ylabel("head")
        left.invert_yaxis()
        unit = "total variation" if key == TOTAL else f"change of attention to the {key}"
        add_colorbar(figure, mesh, left, unit)
        _draw_masks(right, found)
        add_headline(figure, f"{found.info['method']}: attention of the last token, {found.info['subject']}")
    plt.close(figure)
    return figure


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
    axes.set_ylim(axes.get_ylim()[0], 1.35 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
    axes.legend(frameon=False, fontsize=6.5, loc="upper left")
    sns.despine(ax=axes)
