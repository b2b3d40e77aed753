"""Figures of direct logit attribution."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.figures.layered import SIGNS
from locate.figures.lines import STYLES, draw_lines
from locate.figures.style import STYLE, add_headline, add_units, fitted, heat_map, shown_number, shown_text
from locate.lens.attribution import LogitAttribution
from locate.lens.parts import KINDS

# The rows of a map below the heads.
_BELOW = {"attn_bias": "biases", "mlp": "MLP"}
# In inches: a line of text, and what stands over a map and below it.
_LINE, _AROUND = 0.13, 1.4


def plot_attribution(
    attribution: LogitAttribution,
    *,
    confidence: float = 0.95,
    cmap: str | Colormap = "RdBu_r",
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """What parts add, by layer: a map of heads, biases and MLPs, else a line for each kind of part; of neurons bars.

    A map is even about zero, which is white, and has all means over facts on one scale. Lines have their interval over
    facts shaded.

    Args:
        attribution: what ``logit_attribution`` gave.
        confidence: of the intervals.
        cmap: a diverging colour map.
        figsize: width and height in inches.

    >>> figure = locate.logit_attribution(model, fact, by="head", progress=False).plot()
    """
    if attribution.by == "neuron":
        return plot_attribution_top(attribution, confidence=confidence, figsize=figsize)
    table = attribution.summary(confidence=confidence)
    with mpl.rc_context(STYLE):
        if attribution.by == "head":
            figure = _plot_map(attribution, table.query("layer >= 0"), cmap, figsize)
        else:
            figure = _plot_lines(attribution, table.query("layer >= 0"), figsize)
        add_headline(figure, _headline(attribution, table))
    plt.close(figure)
    return figure


def plot_attribution_top(
    attribution: LogitAttribution,
    *,
    n: int = 15,
    confidence: float = 0.95,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Bars of the parts whose mean contribution is largest either way, with intervals over facts.

    Args:
        attribution: what ``logit_attribution`` gave.
        n: how many.
        confidence: of the intervals.
        figsize: width and height in inches.

    >>> figure = locate.logit_attribution(model, fact, by="neuron", progress=False).plot_top(n=8)
    """
    table = attribution.summary(confidence=confidence)
    top = table.sort_values("contribution", ascending=False, key=abs, ignore_index=True).head(n)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (3.5, 1.2 + 0.17 * len(top)), layout="constrained")
        axes = figure.subplots()
        values = top["contribution"].to_numpy()
        axes.barh(range(len(top)), values, color=[SIGNS[int(value < 0)] for value in values], height=0.7)
        ends = top[["low", "high"]].to_numpy()
        if not np.isnan(ends).any():
            axes.hlines(range(len(top)), *ends.T, color="black", linewidth=0.6)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set_yticks(range(len(top)), top["name"].tolist())
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(fitted(f"contribution to {_label(attribution)}", 0.9 * figure.get_figwidth()), parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        add_headline(figure, _headline(attribution, table))
    plt.close(figure)
    return figure


def _plot_map(
    attribution: LogitAttribution, table: pd.DataFrame, cmap: str | Colormap, figsize: tuple[float, float] | None
) -> Figure:
    heads = table[table["kind"] == "head"].pivot(index="unit", columns="layer", values="contribution")
    others = table.pivot_table(index="kind", columns="layer", values="contribution", sort=False)
    shown = [kind for kind in _BELOW if kind in others.index and bool((others.loc[kind] != 0).any())]
    layers = range(int(table["layer"].to_numpy().max()) + 1)
    values = pd.concat([heads, others.loc[shown]]).reindex(columns=layers).to_numpy()
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    size = figsize or (max(3.5, min(7.0, 1.2 + 0.09 * len(layers))), 1.5 + 0.14 * max(len(values), 5))
    figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    mesh = heat_map(axes, values, cmap, -reach, reach)
    axes.axhline(len(heads) - 0.5, color="0.35", linewidth=0.6)
    labels = [*(str(head) for head in heads.index), *(_BELOW[kind] for kind in shown)]
    # Of heads as many as there is room for.
    every = max(1, round(len(labels) * _LINE / max(size[1] - _AROUND, _LINE)))
    ticks = [row for row in range(len(labels)) if row >= len(heads) or (row % every == 0 and row <= len(heads) - every)]
    axes.set_yticks(ticks, [labels[row] for row in ticks])
    axes.set_ylabel("head")
    axes.invert_yaxis()
    add_units(figure, [(mesh, axes)], f"contribution to {_label(attribution)}")
    return figure


def _plot_lines(attribution: LogitAttribution, table: pd.DataFrame, figsize: tuple[float, float] | None) -> Figure:
    figure = plt.figure(figsize=figsize or (3.8, 2.6), layout="constrained")
    axes: Axes = figure.subplots()
    kinds = list(dict.fromkeys(table["kind"]))
    styles = {KINDS[kind].title: STYLES[at] for at, kind in enumerate(kinds)}
    named = table.assign(part=[KINDS[kind].title for kind in table["kind"]])
    draw_lines(axes, named, "contribution", "part", styles, legend=len(kinds) > 1)
    if len(kinds) > 1:
        axes.legend(frameon=False)
    axes.set_ylabel(fitted(f"contribution to {_label(attribution)}", 1.6), parse_math=False)
    return figure


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
