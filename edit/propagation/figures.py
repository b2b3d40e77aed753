"""Figures of edits: how the change flows, and what it does to each probe."""

from collections.abc import Sequence
from textwrap import shorten
from typing import Any, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from edit.names import DIRECTIONS
from edit.propagation.propagation import Propagation
from edit.propagation.roles import ROLE_STYLES
from locate.errors import SiteError
from locate.figures.options import PlotOptions
from locate.figures.sheet import Sheet, sheet
from locate.figures.style import drawable, fitted, heat_map, label_rows, shown_text, token_label

# In inches: a panel beside others, and the labels of its rows; a row; a letter with 7 points.
_PANEL, _LABELS, _ROW, _LETTER = 1.3, 0.6, 0.16, 0.052
_KIND_TITLES = {"resid": "residual state", "attn": "attention output", "mlp": "MLP output"}


def plot_propagation(
    flow: Propagation,
    *,
    probe: int = 0,
    direction: str = "gained",
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """Draw one probe's mediation as heat maps, and every probe's answer before and after the edit.

    The heat maps show which share of the edit's total effect each state carries by itself, from the edited
    layer (dashed) to the last token. Values are cut at −1 and 1.

    Args:
        flow: from ``edit.propagate``.
        probe: index of the probe to draw; it must have mediation.
        direction: ``"gained"`` (edited states put into the base model) or ``"lost"`` (the reverse).
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: no such probe or direction, or a probe without mediation.

    >>> figure = plot_propagation(flow)
    >>> len(figure.axes) >= 4
    True
    """
    if direction not in DIRECTIONS:
        raise SiteError(f"direction: must be one of {', '.join(DIRECTIONS)}, found {direction!r}.")
    flow.share(probe)  # tells what is wrong with the probe
    kinds = [kind for kind in ("resid", "attn", "mlp") if kind in flow.mediation.coords["kind"].values]
    tokens = flow.tokens[probe]

    def rows(width: float) -> int:
        return 1 if width >= _PANEL * len(kinds) + _LABELS else len(kinds)

    def heights(width: float) -> list[float]:
        many = rows(width)
        return [many * (_ROW * max(len(tokens), 5) + 0.5) + 1.0, 0.2 * len(flow.totals) + 1.1]

    width = 2.2 * len(kinds) + 0.9
    with sheet(
        options, "plot_propagation", width=width, height=lambda width: sum(heights(width)), panels=len(kinds) + 1
    ) as drawn:
        upper, lower = drawn.parts(heights(drawn.width))
        shape = (1, len(kinds)) if rows(drawn.width) == 1 else (len(kinds), 1)
        maps = upper.panels(*shape, sharex=True, sharey=True)
        for axes, kind in zip(maps, kinds, strict=True):
            mesh = _draw_map(axes, flow, probe, kind, direction, cmap)
            if shape[0] > 1 and axes is not maps[-1]:
                axes.set_xlabel("")
        for axes in maps if shape[0] > 1 else maps[:1]:
            label_rows(axes, [token_label(token, False) for token in tokens])
        upper.colorbar(mesh, maps, "share of the total effect, cut at ±1")
        _draw_totals(lower, flow)
        total = flow.totals.loc[probe]
        what = (
            "edited state put into the base model" if direction == "gained" else "base state put into the edited model"
        )
        answers = f"{drawable(shown_text(total['old']))} → {drawable(shown_text(total['new']))}"
        drawn.headline(f"How “{answers}” reaches the answer: effect {direction}, {what}")
    return drawn.figure


def _draw_map(axes: Axes, flow: Propagation, probe: int, kind: str, direction: str, cmap: str | Colormap) -> Any:
    length = len(flow.tokens[probe])
    share = flow.share(probe).sel(kind=kind, direction=direction).values[:length]
    mesh = heat_map(axes, np.clip(share, -1, 1), cmap, -1.0, 1.0)
    for layer in flow.layers:
        axes.axvline(layer, color="black", linewidth=0.9, linestyle=(0, (2, 2)))
        known = bool(np.isfinite(share[:, layer]).any())
        if known and (kind == "mlp" or len(flow.mediation.coords["kind"]) == 1):
            position = int(np.nanargmax(np.abs(share[:, layer])))
            axes.plot(layer, position, marker="*", color="white", markeredgecolor="black", markersize=9)
    axes.set_title(_KIND_TITLES[kind])
    return mesh


def _draw_totals(lower: Sheet, flow: Propagation) -> None:
    (axes,) = lower.panels()
    totals: Any = flow.totals
    for place, (_, row) in enumerate(totals.iterrows()):
        colour, marker = ROLE_STYLES[row["role"]]
        axes.plot([row["base"], row["edited"]], [place, place], color=colour, linewidth=1.2)
        axes.plot(row["base"], place, marker=marker, color="white", markeredgecolor=colour, markersize=5)
        axes.plot(row["edited"], place, marker=marker, color=colour, markersize=5)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_ylim(len(totals) - 0.5, -0.5)
    # Half the width for words at most: the answers, and of the text as much as there is room for.
    letters = int(0.5 * lower.width / (_LETTER * lower.small / 7))
    answers = [f"[{row['new']} / {row['old']}]" for _, row in totals.iterrows()]
    labels = [
        f"{shorten(row['text'], max(8, letters - len(own) - 1), placeholder=' …')} {own}"
        for own, (_, row) in zip(answers, totals.iterrows(), strict=True)
    ]
    label_rows(axes, [drawable(label) for label in labels])
    axes.set_xlabel(fitted("logit difference, new − old (open: before, filled: after)", 0.5 * lower.width))
    axes.spines[["top", "right"]].set_visible(False)
    lower.legend(_legend(list(dict.fromkeys(totals["role"]))), handletextpad=0.4, columnspacing=1.2)


def _legend(roles: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=ROLE_STYLES[role][0], marker=ROLE_STYLES[role][1], linestyle="", label=role)
        for role in roles
    ]
