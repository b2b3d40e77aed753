"""What all figures share: style, colours, heat maps, files."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator

# But for letters, whose sizes go by the figure's.
_LINES: dict[str, Any] = {
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "axes.grid": False, "figure.facecolor": "white", "axes.facecolor": "white",
}  # fmt: skip
HUES: dict[str, str] = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
# Of figures in files; how these keep letters: as text (TrueType), where matplotlib's own default is shapes (Type 3).
DPI = 200
EMBEDDED: dict[Any, Any] = {"pdf.fonttype": 42, "ps.fonttype": 42}
# In inches: from here on panels have room beside each other.
WIDE = 5.0
# CIE L*: white, so that a site without effect leaves no ink, down to where the hues can still be told apart.
_LIGHTEST, _DARKEST = 99.9, 27.0
# Of a letter, for its height: a little wider than most. A title has so many lines at most.
_LETTER, _MOST = 0.56, 4
# From one label to the next, in heights of a letter.
_SPACING = 1.2
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_WHITESPACE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣"})


def style(width: float) -> dict[Any, Any]:
    """Settings of a figure so wide (in inches), where the user has left matplotlib's own.

    Letters follow ``font.size``, which is 7 points in a column and 8 on a page unless the user set it.

    >>> with mpl.rc_context({"axes.linewidth": 2.0}):
    ...     "axes.linewidth" in style(3.3), style(3.3)["font.size"], style(7.0)["font.size"]
    (False, 7.0, 8.0)
    """
    left = {name for name, value in mpl.rcParamsDefault.items() if mpl.rcParams[name] == value}
    base = (8.0 if width >= WIDE else 7.0) if "font.size" in left else float(mpl.rcParams["font.size"])
    small = beside(base)
    letters = {
        "font.size": base, "axes.titlesize": base, "axes.labelsize": base, "xtick.labelsize": small,
        "ytick.labelsize": small, "figure.titlesize": base, "figure.labelsize": base, "legend.fontsize": small,
        "legend.title_fontsize": small,
    }  # fmt: skip
    ours = {name: value for name, value in {**_LINES, **letters}.items() if name in left}
    return {**ours, "text.usetex": False}  # tokens are no TeX


def beside(size: float) -> float:
    """The size of what is beside the point, in points, where the rest has this one.

    >>> beside(16.0), beside(7.0)
    (14.0, 7.0)
    """
    return max(7.0, 0.875 * size)


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write a figure as ``name.png`` (200 dpi) and ``name.pdf`` (with fonts that stay text).

    >>> png, pdf = save_figure(trace.plot(), "figures", "eiffel")
    >>> png.name, pdf.name
    ('eiffel.png', 'eiffel.pdf')
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with mpl.rc_context(EMBEDDED):
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
    axes.xaxis.set_major_locator(Whole())
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(values) - 0.5, -0.5)
    return mesh


class Whole(MaxNLocator):
    """Ticks at whole numbers, at most six, and fewer on a short axis."""

    def __init__(self) -> None:
        super().__init__(6, integer=True)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """See ``matplotlib.ticker.Locator.tick_values``."""
        self.set_params(nbins=min(6, max(1, self.axis.get_tick_space())))  # type: ignore[union-attr]
        return super().tick_values(vmin, vmax)


class _Places(Locator):
    """A tick for every place, or every so many where all would overlap: the last, or those of ``always``, stay."""

    def __init__(self, n: int, always: Collection[int] = ()) -> None:
        self._n, self._always = n, always

    def __call__(self) -> list[int]:
        axis: Any = self.axis
        box, low, high = axis.axes.get_window_extent(), *axis.get_view_interval()
        pixels = box.height if axis.axis_name == "y" else box.width
        points = 72 * pixels / axis.get_figure(root=True).dpi
        place = points / max(abs(high - low), 1e-9)
        every = max(1, int(np.ceil(_SPACING * axis.get_major_ticks(1)[0].label1.get_fontsize() / place - 0.01)))
        if not self._always:
            return list(range((self._n - 1) % every, self._n, every))
        return [*range(0, min(self._always) - every + 1, every), *self._always]

    def tick_values(self, vmin: float, vmax: float) -> list[int]:
        """See ``matplotlib.ticker.Locator.tick_values``."""
        return self()


def label_columns(axes: Axes, labels: Sequence[str]) -> None:
    """Names of columns 0, 1, …, upright, as many of them as there is room for."""
    _name(axes.xaxis, labels)
    axes.tick_params(axis="x", labelrotation=90)


def label_rows(axes: Axes, labels: Sequence[str], name: str = "", always: Collection[int] = ()) -> None:
    """Names of rows 0, 1, …, as many of them as there is room for; they may hold dollar signs, which are no formula."""
    _name(axes.yaxis, labels, always)
    if name:
        axes.set_ylabel(name)


def _name(axis: Axis, labels: Sequence[str], always: Collection[int] = ()) -> None:
    plain = [label.replace("$", r"\$") for label in labels]
    axis.set_major_locator(_Places(len(labels), always))
    axis.set_major_formatter(
        FuncFormatter(lambda place, _: plain[round(place)] if 0 <= round(place) < len(plain) else "")
    )


def even_lightness(name: str, steps: int = 256, *, reverse: bool = False) -> ListedColormap:
    """A single-hue colour map resampled so that its lightness (CIE L*) falls in equal steps, or rises (``reverse``)."""
    tints = mpl.colormaps[name](np.linspace(0, 1, 1024))
    colours = np.vstack([np.linspace(np.ones(4), tints[0], 64), tints])
    srgb = colours[:, :3]
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    nearest = np.searchsorted(-lightness, -np.linspace(_LIGHTEST, _DARKEST, steps))
    return ListedColormap(colours[nearest[::-1]] if reverse else colours[nearest], name=f"{name}_even")


def fitted(text: str, inches: float, lines: int = _MOST) -> str:
    """A text on as many lines as a width asks for, with an ellipsis where these would be too many."""
    letters = max(12, int(72 * inches / (_LETTER * mpl.rcParams["font.size"])))
    return fill(text, letters, max_lines=lines, placeholder=" …")


def shown_text(token: str) -> str:
    """A token as text, with white space made visible where there is nothing else."""
    return token.strip() or token.translate(_WHITESPACE)


def metric_label(metric: str, info: Mapping[str, Any], answer: str) -> str:
    """A metric's label with the answers in place."""
    label: str = info["metrics"][metric]
    new = info.get("target_new")
    return label.replace("{answer}", shown_text(answer)).replace("{new}", shown_text(new) if new else "new answer")


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


def as_percent(share: float, place: object = None) -> str:
    """A share in percent with a true minus, as ticks are written.

    >>> as_percent(-0.25)
    '−25%'
    """
    return f"{100 * share:.4g}%".replace("-", "−")


def shown_number(value: float) -> str:
    """A number with two digits that count, and a true minus."""
    return (f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}").replace("-", "−")
