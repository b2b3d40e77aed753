"""The figure of re-used mediators: what each of the edit prompt's carries on every probe, and all of them together."""

from textwrap import shorten
from typing import Any, Unpack

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from edit.propagation.reused import MediatorReuse
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import WIDE, drawable, heat_map, label_columns, label_rows, shown_number

# As many mediators as names can be read of.
_MOST = 24
_TOP, _RANDOM = "#0072B2", "0.6"


def plot_mediator_reuse(
    found: MediatorReuse,
    *,
    direction: str = "gained",
    most: int = _MOST,
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """What each chosen mediator carries of each probe's total effect, and beside it what all carry together.

    Colours are cut at the largest share on the edit's own prompt. Dots are the chosen mediators together, grey lines
    reach over the random sets; a filled dot is of a probe that is answered after the edit.

    Args:
        found: from ``edit.mediator_reuse``.
        direction: of what is carried together, ``"gained"`` or ``"lost"``.
        most: mediators that are shown, those of the largest effect on the edit's own prompt.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_mediator_reuse(reuse)
    """
    order = np.argsort(-np.where(found.data["chosen"].values, found.share.values[0], -np.inf), kind="stable")
    shown = order[: min(most, int(found.data["chosen"].sum()))]
    share, table = found.share.values[:, shown], found.table()
    rows = table.to_dict("records")
    reach = float(np.abs(share[0]).max()) or 1.0
    n = len(table)

    def height(width: float) -> float:
        return 2.0 + 0.19 * n if width >= WIDE else 2.9 + 0.4 * n

    with sheet(options, "plot_mediator_reuse", width=7.0, height=height, panels=2) as drawn:
        wide = drawn.wide
        left, right = drawn.panels(
            *((1, 2) if wide else (2, 1)), sharey=True, **({"width_ratios": [2.2, 1]} if wide else {})
        )
        mesh = heat_map(left, share, cmap, -reach, reach)
        texts = [f"{shorten(row['text'], 44, placeholder=' …')} [{row['new']}]" for row in rows]
        labels = [drawable(one) for one in (texts if wide else table["role"])]
        label_rows(left, labels)
        label_columns(left, [found.names[place] for place in shown])
        left.set_xlabel("")
        left.tick_params(length=0)
        left.set_title("mediators of the edit's own prompt")
        drawn.colorbar(mesh, left, f"share of a probe's effect, alone (cut at ±{shown_number(reach)})")
        _draw_together(right, found, table["answered"].to_numpy(bool), direction)
        drawn.legend(*right.get_legend_handles_labels())
        drawn.headline(f"{found.info['method']}: mediators re-used")
    return drawn.figure


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
    least, most = float(np.nanmin(ends)), float(np.nanmax(ends))
    axes.set_xlim(max(-1.5, least - 0.1), min(2.5, most + 0.1))
    cut = " (axis cut)" if least < -1.5 or most > 2.5 else ""
    axes.set_xlabel(f"share {direction}{cut}")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
