"""Heat maps side by side or one below the other, of one scale: layers across, tokens or heads down."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import LocateError
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import fitted, heat_map, label_rows

# In inches: a row, at most and at least; a panel's title and axes; headline and colour bar; how wide a panel beside
# others is, at least; a page.
_ROW, _AXES, _AROUND, _WIDE, _PAGE = (0.16, 0.07), 0.5, 0.75, 1.5, 9.0


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
    **options: Unpack[PlotOptions],
) -> Figure:
    """Heat maps that share a colour bar, even about 0: side by side where rows are the same and there is room.

    Args:
        panels: of any number of rows each.
        reach: where colours end, either way; by default at the largest value. What lies beyond is drawn as if there.
        unit: of the values.
        headline: over all of it.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``; a page's width for several that stand beside each other.

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

    def across(width: float) -> int:
        return len(panels) if same and width / len(panels) >= _WIDE else 1

    def highs(width: float) -> list[float]:
        bands = panels[:: across(width)]
        free = _PAGE - _AROUND - _AXES * len(bands)
        row = min(max(free / sum(len(one.labels) for one in bands), _ROW[1]), _ROW[0])
        return [_AXES + row * max(len(one.labels), 4) for one in bands]

    def height(width: float) -> float:
        return _AROUND + sum(highs(width))

    reach = reach or max(max(float(np.nanmax(np.abs(one.values))) for one in panels), 1e-9)
    usual = 6.9 if same and len(panels) > 1 else 3.3
    with sheet(options, "map_panels", width=usual, height=height, panels=len(panels)) as drawn:
        beside = across(drawn.width)
        ratios = highs(drawn.width)
        grid = drawn.panels(len(ratios), beside, sharey="row", height_ratios=ratios)
        meshes = [
            _draw(axes, panel, reach, cmap, first=place % beside == 0, last=place >= len(panels) - beside)
            for place, (axes, panel) in enumerate(zip(grid, panels, strict=True))
        ]
        drawn.colorbar(meshes[0], grid, unit)
        drawn.headline(headline)
    return drawn.figure


def _draw(axes: Axes, panel: Panel, reach: float, cmap: str | Colormap, *, first: bool, last: bool) -> object:
    """A map, with the labels of its rows where it is the first beside others, and layers where it is the last."""
    mesh = heat_map(axes, panel.values, cmap, -reach, reach)
    axes.set_xlabel("layer" if last else "")
    axes.set_title(fitted(panel.title, 3.0), parse_math=False)
    if first:
        label_rows(axes, panel.labels, panel.rows)
    for layer, place in panel.stars:
        axes.plot(layer, place, "*", color="#ffd23f", markeredgecolor="black", markeredgewidth=0.5, markersize=7)
    return mesh


def head_figure(
    values: Float[np.ndarray, "head layer"],
    *,
    reach: float,
    name: str,
    title: str,
    headline: str,
    unit: str,
    cmap: str | Colormap,
    options: PlotOptions,
) -> Figure:
    """A heat map of single heads, heads down and layers across, even about zero; ``name`` is that of who draws it."""
    with sheet(options, name, width=3.5, height=1.4 + 0.14 * max(len(values), 5)) as drawn:
        (axes,) = drawn.panels()
        mesh = heat_map(axes, values, cmap, -reach, reach)
        label_rows(axes, [str(head) for head in range(len(values))], "head")
        axes.set_title(fitted(title, 0.8 * drawn.width), parse_math=False)
        drawn.colorbar(mesh, axes, unit)
        drawn.headline(headline)
    return drawn.figure
