"""Figures of direct logit attribution."""

from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.figures.layered import SIGNS
from locate.figures.lines import STYLES, draw_lines
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import fitted, heat_map, label_rows, shown_number, shown_text
from locate.lens.attribution import LogitAttribution
from locate.lens.parts import KINDS

# The rows of a map below the heads.
_BELOW = {"attn_bias": "biases", "mlp": "MLP"}
# In inches: a line of text, and what stands over a map and below it.
_LINE, _AROUND = 0.14, 1.5


def plot_attribution(
    attribution: LogitAttribution,
    *,
    confidence: float = 0.95,
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """What parts add, by layer: a map of heads, biases and MLPs, else a line for each kind of part; of neurons bars.

    A map is even about zero, which is white, and has all means over facts on one scale. Lines have their interval over
    facts shaded.

    Args:
        attribution: what ``logit_attribution`` gave.
        confidence: of the intervals.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = locate.logit_attribution(model, fact, by="head", progress=False).plot()
    """
    if attribution.by == "neuron":
        return plot_attribution_top(attribution, confidence=confidence, **options)
    table = attribution.summary(confidence=confidence)
    inner: Any = table.query("layer >= 0")
    width, height = 3.8, 2.6
    if heads := attribution.by == "head":
        rows = inner.loc[inner["kind"] == "head", "unit"].nunique() + len(_BELOW)
        width, height = max(3.5, min(7.0, 1.2 + 0.09 * inner["layer"].max())), _AROUND + _LINE * max(rows, 5)
    with sheet(options, "plot_attribution", width=width, height=height) as drawn:
        (axes,) = drawn.panels()
        if heads:
            mesh = _draw_map(axes, inner, cmap)
            drawn.colorbar(mesh, axes, f"contribution to {_label(attribution)}")
        else:
            _draw_lines(axes, attribution, inner)
        drawn.headline(_headline(attribution, table))
    return drawn.figure


def plot_attribution_top(
    attribution: LogitAttribution,
    *,
    n: int = 15,
    confidence: float = 0.95,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Bars of the parts whose mean contribution is largest either way, with intervals over facts.

    Args:
        attribution: what ``logit_attribution`` gave.
        n: how many.
        confidence: of the intervals.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = locate.logit_attribution(model, fact, by="neuron", progress=False).plot_top(n=8)
    """
    table = attribution.summary(confidence=confidence)
    top = table.sort_values("contribution", ascending=False, key=abs, ignore_index=True).head(n)
    with sheet(options, "plot_attribution_top", width=3.5, height=1.2 + 0.17 * len(top)) as drawn:
        (axes,) = drawn.panels()
        values = top["contribution"].to_numpy()
        axes.barh(range(len(top)), values, color=[SIGNS[int(value < 0)] for value in values], height=0.7)
        ends = top[["low", "high"]].to_numpy()
        if not np.isnan(ends).any():
            axes.hlines(range(len(top)), *ends.T, color="black", linewidth=0.6)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set_yticks(range(len(top)), top["name"].tolist())
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(fitted(f"contribution to {_label(attribution)}", 0.8 * drawn.width), parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        drawn.headline(_headline(attribution, table))
    return drawn.figure


def _draw_map(axes: Axes, table: pd.DataFrame, cmap: str | Colormap) -> Any:
    """Heads down, then biases and MLPs below a line; nothing is as white as zero."""
    heads = table[table["kind"] == "head"].pivot(index="unit", columns="layer", values="contribution")
    others = table.pivot_table(index="kind", columns="layer", values="contribution", sort=False)
    shown = [kind for kind in _BELOW if kind in others.index and bool((others.loc[kind] != 0).any())]
    layers = range(int(table["layer"].to_numpy().max()) + 1)
    values = pd.concat([heads, others.loc[shown]]).reindex(columns=layers).to_numpy()
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    mesh = heat_map(axes, values, cmap, -reach, reach)
    axes.axhline(len(heads) - 0.5, color="0.35", linewidth=0.6)
    labels = [*(str(head) for head in heads.index), *(_BELOW[kind] for kind in shown)]
    label_rows(axes, labels, "head", always=range(len(heads), len(labels)))
    return mesh


def _draw_lines(axes: Axes, attribution: LogitAttribution, table: pd.DataFrame) -> None:
    kinds = list(dict.fromkeys(table["kind"]))
    styles = {KINDS[kind].title: STYLES[at] for at, kind in enumerate(kinds)}
    named = table.assign(part=[KINDS[kind].title for kind in table["kind"]])
    draw_lines(axes, named, "contribution", "part", styles, legend=len(kinds) > 1)
    if len(kinds) > 1:
        axes.legend(frameon=False)
    axes.set_ylabel(fitted(f"contribution to {_label(attribution)}", 1.6), parse_math=False)


def _label(attribution: LogitAttribution) -> str:
    """What is attributed, with the answers where all prompts have the same."""
    names = []
    for role, spelled in (("answer", attribution.info["answers"]), ("other", attribution.info["others"])):
        known = {shown_text(one) for one in spelled if one is not None}
        if known:
            names.append(f"logit({known.pop() if len(known) == 1 else role})")
    return " − ".join(names)


def _headline(attribution: LogitAttribution, table: pd.DataFrame) -> str:
    n, outside = attribution.data.sizes["fact"], table[(table["layer"] < 0) & (table["contribution"] != 0)]
    parts = [
        f"{shown_number(value)} of it {KINDS[kind].title}"
        for kind, value in zip(outside["kind"], outside["contribution"], strict=True)
    ]
    whole = shown_number(float(attribution.logit.mean())) + (f" in the mean of {n} prompts" if n > 1 else "")
    return f"{_label(attribution)}: {', '.join([whole, *parts])}"
