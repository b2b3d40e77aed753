"""Layered graphs: boxes in rows and columns, and curves that run from one up to ports of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import shown_number

# Of values above zero and below: the ends of the maps in which heat is drawn.
SIGNS = ("#b2182b", "#2166ac")
# Of a row and a column, in inches, where there is room; what a figure may be wide and high.
_ROW, _COLUMN, _WIDTHS, _HEIGHT = 0.36, 0.31, (3.5, 7.0), 9.0
# In inches: margins with and without words.
_LEFT, _MARGIN = 0.42, 0.08
# How wide a curve is, in points, where there are few and where there are many; how opaque.
_THIN, _WIDE, _FEW, _MANY, _OPAQUE = 0.35, (2.4, 1.1), 30, 400, (0.35, 0.95)
_POINTS = 72


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box with a word in it.

    Attributes:
        label: the word.
        row: from below, in rows.
        column: from the left, in columns; a box without one goes over all of them.
        fill: its colour.
        bold: whether its outline is.
    """

    label: str
    row: float
    column: float | None
    fill: Any
    bold: bool = False


@dataclass(frozen=True, kw_only=True)
class Link:
    """A curve from a box up to a port of another one, or of several that share it.

    Attributes:
        start: the box it leaves, by name.
        ends: the boxes it reaches.
        port: where it arrives at them; anywhere if they have no ports.
        value: sign and width.
    """

    start: str
    ends: tuple[str, ...]
    port: str | None
    value: float


def layered_figure(
    boxes: Mapping[str, Box],
    links: Sequence[Link],
    *,
    rows: Mapping[tuple[float, float], str],
    columns: Mapping[float, str],
    ports: Mapping[str, tuple[str, Any]],
    names: tuple[str, str],
    headline: str,
    unit: str,
    name: str,
    options: PlotOptions,
) -> Figure:
    """A layered graph, as large as what is in it asks for, up to a page.

    Args:
        boxes: by name.
        links: between them.
        rows: what stands beside bands of rows, from the first to the last of each.
        columns: what stands below columns.
        ports: their names in the legend, and their colours, from left to right.
        names: of columns and rows.
        headline: over all of it.
        unit: of the links' values.
        name: of who draws it, for messages.
        options: what every figure takes.
    """
    height = 1 + max((box.row for box in boxes.values()), default=0)
    width = 1 + max((box.column for box in boxes.values() if box.column is not None), default=0)
    across, down = _size(width, height)
    with sheet(options, name, width=across, height=down) as drawn:
        shown = [port for port in ports if any(link.port == port for link in links)]
        (axes,) = drawn.panels()
        _label(axes, rows, columns, names)
        drawn.legend(
            _legend(links, {port: ports[port] for port in shown}, unit), handlelength=1.6, columnspacing=1.2,
            handletextpad=0.5, borderaxespad=0.2, borderpad=0.2, labelspacing=0.3,
        )  # fmt: skip
        drawn.headline(headline)
        inner = drawn.inner(axes)
        _Drawing(axes=axes, size=inner, width=width, height=height, boxes=boxes, ports=ports, letters=drawn.small).draw(
            links
        )
    return drawn.figure


def _size(width: float, height: float) -> tuple[float, float]:
    """Of the figure, for so many columns and rows."""
    across = _LEFT + _MARGIN + _COLUMN * width
    narrow, wide = _WIDTHS
    return (narrow if across <= narrow else min(across, wide), min(0.95 + _ROW * height, _HEIGHT))


def _label(
    axes: Axes, rows: Mapping[tuple[float, float], str], columns: Mapping[float, str], names: tuple[str, str]
) -> None:
    for low, high in list(rows)[::2]:
        axes.axhspan(low - 0.5, high + 0.5, color="0.955", linewidth=0, zorder=0)
    axes.set_yticks([(low + high) / 2 for low, high in rows], list(rows.values()))
    axes.set_xticks(list(columns), list(columns.values()))
    axes.set_xlabel(names[0], labelpad=1)
    axes.set_ylabel(names[1], labelpad=1)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def _widest(links: Sequence[Link]) -> float:
    """Of the curves, in points: less where there are many."""
    return float(np.interp(np.log(max(len(links), 1)), np.log([_FEW, _MANY]), _WIDE))


def _legend(links: Sequence[Link], ports: Mapping[str, tuple[str, Any]], unit: str) -> list[Line2D]:
    largest = max((abs(link.value) for link in links), default=0)
    text = f"{unit} above 0", f"{unit} below 0", f"width: up to {shown_number(largest)}"
    colours = (*SIGNS, "0.4")
    lines = [
        Line2D([], [], color=colour, lw=_widest(links), label=word) for colour, word in zip(colours, text, strict=True)
    ]
    marks = [
        Line2D([], [], color=colour, marker="s", markersize=3.5, lw=0, label=word) for word, colour in ports.values()
    ]
    return [*lines, *marks]


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """What is drawn on axes whose units are rows and columns, with sizes in points."""

    axes: Axes
    size: tuple[float, float]
    width: float
    height: float
    boxes: Mapping[str, Box]
    ports: Mapping[str, tuple[str, Any]]
    letters: float

    @property
    def unit(self) -> np.ndarray:
        """A point, in columns and rows."""
        return np.array([self.width, self.height - 0.2]) / (_POINTS * np.array(self.size))

    @property
    def half(self) -> np.ndarray:
        """Half a box, in points."""
        pitch = 1 / self.unit
        return np.array([min(0.43 * pitch[0], 11), min(0.26 * pitch[1], 5.5)])

    def draw(self, links: Sequence[Link]) -> None:
        """All boxes over all links, of these the largest on top."""
        self.axes.set_xlim(-0.5, self.width - 0.5)
        self.axes.set_ylim(-0.4, self.height - 0.6)
        largest, widest = max((abs(link.value) for link in links), default=1) or 1, _widest(links)
        for link in sorted(links, key=lambda one: abs(one.value)):
            self._link(link, abs(link.value) / largest, widest)
        for shared, port in sorted({(link.ends, link.port) for link in links if link.port is not None}):
            self._port(shared, port)
        for box in self.boxes.values():
            self._box(box)

    def _box(self, box: Box) -> None:
        half = self.half
        wide = box.column is None
        middle = np.array([(self.width - 1) / 2 if wide else box.column, box.row])
        reach = np.array([(self.width / 2 - 0.1) / self.unit[0] if wide else half[0], half[1]]) * self.unit
        corner = middle - reach
        self.axes.add_patch(FancyBboxPatch(
            (corner[0], corner[1]), 2 * reach[0], 2 * reach[1],
            boxstyle=f"round,pad=0,rounding_size={2 * self.unit[0]}",
            mutation_aspect=self.unit[1] / self.unit[0], facecolor=box.fill,
            edgecolor="black" if box.bold else "0.25", linewidth=1.5 if box.bold else 0.5, zorder=5,
        ))  # fmt: skip
        longest = max((len(one.label) for one in self.boxes.values() if one.column is not None), default=1)
        # Where a word does not fit into its box, row and column say it.
        if wide or (1.6 * half[1] >= self.letters and 2 * half[0] >= 0.52 * self.letters * longest):
            self.axes.text(
                middle[0], middle[1], box.label, ha="center", va="center_baseline", fontsize=self.letters, zorder=6,
                parse_math=False,
            )  # fmt: skip

    def _place(self, name: str, port: str | None) -> np.ndarray:
        """Where a port stands: at the lower edge of a box."""
        box, names = self.boxes[name], list(self.ports)
        aside = 0 if port is None else (names.index(port) - (len(names) - 1) / 2) * 0.6 * self.half[0]
        return np.array([box.column, box.row]) + self.unit * [aside, -self.half[1]]

    def _depth(self, port: str | None) -> float:
        """How far below its box a port opens, in points: lines that join ports do not meet."""
        return 0.0 if port is None else 2.0 + 1.2 * list(self.ports).index(port)

    def _port(self, ends: tuple[str, ...], port: str) -> None:
        """A mark at each box; a line between those that share it."""
        colour, depth = self.ports[port][1], self._depth(port)
        places = sorted((self._place(name, port) for name in ends), key=lambda at: at[0])
        low = places[0][1] - depth * self.unit[1]
        for at in places:
            self.axes.plot([at[0], at[0]], [low, at[1]], color=colour, lw=1.6, solid_capstyle="butt", zorder=4)
        if len(places) > 1:
            self.axes.plot([places[0][0], places[-1][0]], [low, low], color=colour, lw=0.9, zorder=4)

    def _link(self, link: Link, share: float, widest: float) -> None:
        begin, end, depth = self._ends(link)
        begin, end = begin + self.half * self.unit * [0, 1], end - self.unit * [0, depth]
        rise = end[1] - begin[1]
        # Curves that would run through the boxes of their own column bend aside.
        bends = abs(end[0] - begin[0]) < 0.6 and rise > 1 and 0 <= end[0] <= self.width - 1
        aside = (0.5 + 0.08 * min(rise, 10)) * (1 if end[0] < self.width / 2 else -1) * bends
        handle = np.array([aside, max(0.45 * rise, 0.25)])
        points = [begin, begin + handle, end + handle * [1, -1], end]
        width, opaque = _THIN + (widest - _THIN) * share, _OPAQUE[0] + (_OPAQUE[1] - _OPAQUE[0]) * share**0.5
        self.axes.add_patch(PathPatch(
            Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]), facecolor="none",
            edgecolor=(*to_rgb(SIGNS[int(link.value < 0)]), opaque), linewidth=width, capstyle="butt",
            zorder=2 + share,
        ))  # fmt: skip

    def _ends(self, link: Link) -> tuple[np.ndarray, np.ndarray, float]:
        """The row where a curve begins, where it ends, and how far below that: at wide boxes, straight at the other."""
        start, last = self.boxes[link.start], self.boxes[link.ends[0]]
        if last.column is None:
            column = self.width - 0.6 if start.column is None else start.column
            return np.array([column, start.row]), np.array([column, last.row]) - self.half * self.unit * [0, 1], 0.0
        near = (self.width - 1) / 2 if start.column is None else start.column
        end = min((self._place(name, link.port) for name in link.ends), key=lambda at: abs(at[0] - near))
        column = end[0] if start.column is None else start.column
        return np.array([column, start.row]), end, self._depth(link.port)
