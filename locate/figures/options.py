"""What every figure takes, besides what it alone does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class PlotOptions(TypedDict, total=False):
    """What every figure takes: ``plot(title=None, width=3.3)``.

    Each returns its figure, closed in pyplot, so that a notebook shows it once; with ``ax`` the one that you gave or of
    which it is a part.

    Attributes:
        ax: where to draw instead of on a figure of its own: as many Axes as there are panels, or a SubFigure or Figure
            for all of it. What was drawn on Axes has its legends there, and no headline unless ``title`` is given.
        title: over all of it, in place of the usual one; None for no title at all.
        width: in inches, with a height that fits: 3.3 for a column, 7 for a page.
        figsize: width and height in inches.

    >>> options: PlotOptions = {"title": None, "width": 3.3}
    """

    ax: "Axes | Sequence[Axes] | SubFigure | Figure | None"
    title: str | None
    width: float | None
    figsize: tuple[float, float] | None
