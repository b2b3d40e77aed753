"""Figures of causal traces."""

from collections.abc import Sequence
from typing import Literal, Unpack

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import LocateError, SiteError
from locate.figures.maps import head_figure
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import (
    HUES,
    even_lightness,
    fitted,
    heat_map,
    label_rows,
    metric_label,
    shown_number,
    token_label,
)
from locate.tracing.trace import Trace

Effect = Literal["score", "indirect"]


def plot_trace(
    trace: Trace,
    *,
    kinds: Sequence[str] | None = None,
    effect: Effect | None = None,
    cmap: str | Colormap | None = None,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Heat maps of a causal trace, one per kind: tokens down (the subject's starred), layers across.

    All panels share one colour scale, and a value is equally dark in every panel, also in greyscale.

    Args:
        trace: what ``causal_trace`` gave.
        kinds: the panels, in order; by default all that the trace has.
        effect: ``"score"`` for the metric with the state patched (the default where states are restored),
            ``"indirect"`` for how far that is from the run without a patch (the default where they are broken).
        cmap: one colour map for all panels, instead of one hue per kind.
        options: what every figure takes, ``PlotOptions``; by default a page's width for three panels.

    Returns:
        The figure, already closed in pyplot, so that a notebook shows it once: end a cell with it.

    Raises:
        SiteError: a kind that the trace does not have, or it has single heads alone.

    >>> figure = plot_trace(trace, kinds=["mlp"])
    >>> png, pdf = locate.plots.save_figure(figure, "figures", "eiffel-mlp")
    """
    present = [str(kind) for kind in trace.scores["kind"].values]
    wanted = present if kinds is None else list(kinds)
    if not wanted or not set(wanted) <= set(present):
        raise SiteError(f"This trace can be plotted for the kinds {present}, found {wanted}.")
    effect = effect or ("score" if trace.info["direction"] == "restore" else "indirect")
    values, low, high, unit = _scale(trace, trace.scores.sel(kind=wanted), effect)
    broken = trace.info["direction"] == "break"
    falling = (trace.total_effect < 0) != (effect == "score" and broken)
    labels = _token_labels(trace)
    n, height = len(wanted), 1.3 + 0.15 * max(len(labels), 5)
    with sheet(options, "plot_trace", width=max(3.5, 0.9 + 2.1 * n), height=height, panels=n) as drawn:
        panels = drawn.panels(1, n, sharex=True, sharey=True)
        meshes = []
        for kind, axes in zip(wanted, panels, strict=True):
            # What has no effect is white: where a restored metric goes down, the high end.
            hue = even_lightness(HUES[kind], reverse=falling) if cmap is None else cmap
            meshes.append((heat_map(axes, values.sel(kind=kind).values, hue, low, high), axes))
            axes.set_title(fitted(_title(trace, kind), 0.9 * drawn.width / n))
            _mark_unread(axes, trace, drawn.small)
        drawn.colorbars(meshes, unit)
        label_rows(panels[0], labels)
        drawn.headline(_headline(trace))
    return drawn.figure


def plot_trace_heads(
    trace: Trace,
    *,
    position: int = -1,
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """A heat map of the indirect effect of single heads at one token: heads down, layers across.

    Args:
        trace: a trace with ``attn_head`` among its kinds.
        position: of the token; the last by default.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: the trace has no heads, or did not visit the position.

    >>> figure = plot_trace_heads(heads)                                               # doctest: +SKIP
    """
    scores = trace.head_scores
    place = position % len(trace.tokens)
    if place not in scores["position"].values:
        raise SiteError(f"This trace did not visit position {position}; it has {trace.info['positions']}.")
    values, low, high, unit = _scale(trace, scores, "indirect")
    here = values.sel(position=place).transpose("head", "layer")
    return head_figure(
        here.values, reach=max(abs(low), abs(high)), unit=unit, headline=_headline(trace), cmap=cmap,
        name="plot_trace_heads", options=options,
        title=f"{_verb(trace)} head output at “{token_label(trace.tokens[place], False)}”",
    )  # fmt: skip


def _scale(trace: Trace, scores: xr.DataArray, effect: str) -> tuple[xr.DataArray, float, float, str]:
    label = metric_label(trace.metric, trace.info, trace.answer)
    if effect == "score":
        ends, unit, values = sorted((trace.corrupted, trace.clean)), label, scores
    elif effect == "indirect":
        sign = 1.0 if trace.info["direction"] == "restore" else -1.0
        values = (scores - trace.baseline) * sign
        ends, unit = sorted((0.0, trace.total_effect)), f"change of {label}"
    else:
        raise LocateError(f"effect must be 'score' or 'indirect', found {effect!r}.")
    return values, min(ends[0], float(values.min())), max(ends[1], float(values.max())), unit


def _mark_unread(axes: Axes, trace: Trace, size: float) -> None:
    """A line where nothing reads earlier tokens any more, in models where that is not the last layer alone."""
    layers = trace.data["layer"].values
    reaching = trace.info.get("reaching", len(layers) - 1)
    if reaching < len(layers) - 1:
        axes.axvline(reaching - 0.5, color="0.35", linewidth=0.8, linestyle=(0, (3, 2)))
        axes.text(
            reaching - 0.35, 0.98, "earlier tokens\nunread", transform=axes.get_xaxis_transform(), color="0.35",
            fontsize=size, va="top",
        )  # fmt: skip


def _headline(trace: Trace) -> str:
    label = metric_label(trace.metric, trace.info, trace.answer)
    return f"{label}: {shown_number(trace.clean)} clean, {shown_number(trace.corrupted)} with subject* corrupted"


def _token_labels(trace: Trace) -> list[str]:
    start, end = trace.subject_span
    return [token_label(trace.tokens[i], start <= i < end) for i in trace.info["positions"]]


def _verb(trace: Trace) -> str:
    return "restored" if trace.info["direction"] == "restore" else "broken"


def _title(trace: Trace, kind: str) -> str:
    verb, window = _verb(trace), trace.info["window"]
    if kind == "resid":
        severed = trace.info["severed"]
        return f"{verb} state" + (f", {MODULES[severed]} severed" if severed else "")
    return f"{verb} {MODULES[kind]} window of {window}" if window > 1 else f"{verb} {MODULES[kind]} output"


MODULES = {"mlp": "MLP", "attn": "attention"}
