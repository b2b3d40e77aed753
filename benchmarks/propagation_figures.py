"""The figures of docs/propagation_findings.md, from what three benchmarks left in their folders.

    python -m benchmarks.propagation_figures [--circuit FOLDER] [--reach FOLDER] [--claims FOLDER] [--out docs]

Means over facts with 95% bootstrap intervals that draw facts, as in the tables that ``benchmarks.edit_circuit``,
``benchmarks.reach`` and ``benchmarks.claims`` print.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import edit
from benchmarks.reach import CROSSING, carried
from benchmarks.single_edits import METHODS
from edit.propagation.reach import COMBINED
from locate.contrast.bootstrap import mean_interval
from locate.figures.lines import STYLES
from locate.figures.style import style
from locate.store.files import load_json
from locate.store.folders import CaseRecord, RunFolder

_WIDTH, _DPI = 7.0, 130
_LOOK = dict(zip(METHODS, STYLES, strict=False))
_ROLES = ("paraphrase", "one-hop", "two-hop", "same subject", "neighbour")


def main() -> None:
    """Draw what there are results for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("circuit", "reach", "claims"):
        folder = {"circuit": "edit-circuit"}.get(name, name)
        parser.add_argument(f"--{name}", type=Path, default=Path(f"runs/benchmark-{folder}"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    drawn = {
        "circuit": lambda: circuit_sizes(asked.circuit), "reach": lambda: reached(asked.reach),
        "carried": lambda: carriers(asked.reach), "foretold": lambda: foretold(asked.reach),
        "claims": lambda: claims(asked.claims),
    }  # fmt: skip
    for name, draw in drawn.items():
        with mpl.rc_context(style(_WIDTH)):
            figure = draw()
        figure.savefig(asked.out / f"propagation_{name}.png", dpi=_DPI)
        plt.close(figure)


def circuit_sizes(folder: Path) -> Figure:
    """How many edges each edit takes, and what as many at random carry."""
    rows: Any = pd.DataFrame([one.found for one in _done(folder).values()])
    figure = plt.figure(figsize=(_WIDTH, 2.2), layout="constrained")
    sizes, carried = figure.subplots(1, 2, width_ratios=(3, 2))
    sns.swarmplot(x=100 * rows["size"], ax=sizes, color="#0072B2", size=4)
    sizes.set(xscale="log", xlabel="edges that carry 85% of the effect, % of all (log scale)", yticks=[])
    sizes.axvline(100 * rows["size"].median(), color="black", linewidth=0.8, linestyle="--")
    sizes.axvline(5, color="0.6", linewidth=0.8)
    sizes.set_title(f"{len(rows)} ROME edits; median dashed, 5% grey")
    controls = {
        "the circuit": "share", "random edges": "random_all", "random, on the way": "random_ways",
        "random, grown\nfrom the edit": "random_grown",
    }  # fmt: skip
    _points(carried, {label: rows[name] for label, name in controls.items()}, "#0072B2", "o", 0.0)
    carried.set(xlabel="share of the effect that they carry", yticks=range(len(controls)), yticklabels=list(controls))
    carried.invert_yaxis()
    sns.despine(figure)
    return figure


def reached(folder: Path) -> Figure:
    """How much of each method's edit reaches each role, and how often it is answered there."""
    figure = plt.figure(figsize=(_WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(METHODS):
        tables = []
        for one in _flows(folder, name).values():
            table: Any = one.totals
            own = table.loc[table["role"] == "edit", "total_effect"].iloc[0]
            tables.append(table.assign(share=table["total_effect"] / own, answered=table["edited"] > 0))
        for axes, what in zip(panels, ("share", "answered"), strict=True):
            by_role = {
                role: pd.Series([one.loc[one["role"] == role, what].astype(float).mean() for one in tables])
                for role in _ROLES
            }
            _points(axes, by_role, *_LOOK[name], 0.14 * (place - 2), label=name)
    panels[0].set(xlabel="effect, as a share of that on the edit's own prompt", yticks=range(len(_ROLES)))
    panels[0].set_yticklabels(_ROLES)
    panels[0].invert_yaxis()
    panels[0].axvline(0, color="0.6", linewidth=0.6, zorder=0)
    panels[1].set(xlabel="share of probes where o* ranks above o")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    sns.despine(figure)
    return figure


def carriers(folder: Path) -> Figure:
    """Where the effect goes over to the last token, and what carries most of it behind the edited layer."""
    figure = plt.figure(figsize=(_WIDTH, 2.2), layout="constrained")
    layers, shares = figure.subplots(1, 2, width_ratios=(2, 3))
    labels = ["attention, gained", "attention, lost", "MLP, gained", "MLP, lost"]
    for place, name in enumerate(METHODS):
        table = carried(list(_flows(folder, name).values()))
        colour, marker = _LOOK[name]
        own = table.loc[CROSSING]
        layers.hlines(place, own["low"], own["high"], color=colour, linewidth=1)
        layers.plot(own["mean"], place, color=colour, marker=marker, markersize=3.5, linewidth=0)
        kinds = {"attention": "largest attention output at the last token", "MLP": "largest MLP output behind the edit"}
        for row, label in enumerate(labels):
            kind, direction = label.split(", ")
            own = table.loc[f"{kinds[kind]}, {direction}"]
            at = row + 0.14 * (place - 2)
            shares.hlines(at, own["low"], own["high"], color=colour, linewidth=1)
            shares.plot(own["mean"], at, color=colour, marker=marker, markersize=3.5, linewidth=0,
                        label=name if row == 0 else None)  # fmt: skip
    layers.set(xlabel="layer from which the last token\ncarries half of the effect", xlim=(0, 30), yticks=[])
    shares.set(xlabel="largest share of the effect in one output", xlim=(0, 1), yticks=range(4), yticklabels=labels)
    for axes in (layers, shares):
        axes.invert_yaxis()
    figure.legend(*shares.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    sns.despine(figure)
    return figure


def foretold(folder: Path) -> Figure:
    """What ranks consequences by how far the edit reaches: before editing, and by re-use of mediators."""
    figure = plt.figure(figsize=(_WIDTH, 2.9), layout="constrained")
    before, scatter = figure.subplots(1, 2)
    names: list[str] = []
    for place, name in enumerate(METHODS):
        study = edit.load_reach_study(folder / f"judged-share-{name}.nc")
        table: Any = study.correlations()
        own = table[table["outcome"] == "share"]
        names = own["score"].tolist()
        at = np.arange(len(names)) + 0.14 * (place - 2)
        colour, marker = _LOOK[name]
        before.hlines(at, own["low"], own["high"], color=colour, linewidth=1)
        before.plot(own["value"], at, color=colour, marker=marker, markersize=3.5, linewidth=0, label=name)
        if name == METHODS[0]:
            score = study.data["score"].sel(name=COMBINED).values.ravel()
            share = study.data["outcome"].sel(what="share").values.ravel()
            scatter.plot(score, share, marker=marker, color=colour, markersize=3.5, linewidth=0)
    before.set(xlabel="Spearman's ρ with the share that arrives", xlim=(-1, 1))
    before.set_yticks(range(len(names)), names)
    before.invert_yaxis()
    before.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    before.axvline(0.5, color="0.8", linewidth=0.6, zorder=0)
    scatter.set(xlabel="foretold from the unedited model (held-out fact)", ylabel=f"share that arrives, {METHODS[0]}")
    figure.legend(*before.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    sns.despine(figure)
    return figure


def claims(folder: Path) -> Figure:
    """The numbers that the published claims are judged by."""
    rows: Any = pd.DataFrame([one.found for one in _done(folder).values()])
    panels = {
        "undone by base attention patterns\n(share of the effect)": {
            "1 head": "lost, mask 1", "5 heads": "lost, mask 5", "20 heads": "lost, mask 20",
            "all heads": "lost, mask all", "20 at random": "lost, random 20",
        },
        "added at the last token\n(logits, edited − base)": {
            "attention → o*, late": "new, attn late", "MLPs → o*, late": "new, mlp late",
            "attention → o, late": "old, attn late", "MLPs → o, late": "old, mlp late",
        },
        "undone without directions\n(share of the effect)": {
            "ΔW's first": "undone, dropped 1", "ΔW's first 4": "undone, dropped 4",
            "the matrix's first": "undone, blind 1", "the matrix's first 16": "undone, blind 16",
        },
        "overlap of circuits\n(Jaccard, base to edited)": {
            "nodes": "nodes jaccard", "nodes, unrelated": "nodes jaccard, unrelated",
            "edges": "edges jaccard", "edges, unrelated": "edges jaccard, unrelated",
        },
    }  # fmt: skip
    figure = plt.figure(figsize=(_WIDTH, 4.4), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (title, columns) in zip(grid.flat, panels.items(), strict=True):
        for place, name in enumerate(METHODS):
            own = rows[rows["method"] == name]
            shown = {label: own[column].astype(float) for label, column in columns.items()}
            _points(axes, shown, *_LOOK[name], 0.14 * (place - 2), label=name)
        axes.set(xlabel=title, yticks=range(len(columns)), yticklabels=list(columns))
        axes.invert_yaxis()
        axes.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    sns.despine(figure)
    return figure


def _points(
    axes: Axes, columns: Mapping[str, pd.Series], colour: str, marker: str, shift: float, label: str | None = None
) -> None:
    """A mark with its interval in each row; a row without any fact stays empty."""
    for place, values in enumerate(columns.values()):
        own = values.to_numpy(float)
        if np.isnan(own).all():
            continue
        mean, low, high = (float(one) for one in mean_interval(own))
        axes.hlines(place + shift, low, high, color=colour, linewidth=1)
        axes.plot(mean, place + shift, color=colour, marker=marker, markersize=3.5, linewidth=0,
                  label=label if place == 0 else None)  # fmt: skip


def _done(folder: Path) -> dict[str, CaseRecord]:
    described = load_json(folder / "run.json")
    described.pop("format")
    with RunFolder.open(folder, described) as run:
        return run.done


def _flows(folder: Path, method: str) -> dict[str, edit.Propagation]:
    start = f"flow {method} "
    return {
        key.removeprefix(start): edit.load_propagation(folder / str(one.file)) for key, one in _done(folder).items()
        if key.startswith(start)
    }  # fmt: skip


if __name__ == "__main__":
    main()
