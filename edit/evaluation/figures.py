"""A figure of an evaluation: what is said before and after, measure by measure."""

from typing import Any, Unpack

import numpy as np
from matplotlib.figure import Figure

from edit.evaluation.results import Evaluation
from locate.figures.lines import STYLES
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet

# In inches: a measure's row, and what stands above and below all of them.
_ROW, _AROUND = 0.24, 0.95
_STATES = ("edited", "unedited")
# Not between 0 and 100: scores of texts.
_APART = ("fluency", "reference score")


def plot_evaluation(evaluation: Evaluation, *, confidence: float = 0.95, **options: Unpack[PlotOptions]) -> Figure:
    """The lines of the summary, one a row: the edited and the unedited model, with the intervals over cases.

    Args:
        evaluation: from ``edit.evaluate`` or ``edit.evaluate_each``.
        confidence: of the intervals.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_evaluation(evaluation)
    >>> len(figure.axes)
    1
    """
    table: Any = evaluation.summary(confidence=confidence).drop(index=list(_APART), errors="ignore")
    with sheet(options, "plot_evaluation", width=3.3, height=_AROUND + _ROW * len(table)) as drawn:
        (axes,) = drawn.panels()
        for line in (0, 100):
            axes.axvline(line, color="0.7", linewidth=0.6, zorder=0)
        for state, (colour, marker), apart in zip(_STATES, STYLES, (-0.12, 0.12), strict=False):
            rows, means = np.arange(len(table)) + apart, table[state].to_numpy(float)
            ends = np.abs(np.stack([table[f"{state} {end}"].to_numpy(float) - means for end in ("low", "high")]))
            axes.errorbar(
                means, rows, xerr=np.nan_to_num(ends), fmt=marker, color=colour, markersize=4, elinewidth=1, label=state
            )
        axes.set_yticks(range(len(table)), list(table.index), fontsize=drawn.small)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("cases [%]")
        axes.spines[["top", "right", "left"]].set_visible(False)
        drawn.legend(*axes.get_legend_handles_labels())
        n = evaluation.rows["case"].nunique()
        drawn.headline(f"edited and unedited model, {n} case{'s' * (n > 1)}")
    return drawn.figure
