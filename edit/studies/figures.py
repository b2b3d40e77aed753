"""The figure of a study: what edits did, beside each other by method and choice of the layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edit.propagation.comparison_figures import plot_comparison
from edit.studies.result import EditStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of an evaluation, what is drawn where it was measured, in percent.
_SHOWN = ("exact match", "efficacy", "paraphrase", "neighbourhood", "locality")


def plot_study(study: EditStudy, *, measures: Sequence[str] | None = None, **options: Any) -> "Figure":
    """A row for each measure, in it a mark for each way to edit: its mean over facts with the interval.

    Args:
        study: from ``edit.study``.
        measures: which rows; by default what of an evaluation is told in percent.
        options: of the figure, as compared propagations take them.

    Raises:
        LocateError: there is no such measure, or more ways to edit than can be told apart.

    >>> figure = studied_edits.plot()
    """
    shown = [name for name in _SHOWN if name in study.measures] if measures is None else measures
    return plot_comparison(study, measures=shown, **options)
