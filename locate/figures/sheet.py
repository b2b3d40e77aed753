"""The sheet that a figure is drawn on: of its own, or a place on one of the user's; with its size, title and legend."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from locate.errors import LocateError, suggest
from locate.figures.options import PlotOptions
from locate.figures.style import EMBEDDED, WIDE, beside, fitted, style

# Of a legend, in inches: a letter with 7 points, and what stands before each label.
_LETTER, _HANDLE = 0.058, 0.55
# Of a unit: so many letters an inch.
_LETTERS = 12


class TextFigure(Figure):
    """A figure whose files keep letters as text (TrueType), whatever the settings are when it is saved."""

    def savefig(self, *arguments: Any, **options: Any) -> None:
        """See ``matplotlib.figure.Figure.savefig``."""
        with mpl.rc_context(EMBEDDED):
            super().savefig(*arguments, **options)


@dataclass
class Sheet:
    """Where a figure is drawn.

    Attributes:
        figure: the whole of it.
        place: what is drawn on: the figure, or a part of it.
        options: what the user asked for.
        axes: of the user's, that are still to be taken; None where panels are made.
    """

    figure: Figure
    place: Figure | SubFigure
    options: PlotOptions
    axes: list[Axes] | None = None
    _taken: list[Axes] = field(default_factory=list)

    @property
    def width(self) -> float:
        """In inches."""
        given = [*self._taken, *(self.axes or [])] if self.axes is not None else []
        if given:
            return max(float(one.get_window_extent().width) for one in given) / self.figure.dpi
        return float(self.place.bbox.width) / self.figure.dpi

    @property
    def height(self) -> float:
        """In inches."""
        return float(self.place.bbox.height) / self.figure.dpi

    @property
    def wide(self) -> bool:
        """Whether panels have room beside each other."""
        return self.width >= WIDE

    @property
    def small(self) -> float:
        """The size of what is beside the point, in points."""
        return beside(mpl.rcParams["font.size"])

    def panels(self, rows: int = 1, columns: int = 1, **options: Any) -> list[Axes]:
        """So many Axes, row by row: new ones, or the next of the user's."""
        if self.axes is None:
            own = self.place.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
        else:
            own = [self.axes.pop(0) for _ in range(rows * columns)]
        self._taken += own
        return own

    def grid(self, n: int, across: int, **options: Any) -> list[Axes]:
        """So many Axes, so many of them beside each other; none where the last line has no more."""
        if self.axes is not None:
            return self.panels(1, n)
        own = self.panels(-(-n // across), across, **options)
        for axes in own[n:]:
            axes.remove()
            self._taken.remove(axes)
        return own[:n]

    def parts(self, heights: Sequence[float]) -> list["Sheet"]:
        """Sheets below each other, as high as that."""
        if self.axes is not None:
            return [self] * len(heights)
        places: Any = self.place.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        return [
            Sheet(figure=self.figure, place=place, options={"title": None}, _taken=self._taken)
            for place in places[:, 0]
        ]

    def inner(self, axes: Axes) -> tuple[float, float]:
        """How large Axes are in inches once all else has its place: for what is drawn in sizes of its own."""
        if self.axes is None:
            self.figure.draw_without_rendering()
        box = axes.get_window_extent()
        return float(box.width) / self.figure.dpi, float(box.height) / self.figure.dpi

    def headline(self, text: str) -> None:
        """A title over all of it: the user's, or else this one; on Axes of the user's theirs alone."""
        asked = self.options.get("title", text if self.axes is None else None)
        if asked and self.axes is None:
            self.place.suptitle(fitted(asked, self.width), parse_math=False)
        elif asked:
            self._taken[0].set_title(fitted(asked, self.width), parse_math=False)
        if "title" in self.options and not asked and len(self._taken) == 1:
            self._taken[0].set_title("")  # it says the same as a headline would

    def legend(self, handles: Sequence[Any], labels: Sequence[str] | None = None, **options: Any) -> None:
        """Below all of it, in as many columns as there is room for; on Axes of the user's, in the last of them."""
        labels = [str(one.get_label()) for one in handles] if labels is None else list(labels)
        if not labels:
            return
        told = {"frameon": False, "fontsize": self.small, **options}
        if self.axes is None:
            wide = _HANDLE + _LETTER * self.small / 7 * max(map(len, labels))
            columns = min(len(labels), max(1, int(self.width / wide)))
            columns = -(-len(labels) // -(-len(labels) // columns))  # as even as can be
            made: Any = self.place.legend(handles, labels, **{"loc": "outside lower center", "ncols": columns, **told})
        else:
            made = self._taken[-1].legend(handles, labels, **{name: told[name] for name in ("frameon", "fontsize")})
        for text in made.get_texts():
            text.set_parse_math(False)

    def colorbar(self, mesh: Any, axes: Axes | Sequence[Axes], unit: str) -> None:
        """A horizontal colour bar under panels of one scale, with its unit."""
        below = [axes] if isinstance(axes, Axes) else list(axes)
        aspect = 28 if len(below) == 1 else 45
        bar = self.place.colorbar(mesh, ax=below, orientation="horizontal", aspect=aspect, pad=0.02)
        bar.outline.set_linewidth(0.6)
        bar.locator = MaxNLocator(4) if self.width / len(set(_columns(self._taken))) > 1.5 else MaxNLocator(2)
        bar.set_label(fitted(unit, self.width * (0.9 if len(below) > 1 or len(self._taken) == 1 else 0.5)),
                      parse_math=False)  # fmt: skip

    def side_bar(self, mesh: Any, axes: Sequence[Axes], unit: str) -> None:
        """An upright colour bar beside panels of one scale, with its unit."""
        bar = self.place.colorbar(mesh, ax=list(axes), aspect=12, pad=0.02)
        bar.outline.set_linewidth(0.6)
        bar.set_label(fitted(unit, 1.2), parse_math=False)

    def note(self, text: str) -> None:
        """Words below all of it; on Axes of the user's there are none."""
        if self.axes is None:
            self.place.supxlabel(fitted(text, self.width), fontsize=self.small, parse_math=False)

    def colorbars(self, meshes: Sequence[tuple[Any, Axes]], unit: str) -> None:
        """One under all panels where their colours are the same ones, else one each, and a long unit once for all."""
        if len({mesh.get_cmap().name for mesh, _ in meshes}) == 1:
            self.colorbar(meshes[0][0], [axes for _, axes in meshes], unit)
            return
        long = self.axes is None and len(unit) > _LETTERS * self.width / len(meshes)
        for mesh, axes in meshes:
            self.colorbar(mesh, axes, "" if long else unit)
        if long:
            self.place.supxlabel(fitted(unit, self.width), parse_math=False)


def _columns(axes: Sequence[Axes]) -> list[int]:
    """In which column each of them stands."""
    specs = [one.get_subplotspec() for one in axes]
    return [0 if spec is None else spec.colspan.start for spec in specs] or [0]


@contextmanager
def sheet(
    options: Mapping[str, Any],
    name: str,
    *,
    width: float,
    height: float | Callable[[float], float],
    panels: int = 1,
    layout: str | None = "constrained",
) -> Iterator[Sheet]:
    """What a figure is drawn on, in the style of all of them.

    Args:
        options: what the user asked for, as ``PlotOptions``.
        name: of the function that draws, for messages.
        width: in inches, where nothing else is asked for.
        height: in inches, for a width.
        panels: how many there will be.
        layout: of a figure of its own.

    Raises:
        LocateError: an option that there is not, more than one size, or not as many Axes as panels.

    >>> with sheet({"width": 3.3}, "plot_nothing", width=7.0, height=lambda width: width / 2) as drawn:
    ...     (axes,) = drawn.panels()
    ...     drawn.headline("Nothing")
    >>> drawn.figure.get_size_inches().tolist()
    [3.3, 1.65]
    """
    if unknown := [one for one in options if one not in PlotOptions.__annotations__]:
        raise LocateError(f"{name} takes no {unknown[0]}. {suggest(unknown[0], list(PlotOptions.__annotations__))}")
    given, sizes = options.get("ax"), [one for one in ("width", "figsize") if options.get(one) is not None]
    if len(sizes) + (given is not None) > 1:
        raise LocateError(f"{name}: {', '.join([*sizes, *(['ax'] if given is not None else [])])} each say a size; "
                          "give one of them.")  # fmt: skip
    chosen = {**options, "ax": given}
    if given is None:
        size = _size(options, name, width, height)
        with mpl.rc_context(style(size[0])):
            figure = plt.figure(figsize=size, layout=layout, FigureClass=TextFigure)  # type: ignore[arg-type]
            try:
                yield Sheet(figure=figure, place=figure, options=chosen)  # type: ignore[arg-type]
            finally:
                plt.close(figure)
        return
    if isinstance(given, Figure | SubFigure):
        place, axes = given, None
    else:
        axes = [given] if isinstance(given, Axes) else list(np.ravel(np.asarray(given, dtype=object)))
        if len(axes) != panels or not all(isinstance(one, Axes) for one in axes):
            raise LocateError(
                f"{name}: ax must be {panels} Axes, one for each panel, or a SubFigure or Figure; "
                f"found {len(axes)}: {', '.join(sorted({type(one).__name__ for one in axes}))}."
            )
        place = axes[0].get_figure()
    figure = place.get_figure(root=True)  # type: ignore[union-attr]
    own = Sheet(figure=figure, place=place, options=chosen, axes=axes)  # type: ignore[arg-type]
    with mpl.rc_context(style(own.width)):
        yield own


def _size(
    options: Mapping[str, Any], name: str, width: float, height: float | Callable[[float], float]
) -> tuple[float, float]:
    if options.get("figsize") is not None:
        wide, high = options["figsize"]
        return float(wide), float(high)
    wide = width if options.get("width") is None else options["width"]
    if not 1 <= wide <= 50:
        raise LocateError(f"{name}: width is in inches, such as 3.3 for a column or 7 for a page; found {wide}.")
    return float(wide), float(height(wide) if callable(height) else height)
