"""Figures of activation patching and attention knockout."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, Unpack

import numpy as np
import xarray as xr
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import SiteError
from locate.figures.lines import STYLES, draw_lines
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import (
    fitted,
    heat_map,
    label_rows,
    metric_label,
    shown_number,
    token_label,
)
from locate.patching.average import AveragePatches
from locate.patching.knockout import Knockout
from locate.patching.patches import Patches
from locate.sites.table import site_title

_SCORE = "normalised score (0 corrupted, 1 clean)"


def plot_patches(
    patches: Patches,
    *,
    values: Literal["score", "value"] = "score",
    position: int | None = None,
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """A heat map of patches: layers across; positions, heads or neurons down.

    The colours diverge from the run that was patched, which is white.

    Args:
        patches: what ``patch`` gave.
        values: ``"score"``, where 0 is the corrupted run and 1 the clean one, or ``"value"`` for the metric itself.
        position: for patches told apart by layer, position and head (or neuron), the token to show; the only one
            where there is one.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: the patches have no such position, or need one.

    >>> figure = patches.plot()
    """
    shown = patches.scores if values == "score" else patches.values
    corrupted, clean = (0.0, 1.0) if values == "score" else (patches.corrupted, patches.clean)
    title, unit = _title(patches.info), _unit_of(patches, values)
    if "sender" in shown.dims:
        return _plot_senders(shown, clean, title, unit, _headline(patches), "plot_patches", options)
    if "position" in shown.dims and len(shown.dims) > 2:
        places = [int(place) for place in shown["position"].values]
        position = places[0] if position is None and len(places) == 1 else position
        if position is None or position % len(patches.info["tokens"]) not in places:
            raise SiteError(
                f"These patches are told apart by {', '.join(map(str, shown.dims))}: give position, one of {places}."
            )
        position %= len(patches.info["tokens"])
        shown = shown.sel(position=position)
        title += f" at “{token_label(patches.info['tokens'][position], False)}”"
    labels = None
    if shown.dims == ("layer", "position"):
        start, end = patches.info["subject_span"]
        labels = [
            token_label(patches.info["tokens"][int(place)], start <= int(place) < end)
            for place in shown["position"].values
        ]
    title += f" {_verb(patches.info)}"
    centre = corrupted if _restores(patches.info) else clean
    return _plot_map(shown, centre, title, unit, _headline(patches), cmap, "plot_patches", options, labels)


def plot_average_patches(
    average: AveragePatches, *, cmap: str | Colormap = "RdBu_r", **options: Unpack[PlotOptions]
) -> Figure:
    """A heat map of mean scores over facts: layers across; heads or neurons down. Named senders are bars.

    The colours diverge from the run that was patched, which is white; bars have the standard error over facts.

    Args:
        average: what ``average_patches`` gave.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = locate.average_patches([heads]).plot()                                # doctest: +SKIP
    """
    scores, facts = average.data["score"], f"{average.n_facts} fact{'s' * (average.n_facts > 1)}"
    label = average.info["label"].replace("{answer}", "answer").replace("{new}", "new answer")
    headline, unit = f"{label}: mean over {facts}", _SCORE
    title = _title(average.info)
    if "sender" in scores.dims:
        error = average.data["standard_error"].values
        return _plot_senders(scores, 1.0, title, unit, headline, "plot_average_patches", options, error)
    centre = 0.0 if _restores(average.info) else 1.0
    title += f" {_verb(average.info)}"
    return _plot_map(scores, centre, title, unit, headline, cmap, "plot_average_patches", options)


def _title(info: Mapping[str, Any]) -> str:
    return f"paths to {', '.join(info['receivers'])}" if "receivers" in info else site_title(info["sites"])


def _restores(info: Mapping[str, Any]) -> bool:
    return info["direction"] == "restore"


def _verb(info: Mapping[str, Any]) -> str:
    return "clean in the corrupted run" if _restores(info) else "corrupted in the clean run"


def _headline(patches: Patches) -> str:
    label = metric_label(patches.metric, patches.info, patches.info["answer"])
    return f"{label}: {shown_number(patches.clean)} clean, {shown_number(patches.corrupted)} corrupted"


def _unit_of(patches: Patches, values: str) -> str:
    """What the colours or bars of a figure say."""
    if values == "score":
        return _SCORE
    return metric_label(patches.metric, patches.info, patches.info["answer"])


def _plot_map(
    shown: xr.DataArray,
    centre: float,
    title: str,
    unit: str,
    headline: str,
    cmap: str | Colormap,
    name: str,
    options: PlotOptions,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Layers across, whatever else sites are told apart by down: under its labels, or its own numbers."""
    rows = [str(dim) for dim in shown.dims if dim != "layer"]
    table = shown.transpose(*rows, "layer").values.reshape(-1, shown.sizes["layer"])
    reach = max(float(np.nanmax(np.abs(table - centre))), 1e-9)
    height = 1.5 + 0.16 * min(max(len(table), 5), 40)
    with sheet(options, name, width=4.2, height=height) as drawn:
        (axes,) = drawn.panels()
        mesh = heat_map(axes, table, cmap, centre - reach, centre + reach)
        layers = [int(layer) for layer in shown["layer"].values]
        if layers != list(range(len(layers))):
            axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        if labels is not None:
            label_rows(axes, labels)
        elif rows:
            label_rows(axes, [str(int(unit)) for unit in shown[rows[0]].values], rows[0])
        else:
            axes.set_yticks([])
        axes.set_title(fitted(title, 0.8 * drawn.width), parse_math=False)
        drawn.colorbar(mesh, axes, unit)
        drawn.headline(headline)
    return drawn.figure


def _plot_senders(
    shown: xr.DataArray,
    start: float,
    title: str,
    unit: str,
    headline: str,
    name: str,
    options: PlotOptions,
    error: np.ndarray | None = None,
) -> Figure:
    """A bar for each sender, from the run that was patched, where bars start."""
    names, numbers = [str(name) for name in shown["sender"].values], shown.values
    with sheet(options, name, width=4.2, height=1.4 + 0.18 * len(names)) as drawn:
        (axes,) = drawn.panels()
        axes.barh(
            range(len(names)), numbers - start, left=start, xerr=error, color=STYLES[0][0], height=0.7,
            error_kw={"linewidth": 0.6},
        )  # fmt: skip
        axes.axvline(start, color="black", linewidth=0.5)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(fitted(unit, 0.8 * drawn.width), parse_math=False)
        axes.set_title(fitted(f"{title} corrupted in the clean run", 0.8 * drawn.width), parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        drawn.headline(headline)
    return drawn.figure


def plot_knockout(knockout: Knockout, *, cmap: str | Colormap = "RdBu_r", **options: Unpack[PlotOptions]) -> Figure:
    """Lines over layers of how much blocking attention changes the answer, one per source.

    Args:
        knockout: what ``attention_knockout`` gave, over layers or, for single heads, as heat maps.
        cmap: a diverging colour map, for single heads.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = knocked.plot()
    """
    change = (100 if knockout.is_relative else 1) * knockout.change
    label = metric_label(knockout.metric, knockout.info, knockout.info["answer"])
    unit = f"change of {label} [%]" if knockout.is_relative else f"change of {label}"
    sources = [str(source) for source in change["source"].values]
    heads, names = "head" in change.dims, {one: f"{knockout.info['target']} ↛ {one}" for one in sources}
    n = len(sources) if heads else 1
    width, height = (max(3.5, 2.4 * n), 1.5 + 0.16 * change.sizes["head"]) if heads else (3.8, 2.6)
    with sheet(options, "plot_knockout", width=width, height=height, panels=n) as drawn:
        panels = drawn.panels(1, n, sharex=True, sharey=True)
        if heads:
            reach = max(float(np.abs(change.values).max()), 1e-9)
            for source, axes in zip(sources, panels, strict=True):
                table = change.sel(source=source).transpose("head", "layer").values
                mesh = heat_map(axes, table, cmap, -reach, reach)
                axes.set_title(fitted(names[source], 0.75 * drawn.width / n), parse_math=False)
            drawn.colorbar(mesh, panels, unit)
            label_rows(panels[0], [str(int(head)) for head in change["head"].values], "head")
        else:
            (axes,) = panels
            table = change.to_dataframe("change").reset_index().replace({"source": names})
            draw_lines(axes, table, "change", "source", dict(zip(names.values(), cycle(STYLES), strict=False)))
            axes.set_xlabel(f"centre of the window of {knockout.info['window']} layers")
            axes.set_ylabel(fitted(unit, 1.6), parse_math=False)
            axes.legend(frameon=False)
        drawn.headline(f"Blocked attention; {label}: {shown_number(knockout.clean)} unblocked")
    return drawn.figure
