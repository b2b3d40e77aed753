"""The figure of re-used mediators: what each of the edit prompt's carries on every probe, and all of them together."""

from textwrap import shorten
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from edit.propagation.reused import MediatorReuse
from locate.figures.style import STYLE, add_colorbar, add_headline, drawable

# As many mediators as names can be read of.
_MOST = 24
_TOP, _RANDOM = "#0072B2", "0.6"
# From how many inches on the two panels stand side by side.
_WIDE = 5


def plot_mediator_reuse(
    found: MediatorReuse, *, direction: str = "gained", most: int = _MOST, figsize: tuple[float, float] | None = None
) -> Figure:
    """What each chosen mediator carries of each probe's total effect, and beside it what all carry together.

    Colours are cut at the largest share on the edit's own prompt. Dots are the chosen mediators together, grey lines
    reach over the random sets; a filled dot is of a probe that is answered after the edit.

    Args:
        found: from ``edit.mediator_reuse``.
        direction: of what is carried together, ``"gained"`` or ``"lost"``.
        most: mediators that are shown, those of the largest effect on the edit's own prompt.
        figsize: in inches.

    >>> figure = plot_mediator_reuse(reuse)
    """
    order = np.argsort(-np.where(found.data["chosen"].values, found.share.values[0], -np.inf), kind="stable")
    shown = order[: min(most, int(found.data["chosen"].sum()))]
    share, table = found.share.values[:, shown], found.table()
    rows = table.to_dict("records")
    reach = float(np.abs(share[0]).max()) or 1.0
    n = len(table)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (7.0, 1.8 + 0.19 * n), layout="constrained")
        wide = figure.get_figwidth() > _WIDE
        left, right = (
            figure.subplots(1, 2, sharey=True, width_ratios=[2.2, 1]) if wide else figure.subplots(2, 1, sharey=True)
        )
        mesh = left.imshow(share, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        texts = [f"{shorten(row['text'], 44, placeholder=' …')} [{row['new']}]" for row in rows]
        labels = [drawable(one) for one in (texts if wide else table["role"])]
        left.set_yticks(range(n), labels, parse_math=False, fontsize=6.5)
        left.set_xticks(range(len(shown)), [found.names[place] for place in shown], rotation=90, fontsize=6)
        left.tick_params(length=0)
        left.set_title("mediators of the edit's own prompt")
        add_colorbar(figure, mesh, left, "share of a probe's effect, alone")
        _draw_together(right, found, table["answered"].to_numpy(bool), direction)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=1 + wide, frameon=False)
        add_headline(figure, f"{found.info['method']}: mediators re-used")
    plt.close(figure)
    return figure


def _draw_together(axes: Any, found: MediatorReuse, answered: np.ndarray, direction: str) -> None:
    joint = found.joint_share.sel(direction=direction).values
    chance = found.random_share.sel(direction=direction)
    low, high = chance.min("sample").values, chance.max("sample").values
    places = np.arange(len(joint))
    axes.hlines(places, low, high, color=_RANDOM, linewidth=2.5, label="random sets of as many")
    axes.scatter(joint, places, s=18, facecolors=np.where(answered, _TOP, "white"), edgecolors=_TOP, zorder=3,
                 label="these mediators together")  # fmt: skip
    for value in (0, 1):
        axes.axvline(value, color="0.4", linewidth=0.6, linestyle=":")
    ends = np.concatenate([joint, low, high, [0, 1]])
    axes.set_xlim(max(-1.5, np.nanmin(ends) - 0.1), min(2.5, np.nanmax(ends) + 0.1))
    axes.set_xlabel(f"share {direction}")
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    axes.spines[["top", "right"]].set_visible(False)
