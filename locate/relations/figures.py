"""The figure of how linear a relation is, layer by layer."""

from typing import Unpack

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from locate.figures.lines import STYLES, draw_lines
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.relations.judging import EDITS
from locate.relations.linearity import RelationLinearity
from locate.relations.maps import MAPS

# A way has the same look in both panels.
_WAYS = dict(zip(dict.fromkeys((*MAPS, *EDITS)), STYLES, strict=False))
# Of a panel, in inches.
_PANEL = 2.0


def plot_linearity(linearity: RelationLinearity, **options: Unpack[PlotOptions]) -> Figure:
    """Faithfulness and causality over layers, a line for each map or edit, with its interval over subjects shaded.

    Args:
        linearity: what ``relation_linearity`` gave.
        options: what every figure takes, ``PlotOptions``; where it is narrow, one panel stands below the other.

    >>> figure = linearity.plot()
    """
    table = linearity.to_dataframe()

    def height(width: float) -> float:
        return 2.7 if width >= 2 * _PANEL else 4.2

    with sheet(options, "plot_linearity", width=5.5, height=height, panels=2) as drawn:
        beside = drawn.width >= 2 * _PANEL
        panels = drawn.panels(*((1, 2) if beside else (2, 1)), sharex=True, sharey=True)
        for axes, measure in zip(panels, ("faithfulness", "causality"), strict=True):
            own = table.query("measure == @measure and share == share")  # what is NaN is not drawn
            styles = {way: style for way, style in _WAYS.items() if way in set(own["way"])}
            draw_lines(axes, own, "share", "way", styles, legend=False)
            axes.set_title(measure)
            axes.set_ylim(-0.02, 1.02)
            axes.set_ylabel("share of subjects" if axes is panels[0] or not beside else "")
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=3.5, markeredgewidth=0, linewidth=1)
            for colour, marker in _WAYS.values()
        ]
        drawn.legend(handles, list(_WAYS))
        drawn.headline(_headline(linearity))
    return drawn.figure


def _headline(linearity: RelationLinearity) -> str:
    info = linearity.info
    held_out = linearity.data.sizes["subject"]
    known = "" if info["known"] is None else f", {info['known']} of {info['given']} facts known"
    return f"{info['relation']}, {info['model']}: {len(info['examples'])} examples, {held_out} subjects held out{known}"
