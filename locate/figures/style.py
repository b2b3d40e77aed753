"""What all figures share: style, colours, heat maps, files."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 8, "figure.titlesize": 8, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.grid": False, "figure.facecolor": "white", "axes.facecolor": "white", "text.usetex": False,
}  # fmt: skip
HUES: dict[str, str] = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
# Of figures in files.
DPI = 200
# CIE L*: white, so that a site without effect leaves no ink, down to where the hues can still be told apart.
_LIGHTEST, _DARKEST = 99.9, 27.0
# Of a unit, in characters: more do not fit under one of several panels, or a single one.
_LONG, _LONG_ALONE = 24, 34
# Of a headline: a little fewer than there is room for.
_CHARACTERS_PER_INCH = 16
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_WHITESPACE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣"})


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
        figure.savefig(png, dpi=DPI)
        # Without a date, the same figure is the same file.
        figure.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf


def heat_map(axes: Axes, values: np.ndarray, cmap: str | Colormap, low: float, high: float) -> Any:
    """Rows down, layers across; hatched where there is nothing to show, such as attention in a layer without it."""
    if np.isnan(values).any():
        axes.patch.set(facecolor="white", edgecolor="0.75", hatch="////", linewidth=0)
    # Cells drawn as shapes stay sharp in a PDF, and their own edges hide the seams between them.
    # Edges and not centres, between which a single row or layer would have no extent.
    edges = [np.arange(n + 1) - 0.5 for n in reversed(values.shape)]
    mesh = axes.pcolormesh(*edges, values, cmap=cmap, vmin=low, vmax=high, edgecolors="face", linewidth=0.2)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(axis="y", length=0)
    return mesh


def even_lightness(name: str, steps: int = 256, *, reverse: bool = False) -> ListedColormap:
    """A single-hue colour map resampled so that its lightness (CIE L*) falls in equal steps, or rises (``reverse``)."""
    tints = mpl.colormaps[name](np.linspace(0, 1, 1024))
    colours = np.vstack([np.linspace(np.ones(4), tints[0], 64), tints])
    srgb = colours[:, :3]
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    nearest = np.searchsorted(-lightness, -np.linspace(_LIGHTEST, _DARKEST, steps))
    return ListedColormap(colours[nearest[::-1]] if reverse else colours[nearest], name=f"{name}_even")


def add_headline(figure: Figure, text: str) -> None:
    """A title over the whole figure, on as many lines as its width asks for."""
    figure.suptitle(fitted(text, figure.get_figwidth()), parse_math=False)


def fitted(text: str, inches: float) -> str:
    """A text on as many lines as a width asks for."""
    return fill(text, max(12, int(_CHARACTERS_PER_INCH * inches)))


def add_units(figure: Figure, meshes: Sequence[tuple[Any, Axes]], unit: str) -> None:
    """A colour bar under each panel, all of one scale; a long unit is written once below them."""
    long = len(unit) > (_LONG if len(meshes) > 1 else _LONG_ALONE)
    for mesh, axes in meshes:
        add_colorbar(figure, mesh, axes, "" if long else unit)
    if long:
        figure.supxlabel(fitted(unit, figure.get_figwidth()), fontsize=8, parse_math=False)


def head_figure(
    values: Float[np.ndarray, "head layer"],
    *,
    reach: float,
    title: str,
    headline: str,
    unit: str,
    cmap: str | Colormap,
    figsize: tuple[float, float] | None,
) -> Figure:
    """A heat map of single heads, heads down and layers across, even about zero."""
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (3.5, 1.4 + 0.14 * max(len(values), 5)), layout="constrained")
        axes = figure.subplots()
        mesh = heat_map(axes, values, cmap, -reach, reach)
        axes.set_ylabel("head")
        axes.set_yticks(range(len(values)))
        axes.invert_yaxis()
        axes.set_title(fitted(title, 0.95 * figure.get_figwidth()), parse_math=False)
        add_units(figure, [(mesh, axes)], unit)
        add_headline(figure, headline)
    plt.close(figure)
    return figure


def add_colorbar(figure: Figure, mesh: Any, axes: Axes | Sequence[Axes], unit: str) -> None:
    """A horizontal colour bar under a panel, with its unit."""
    bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=28, pad=0.02)
    bar.outline.set_linewidth(0.6)
    bar.locator = MaxNLocator(4)
    bar.set_label(unit, parse_math=False)


def shown_text(token: str) -> str:
    """A token as text, with white space made visible where there is nothing else."""
    return token.strip() or token.translate(_WHITESPACE)


def metric_label(metric: str, info: Mapping[str, Any], answer: str) -> str:
    """A metric's label with the answers in place."""
    label: str = info["metrics"][metric]
    return label.replace("{answer}", shown_text(answer)).replace("{new}", info.get("target_new") or "new answer")


def drawable(text: str) -> str:
    """A text on one line, with a mark in place of each letter that the figures' font does not have.

    >>> drawable("Paris 巴黎")
    'Paris ��'
    """
    line = "".join(letter if letter == " " else letter.translate(_WHITESPACE) for letter in text)
    known = (letter == " " or (letter.isprintable() and _font().get_char_index(ord(letter))) for letter in line)
    return "".join(letter if has else _UNKNOWN for letter, has in zip(line, known, strict=True))


@cache
def _font() -> FT2Font:
    return get_font(findfont(FontProperties()))


def token_label(token: str, starred: bool) -> str:
    """A token as a tick label, with a star if it belongs to the subject."""
    text = token.removeprefix(" ").translate(_WHITESPACE) or "␣"
    return f"{text}*" if starred else text


def shown_number(value: float) -> str:
    """A number with two digits that count."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
