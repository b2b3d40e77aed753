"""The flow map: layers across, tokens down, a mark for each component, arrows from the edited site to the answer."""

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from locate.errors import LocateError
from locate.figures.flow import KINDS, Flow
from locate.figures.layered import SIGNS
from locate.figures.options import PlotOptions
from locate.figures.sheet import Sheet, sheet
from locate.figures.style import Whole, drawable, label_rows, shown_number, shown_text, token_label

_MARKERS = {"attn": "o", "head": "o", "mlp": "s"}
_PLURALS = {"attn": "attention", "head": "attention", "mlp": "MLPs"}
# In inches: a row, at most and at least; a letter, a line; headline, colour bars and what is below them; a page.
_ROWS, _LETTER, _LINE, _AROUND, _PAGE = (0.21, 0.09), 0.062, 0.135, 1.75, 9.0
# Of a word beside the map, in letters.
_LONG = 14
# In points: the largest mark and the smallest, the widest arrow and the thinnest.
_MARK, _ARROW = (8.0, 1.2), (2.6, 0.4)
_POINTS = 72


def flow_figure(
    flow: Flow,
    *,
    headline: str = "",
    unit: str = "share of the total effect",
    least: float = 0.01,
    named: int = 5,
    **options: Unpack[PlotOptions],
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
        options: what every figure takes, ``PlotOptions``; a page's width by default.

    Raises:
        LocateError: it is too narrow for what stands beside the map.

    >>> figure = flow_figure(flow, headline="Paris becomes Rome", figsize=(3.3, 3.0))  # doctest: +SKIP
    """
    labels = [_cut(drawable(token_label(token, False))) for token in flow.tokens]
    answer = [_cut(drawable(shown_text(word))) for word in flow.answers]
    rows = len(flow.tokens) + 0.2 + 0.6 * any(position is None for _, position in flow.edited.values())
    high = min(max((_PAGE - _AROUND) / rows, _ROWS[1]), _ROWS[0]) * rows
    with sheet(options, "flow_figure", width=6.9, height=_AROUND + max(high, 6 * _LINE)) as drawn:
        (axes,) = drawn.panels()
        axes.set_xlim(-0.6, flow.n_layers - 0.2)
        axes.set_ylim(rows - 0.6, -0.6)
        label_rows(axes, labels)
        axes.xaxis.set_major_locator(Whole())
        axes.set_xlabel("layer", labelpad=1)
        axes.tick_params(axis="y", length=0, pad=2)
        axes.spines[:].set_visible(False)
        beside = _answer(axes, flow, answer, drawn.small)
        _explain(drawn, axes, flow, least, unit)
        drawn.headline(headline)
        inner = drawn.inner(axes)
        if min(inner) < 0.6:
            raise LocateError(
                f"flow_figure: {drawn.width:g} × {drawn.height:g} inches leave no room for the map; give more."
            )
        cell = (inner[0] / flow.n_layers, inner[1] / rows)
        beside.set_x(flow.logits[0] + 0.06 / cell[0])
        drawing = _Drawing(axes=axes, cell=cell, flow=flow, least=least)
        drawing.tiles()
        drawing.arrows()
        drawing.marks()
        drawing.stars()
        drawing.names(named, drawn.small)
    return drawn.figure


def _cut(word: str) -> str:
    return word if len(word) <= _LONG else f"{word[: _LONG - 1]}…"


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

    def names(self, most: int, size: float) -> None:
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
                        middle[0], middle[1], node["label"], fontsize=size, ha="center", va="center", zorder=7,
                        path_effects=[withStroke(linewidth=1.5, foreground="white", alpha=0.85)], parse_math=False,
                    )  # fmt: skip
                    break


def _answer(axes: Axes, flow: Flow, words: list[str], size: float) -> Any:
    """The old word, the new one and the effect, beside the last token."""
    x, y = flow.logits
    effect = f"{flow.total:+.1f}".replace("-", "−")
    return axes.text(
        x, y + 0.5, f"{words[0]}\n→ {words[1]}\n{effect}", fontsize=size, ha="left", va="bottom", parse_math=False,
        linespacing=1.15,
    )  # fmt: skip


def _explain(drawn: Sheet, axes: Axes, flow: Flow, least: float, unit: str) -> None:
    """Colour bars, and what marks and widths are."""
    kinds = list(dict.fromkeys(flow.places["kind"]))
    components = " and ".join(
        dict.fromkeys({"mlp": "MLPs"}.get(kind, "attention") for kind in kinds if kind in _MARKERS)
    )
    bars = [(True, "states (tiles)"), (False, f"{components} (marks)")]
    shown = [(states, title) for states, title in bars if flow.reach(states=states)]
    for states, title in shown[::-1]:
        drawn.colorbar(flow.scale(states=states), axes, f"{title}: {unit}")
    curves: Any = flow.curves(least)
    marks = [
        Line2D([], [], lw=0, marker=_MARKERS[kind], color="0.6", markeredgecolor="0.2", label=KINDS[kind][0])
        for kind in kinds if kind in _MARKERS
    ]  # fmt: skip
    if flow.sites:
        marks.append(Line2D([], [], lw=0, marker="*", color="#ffd23f", markeredgecolor="black", label="edited site"))
    if len(curves):
        widest = f"carries up to {shown_number(curves['share'].abs().max())}"
        marks.append(Line2D([], [], lw=_ARROW[0], color=SIGNS[0], alpha=0.75, label=widest))
    drawn.legend(marks, handlelength=1.1, columnspacing=0.9, handletextpad=0.3, borderaxespad=0.1, borderpad=0.1)
