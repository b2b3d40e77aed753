"""The flow map: layers across, tokens down, a mark for each component, arrows from the edited site to the answer."""

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from locate.errors import LocateError
from locate.figures.flow import KINDS, Flow
from locate.figures.layered import SIGNS
from locate.figures.style import STYLE, drawable, fitted, shown_number, shown_text, token_label

_MARKERS = {"attn": "o", "head": "o", "mlp": "s"}
_PLURALS = {"attn": "attention", "head": "attention", "mlp": "MLPs"}
# In inches: a row, at most and at least; a letter, a line, a margin; colour bars and what is below them; a page.
_ROWS, _LETTER, _LINE, _MARGIN, _BELOW, _PAGE = (0.21, 0.09), 0.062, 0.135, 0.07, 1.06, 9.0
# Of a word beside the map, in letters.
_LONG = 14
# In points: the largest mark and the smallest, the widest arrow and the thinnest; text.
_MARK, _ARROW, _TEXT = (8.0, 1.2), (2.6, 0.4), 7
_POINTS = 72


def flow_figure(
    flow: Flow,
    *,
    headline: str = "",
    unit: str = "share of the total effect",
    least: float = 0.01,
    named: int = 5,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The flow map: residual states as tiles, components as marks over them, arrows as wide as what they carry.

    Colours are even about 0, which is white; tiles and marks have a scale each, since a state carries what many
    components wrote. A mark's area says the same as its colour. The edited sites are stars.

    Args:
        flow: what is drawn.
        headline: over all of it.
        unit: of the shares.
        least: shares below it are left out of marks and arrows.
        named: how many components are named, those of the largest shares.
        figsize: width and height in inches; a page's width by default, 3.3 for a column.

    Raises:
        LocateError: it is too narrow for what stands beside the map.

    >>> figure = flow_figure(flow, headline="Paris becomes Rome", figsize=(3.3, 3.0))  # doctest: +SKIP
    """
    labels = [_cut(drawable(token_label(token, False))) for token in flow.tokens]
    answer = [_cut(drawable(shown_text(word))) for word in flow.answers]
    beside = (0.1 + _LETTER * max(len(label) for label in labels), 0.15 + _LETTER * (2 + max(map(len, answer))))
    width = (figsize or (6.9, 0))[0]
    lines = fitted(headline, width)
    above = _MARGIN + (_LINE * (1 + lines.count("\n")) if lines else 0)
    rows = len(flow.tokens) + 0.2 + 0.6 * any(position is None for _, position in flow.edited.values())
    high = min(max((_PAGE - above - _BELOW) / rows, _ROWS[1]), _ROWS[0]) * rows
    size = figsize or (width, above + max(high, 6 * _LINE) + _BELOW)
    inner = (size[0] - sum(beside), size[1] - above - _BELOW)
    if min(inner) < 0.6:
        raise LocateError(f"flow_figure: {size[0]:g} × {size[1]:g} inches leave no room for the map; give more.")
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=size)
        axes = figure.add_axes((beside[0] / size[0], _BELOW / size[1], inner[0] / size[0], inner[1] / size[1]))
        axes.set_xlim(-0.6, flow.n_layers - 0.2)
        axes.set_ylim(rows - 0.6, -0.6)
        _label_axes(axes, labels, inner[1] / rows)
        drawing = _Drawing(axes=axes, cell=(inner[0] / flow.n_layers, inner[1] / rows), flow=flow, least=least)
        drawing.tiles()
        drawing.arrows()
        drawing.marks()
        drawing.stars()
        drawing.names(named)
        drawing.answer(answer)
        _explain(figure, drawing, unit)
        figure.text(
            0.5, 1 - _MARGIN / size[1], lines, ha="center", va="top", fontsize=_TEXT + 1, parse_math=False
        )  # fmt: skip
    plt.close(figure)
    return figure


def _cut(word: str) -> str:
    return word if len(word) <= _LONG else f"{word[: _LONG - 1]}…"


def _label_axes(axes: Axes, labels: list[str], row: float) -> None:
    every = int(np.ceil(0.11 / row))
    shown = range((len(labels) - 1) % every, len(labels), every)  # the last among them
    axes.set_yticks(shown, [labels[place] for place in shown], fontsize=_TEXT, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("layer", labelpad=1)
    axes.tick_params(axis="y", length=0, pad=2)
    axes.spines[:].set_visible(False)


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """What is drawn in the units of a flow, with sizes in points; a cell's are in inches."""

    axes: Axes
    cell: tuple[float, float]
    flow: Flow
    least: float

    @property
    def shown(self) -> Any:
        """The marks."""
        marks: Any = self.flow.marks(self.least)
        return marks[marks["kind"] != "resid"]

    def tiles(self) -> None:
        """A rectangle for each residual state, and a frame around the grid."""
        places: Any = self.flow.places
        n = (len(self.flow.tokens), self.flow.n_layers)
        self.axes.add_patch(Rectangle((-0.5, -0.5), n[1], n[0], fill=False, edgecolor="0.8", linewidth=0.5, zorder=1))
        states = places[places["kind"] == "resid"]
        if states.empty:
            return
        values = np.full(n, np.nan)
        values[states["position"].to_numpy(int), states["layer"].to_numpy(int)] = states["share"]
        scale: Any = self.flow.scale(states=True)
        self.axes.pcolormesh(
            *(np.arange(size + 1) - 0.5 for size in reversed(n)), values, cmap=scale.cmap, norm=scale.norm,
            edgecolors="face", linewidth=0.2, zorder=0,
        )  # fmt: skip

    def arrows(self) -> None:
        """The largest on top."""
        curves: Any = self.flow.curves(self.least)
        largest, marks = curves["share"].abs().max(), self.shown["part"]
        for end, share, points in curves[["end", "share", "points"]].itertuples(index=False, name=None):
            part = abs(share) / largest
            if end in marks.index:  # the mark's own edge
                points = points - np.outer([0, 0, 0, 1], [self._diameter(marks[end]) / 2 / _POINTS / self.cell[0], 0])
            thin = _ARROW[1] + (_ARROW[0] - _ARROW[1]) * part
            self.axes.add_patch(FancyArrowPatch(
                path=Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]), linewidth=thin,
                arrowstyle=f"-|>,head_length={2 + thin},head_width={0.8 + 0.6 * thin}", mutation_scale=1,
                color=SIGNS[int(share < 0)], alpha=0.35 + 0.4 * part, zorder=2 + part, joinstyle="miter", clip_on=False,
            ))  # fmt: skip

    def _diameter(self, part: np.ndarray | float) -> Any:
        """In points: a mark's area says its share."""
        most = min(_MARK[0], 0.55 * _POINTS * self.cell[1], 1.6 * _POINTS * self.cell[0])
        return np.maximum(most * np.sqrt(part), _MARK[1])

    def marks(self) -> None:
        """Circles of attention and squares of MLPs."""
        scale: Any = self.flow.scale(states=False)
        for marker in dict.fromkeys(_MARKERS.values()):
            own = self.shown[self.shown["kind"].map(_MARKERS) == marker]
            self.axes.scatter(
                own["x"], own["y"], s=self._diameter(own["part"].to_numpy()) ** 2, c=own["share"], cmap=scale.cmap,
                norm=scale.norm, marker=marker, edgecolors="0.2", linewidths=0.4, zorder=5, clip_on=False,
            )  # fmt: skip

    def stars(self) -> None:
        """Each edited site."""
        x, y = zip(*self.flow.sites.values(), strict=True) if self.flow.sites else ((), ())
        self.axes.plot(
            x, y, "*", color="#ffd23f", markeredgecolor="black", markeredgewidth=0.5, markersize=9, zorder=6,
            clip_on=False,
        )  # fmt: skip

    def names(self, most: int) -> None:
        """Of the largest marks, where there is room above or below or beside them."""
        taken: list[np.ndarray] = []
        for _, node in self.shown[::-1].head(most).iterrows():
            half = np.array([0.5 * _LETTER * len(node["label"]), 0.5 * _LINE]) / self.cell
            away = self._diameter(node["part"]) / 2 / _POINTS / np.array(self.cell)
            for side in ((0, -1), (0, 1), (1, 0), (-1, 0)):
                middle = np.array([node["x"], node["y"]]) + side * (half * [1.05, 0.85] + away)
                inside = (middle - half >= [-0.6, -0.6]).all() and middle[0] + half[0] <= self.flow.n_layers - 0.4
                inside = inside and middle[1] + half[1] <= len(self.flow.tokens) - 0.3
                if inside and all((np.abs(middle - other[0]) >= half + other[1]).any() for other in taken):
                    taken.append(np.stack([middle, half]))
                    self.axes.text(
                        middle[0], middle[1], node["label"], fontsize=_TEXT, ha="center", va="center", zorder=7,
                        path_effects=[withStroke(linewidth=1.5, foreground="white", alpha=0.85)], parse_math=False,
                    )  # fmt: skip
                    break

    def answer(self, words: list[str]) -> None:
        """The old word, the new one and the effect, beside the last token."""
        x, y = self.flow.logits
        effect = f"{self.flow.total:+.1f}".replace("-", "−")
        text = f"{words[0]}\n→ {words[1]}\n{effect}"
        self.axes.text(
            x + 0.06 / self.cell[0], y + 0.5, text, fontsize=_TEXT, ha="left", va="bottom", parse_math=False,
            linespacing=1.15,
        )  # fmt: skip


def _explain(figure: Figure, drawing: _Drawing, unit: str) -> None:
    """Colour bars, and what marks and widths are."""
    width, height = figure.get_size_inches()
    kinds = list(dict.fromkeys(drawing.flow.places["kind"]))
    components = " and ".join(
        dict.fromkeys({"mlp": "MLPs"}.get(kind, "attention") for kind in kinds if kind in _MARKERS)
    )
    bars = [(True, "states (tiles)"), (False, f"{components} (marks)")]
    shown = [(states, title) for states, title in bars if drawing.flow.reach(states=states)]
    share = (1 - 0.4 / width) / max(len(shown), 1)
    for place, (states, title) in enumerate(shown):
        left = 0.2 / width + place * share
        cax = figure.add_axes((left + 0.1 * share, 0.56 / height, 0.8 * share, 0.06 / height), label="<colorbar>")
        bar = figure.colorbar(drawing.flow.scale(states=states), cax=cax, orientation="horizontal")
        bar.outline.set_linewidth(0.5)  # type: ignore[operator]
        bar.locator = MaxNLocator(4)
        cax.set_title(title, fontsize=_TEXT, pad=2)
        cax.tick_params(labelsize=_TEXT, length=2, pad=1)
    figure.text(0.5, 0.235 / height, unit, ha="center", va="bottom", fontsize=_TEXT, parse_math=False)
    curves: Any = drawing.flow.curves(drawing.least)
    marks = [
        Line2D([], [], lw=0, marker=_MARKERS[kind], color="0.6", markeredgecolor="0.2", label=KINDS[kind][0])
        for kind in kinds if kind in _MARKERS
    ]  # fmt: skip
    if drawing.flow.sites:
        marks.append(Line2D([], [], lw=0, marker="*", color="#ffd23f", markeredgecolor="black", label="edited site"))
    if len(curves):
        widest = f"carries up to {shown_number(curves['share'].abs().max())}"
        marks.append(Line2D([], [], lw=_ARROW[0], color=SIGNS[0], alpha=0.75, label=widest))
    figure.legend(
        handles=marks, loc="lower center", ncols=len(marks), frameon=False, fontsize=_TEXT, handlelength=1.1,
        columnspacing=0.9, handletextpad=0.3, borderaxespad=0.1, borderpad=0.1,
    )  # fmt: skip
