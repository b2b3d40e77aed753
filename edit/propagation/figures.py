"""Figures of edits: how the change flows, and what it does to each probe."""

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from edit.changes.figures import STYLE
from edit.names import DIRECTIONS
from edit.propagation.propagation import Propagation
from edit.propagation.roles import ROLE_STYLES
from locate.errors import SiteError

_KIND_TITLES = {"resid": "residual state", "attn": "attention output", "mlp": "MLP output"}


def plot_propagation(
    flow: Propagation,
    *,
    probe: int = 0,
    direction: str = "gained",
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw one probe's mediation as heat maps, and every probe's answer before and after the edit.

    The heat maps show which share of the edit's total effect each state carries by itself, from the edited
    layer (dashed) to the last token. Values are cut at −1 and 1.

    Args:
        flow: from ``edit.propagate``.
        probe: index of the probe to draw; it must have mediation.
        direction: ``"gained"`` (edited states put into the base model) or ``"lost"`` (the reverse).
        figsize: in inches.

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
    with plt.rc_context(STYLE):
        height = 0.22 * len(tokens) + 0.21 * len(flow.totals) + 2.6
        figure = plt.figure(figsize=figsize or (3.3 * len(kinds) + 1.2, height), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[0.22 * len(tokens) + 1.5, 0.21 * len(flow.totals) + 1.1])
        upper, lower = parts
        maps = upper.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        image = None
        for axes, kind in zip(maps, kinds, strict=True):
            image = _draw_map(axes, flow, probe, kind, direction)
        maps[0].set_yticks(range(len(tokens)), [_label(token) for token in tokens], parse_math=False)
        bar = upper.colorbar(image, ax=list(maps), pad=0.01, fraction=0.03)
        bar.set_label("share of total effect")
        total = flow.totals.loc[probe]
        what = (
            "edited state put into the base model" if direction == "gained" else "base state put into the edited model"
        )
        upper.suptitle(
            f"How “{total['old']} → {total['new']}” reaches the answer: effect {direction}, {what}",
            fontsize=10.5,
            parse_math=False,
        )
        _draw_totals(lower.subplots(), flow)
    plt.close(figure)  # pyplot lets go of it, so that a notebook shows it once
    return figure


def _draw_map(axes: Axes, flow: Propagation, probe: int, kind: str, direction: str):
    length = len(flow.tokens[probe])
    share = flow.share(probe).sel(kind=kind, direction=direction).values[:length]
    image = axes.imshow(np.clip(share, -1, 1), cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    for layer in flow.layers:
        axes.axvline(layer, color="black", linewidth=0.9, linestyle=(0, (2, 2)))
        known = bool(np.isfinite(share[:, layer]).any())
        if known and (kind == "mlp" or len(flow.mediation.coords["kind"]) == 1):
            position = int(np.nanargmax(np.abs(share[:, layer])))
            axes.plot(layer, position, marker="*", color="white", markeredgecolor="black", markersize=11)
    axes.set_title(_KIND_TITLES[kind])
    axes.set_xlabel("layer")
    axes.tick_params(length=2)
    return image


def _draw_totals(axes: Axes, flow: Propagation) -> None:
    totals: Any = flow.totals
    places = np.arange(len(totals))[::-1]
    for place, (_, row) in zip(places, totals.iterrows(), strict=True):
        colour, marker = ROLE_STYLES[row["role"]]
        axes.plot([row["base"], row["edited"]], [place, place], color=colour, linewidth=1.2)
        axes.plot(row["base"], place, marker=marker, color="white", markeredgecolor=colour, markersize=5.5)
        axes.plot(row["edited"], place, marker=marker, color=colour, markersize=5.5)
    axes.axvline(0, color="0.4", linewidth=0.8)
    labels = [
        f"{shorten(row['text'], 70, placeholder=' …')}  [{row['new']} / {row['old']}]" for _, row in totals.iterrows()
    ]
    axes.set_yticks(places, labels, fontsize=7.5, parse_math=False)
    axes.set_xlabel("logit difference, new answer − old answer (open: before the edit, filled: after)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=_legend(list(dict.fromkeys(totals["role"]))), frameon=False, fontsize=8, ncols=5,
                loc="lower left", bbox_to_anchor=(0, 1.0), handletextpad=0.4, columnspacing=1.2)  # fmt: skip


def _legend(roles: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=ROLE_STYLES[role][0], marker=ROLE_STYLES[role][1], linestyle="", label=role)
        for role in roles
    ]


def _label(token: str) -> str:
    return token.strip().replace("\n", "⏎") or "␣"
