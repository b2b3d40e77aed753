"""Heat maps side by side or one below the other, of one scale: layers across, tokens or heads down."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import LocateError
from locate.figures.style import STYLE, add_colorbar, add_headline, fitted, heat_map

# In inches: a row, at most and at least; a panel's title and axes; headline and colour bar; how wide a panel beside
# others is, at least; a page.
_ROW, _AXES, _AROUND, _WIDE, _PAGE = (0.16, 0.07), 0.5, 0.75, 1.5, 9.0
# In points, of a row's own label.
_TEXT = 7


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A heat map among others.

    Attributes:
        title: over it.
        values: rows down, layers across; NaN where there is nothing.
        labels: of the rows.
        rows: what rows are, such as ``"head"``; nothing for tokens, which say it themselves.
        stars: layer and row of each edited site.
    """

    title: str
    values: Float[np.ndarray, "row layer"]
    labels: Sequence[str]
    rows: str = ""
    stars: Sequence[tuple[int, int]] = field(default=())


def map_panels(
    panels: Sequence[Panel],
    *,
    reach: float | None = None,
    unit: str = "share of the total effect",
    headline: str = "",
    cmap: str | Colormap = "RdBu_r",
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Heat maps that share a colour bar, even about 0: side by side where rows are the same and there is room.

    Args:
        panels: of any number of rows each.
        reach: where colours end, either way; by default at the largest value. What lies beyond is drawn as if there.
        unit: of the values.
        headline: over all of it.
        cmap: a diverging colour map.
        figsize: width and height in inches; a page's width for several that stand beside each other.

    Raises:
        LocateError: no panel, one without a value, or labels that are not as many as its rows.

    >>> import numpy as np
    >>> panel = Panel(title="MLP output", values=np.eye(2, 4), labels=["The", "Tower"], stars=[(1, 1)])
    >>> figure = map_panels([panel, panel], figsize=(3.3, 2.0))
    """
    if not panels or any(np.isnan(one.values).all() or len(one.labels) != len(one.values) for one in panels):
        sizes = [(one.values.shape, len(one.labels)) for one in panels]
        raise LocateError(f"map_panels: needs panels with values and a label for each row; found {sizes}.")
    same = len({tuple(one.labels) for one in panels}) == 1
    width = figsize[0] if figsize else (6.9 if same and len(panels) > 1 else 3.3)
    across = len(panels) if same and width / len(panels) >= _WIDE else 1
    bands = panels[::across]
    free = (_PAGE if figsize is None else figsize[1]) - _AROUND - _AXES * len(bands)
    row = min(max(free / sum(len(one.labels) for one in bands), _ROW[1]), _ROW[0])
    highs = [_AXES + row * max(len(one.labels), 4) for one in bands]
    reach = reach or max(max(float(np.nanmax(np.abs(one.values))) for one in panels), 1e-9)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (width, _AROUND + sum(highs)), layout="constrained")
        grid = figure.subplots(len(bands), across, squeeze=False, sharey="row", height_ratios=highs).ravel()
        meshes = [
            _draw(axes, panel, reach, cmap, row, first=place % across == 0, last=place >= len(panels) - across)
            for place, (axes, panel) in enumerate(zip(grid, panels, strict=True))
        ]
        add_colorbar(figure, meshes[0], list(grid), fitted(unit, 0.9 * width))
        if headline:
            add_headline(figure, headline)
    plt.close(figure)
    return figure


def _draw(
    axes: Axes, panel: Panel, reach: float, cmap: str | Colormap, row: float, *, first: bool, last: bool
) -> object:
    """A map, with the labels of its rows where it is the first beside others, and layers where it is the last."""
    mesh = heat_map(axes, panel.values, cmap, -reach, reach)
    axes.set_xlabel("layer" if last else "")
    axes.set_title(fitted(panel.title, 3.0), fontsize=_TEXT + 1, parse_math=False)
    axes.set_ylim(len(panel.labels) - 0.5, -0.5)
    if first:
        every = int(np.ceil(_TEXT * 1.1 / 72 / row))  # as many labels as there is room for
        places = range((len(panel.labels) - 1) % every, len(panel.labels), every)
        axes.set_yticks(places, [panel.labels[place] for place in places], fontsize=_TEXT, parse_math=False)
        axes.set_ylabel(panel.rows)
    for layer, place in panel.stars:
        axes.plot(layer, place, "*", color="#ffd23f", markeredgecolor="black", markeredgewidth=0.5, markersize=7)
    return mesh
