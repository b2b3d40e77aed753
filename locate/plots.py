"""Figures of what was located, ready for a paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from locate.errors import LocateError, SiteError
from locate.sites import Kind
from locate.tracing import Trace

_STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 8, "figure.titlesize": 8, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.grid": False, "figure.facecolor": "white", "axes.facecolor": "white", "text.usetex": False,
}  # fmt: skip
_HUES: dict[str, str] = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
# CIE L*: white, so that a site without effect leaves no ink, down to where the hues can still be told apart.
_LIGHTEST, _DARKEST = 99.9, 27.0
_WHITESPACE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣"})


def plot_trace(
    trace: Trace,
    *,
    kinds: Sequence[Kind] | None = None,
    effect: Literal["score", "indirect"] = "score",
    cmap: str | Colormap | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Heat maps of a causal trace, one per kind: tokens down (the subject's starred), layers across.

    All panels share one colour scale, and a value is equally dark in every panel, also in greyscale.

    Args:
        trace: what ``causal_trace`` gave.
        kinds: the panels, in order; by default all that the trace has.
        effect: ``"score"`` for the restored probability of the answer, ``"indirect"`` for how far that
            is above the corrupted run's.
        cmap: one colour map for all panels, instead of one hue per kind.
        figsize: width and height in inches; by default a page's width for three panels.

    Returns:
        The figure, already closed in pyplot, so that a notebook shows it once: end a cell with it.

    Raises:
        SiteError: a kind that the trace does not have.

    >>> figure = plot_trace(trace, kinds=["mlp"])
    >>> png, pdf = save_figure(figure, "figures", "eiffel-mlp")
    """
    present = [str(kind) for kind in trace.scores["kind"].values]
    wanted = present if kinds is None else list(kinds)
    if not wanted or not set(wanted) <= set(present):
        raise SiteError(f"This trace can be plotted for the kinds {present}, found {wanted}.")
    answer = trace.answer.strip() or trace.answer.translate(_WHITESPACE)
    if effect == "score":
        values, floor, ceiling, unit = trace.scores, trace.corrupted, trace.clean, f"p({answer})"
    elif effect == "indirect":
        values, floor, ceiling = trace.indirect_effect, 0.0, trace.total_effect
        unit = f"change of p({answer})"
    else:
        raise LocateError(f"effect must be 'score' or 'indirect', found {effect!r}.")
    values = values.sel(kind=wanted)
    low, high = min(floor, float(values.min())), max(ceiling, float(values.max()))
    labels = [_label(token, _within(i, trace.subject_span)) for i, token in enumerate(trace.tokens)]
    size = figsize or (max(3.5, 0.9 + 2.1 * len(wanted)), 1.2 + 0.16 * len(labels))
    with mpl.rc_context(_STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(wanted), sharex=True, sharey=True, squeeze=False)[0]
        for kind, axes in zip(wanted, panels, strict=True):
            hue = _even_lightness(_HUES[kind]) if cmap is None else cmap
            mesh = _heat_map(axes, values.sel(kind=kind).values, hue, low, high)
            axes.set_title(_title(kind, trace.info["window"]))
            bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=28, pad=0.02)
            bar.outline.set_linewidth(0.6)
            bar.locator = MaxNLocator(4)
            bar.set_label(unit, parse_math=False)
        # A token may hold a dollar sign, which is not the start of a formula here.
        panels[0].set_yticks(range(len(labels)), labels, parse_math=False)
        panels[0].invert_yaxis()
        clean, corrupted = _probability(trace.clean), _probability(trace.corrupted)
        figure.suptitle(f"p({answer}): {clean} clean, {corrupted} with subject* corrupted", parse_math=False)
    plt.close(figure)
    return figure


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write a figure as ``name.png`` (200 dpi) and ``name.pdf`` (with fonts that stay text).

    >>> png, pdf = save_figure(trace.plot(), "figures", "eiffel")
    >>> png.name, pdf.name
    ('eiffel.png', 'eiffel.pdf')
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure.savefig(png, dpi=200)
        # Without a date, the same figure is the same file.
        figure.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf


def _heat_map(axes: Axes, values: np.ndarray, cmap: str | Colormap, low: float, high: float) -> Any:
    # Cells drawn as shapes stay sharp in a PDF, and their own edges hide the seams between them.
    places = [np.arange(n) for n in reversed(values.shape)]
    mesh = axes.pcolormesh(*places, values, cmap=cmap, vmin=low, vmax=high, edgecolors="face", linewidth=0.2)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(axis="y", length=0)
    return mesh


def _even_lightness(name: str, steps: int = 256) -> ListedColormap:
    """A single-hue colour map resampled so that its lightness (CIE L*) falls in equal steps."""
    tints = mpl.colormaps[name](np.linspace(0, 1, 1024))
    colours = np.vstack([np.linspace(np.ones(4), tints[0], 64), tints])
    srgb = colours[:, :3]
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    nearest = np.searchsorted(-lightness, -np.linspace(_LIGHTEST, _DARKEST, steps))
    return ListedColormap(colours[nearest], name=f"{name}_even")


def _title(kind: str, window: int) -> str:
    if kind == "resid":
        return "restored state"
    name = {"mlp": "MLP", "attn": "attention"}[kind]
    return f"restored {name} window of {window}" if window > 1 else f"restored {name} output"


def _label(token: str, starred: bool) -> str:
    text = token.removeprefix(" ").translate(_WHITESPACE) or "␣"
    return f"{text}*" if starred else text


def _within(index: int, span: tuple[int, int]) -> bool:
    return span[0] <= index < span[1]


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
