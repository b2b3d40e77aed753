"""Propagation of many edits: numbers of every report, by method, with intervals over facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from edit.propagation.report import PropagationReport
from locate.contrast.bootstrap import mean_interval
from locate.errors import LocateError, suggest
from locate.results import Result
from locate.showing import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class PropagationComparison(Result):
    """What reports of edits say, by method and fact.

    Attributes:
        data: ``value`` (dims ``by, fact, measure``: by method), NaN where a report does not have it.
        info: how the reports were made.

    >>> edit.compare_propagation({"ROME": [followed, followed]}).measures[0]
    'flow: edit'
    """

    stored_as = "propagation_comparison"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.comparison_figures:plot_comparison"}
    # What its figure is about.
    about: ClassVar[str] = "what reaches the answers"

    info: dict[str, Any]

    @property
    def methods(self) -> list[str]:
        """The methods that are compared."""
        return [str(name) for name in self.data["by"].values]

    @property
    def measures(self) -> list[str]:
        """What is known of them."""
        return [str(name) for name in self.data["measure"].values]

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """By measure, each method's mean over facts, its bootstrap interval, and the facts that it is of.

        >>> list(edit.compare_propagation({"ROME": [followed]}).table().columns.names)
        ['method', 'statistic']
        """
        columns: dict[tuple[str, str], np.ndarray] = {}
        for method in self.methods:
            own = self.data["value"].sel(by=method).transpose("fact", "measure").values
            mean, low, high = mean_interval(own, confidence=confidence, seed=seed)
            columns |= {
                (method, "mean"): mean, (method, "low"): low, (method, "high"): high,
                (method, "n"): (~np.isnan(own)).sum(0).astype(float),
            }  # fmt: skip
        index = pd.Index(self.measures, name="measure")
        return pd.DataFrame(columns, index=index).rename_axis(columns=["method", "statistic"])

    def difference(self, one: str, other: str, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """By measure, how much more one method has than another, paired over the facts that both have.

        Raises:
            LocateError: there is no such method.

        >>> both = edit.compare_propagation({"ROME": [followed], "MEMIT": [followed]})
        >>> float(both.difference("ROME", "MEMIT").loc["flow: edit", "mean"])
        0.0
        """
        for name in (one, other):
            if name not in self.methods:
                raise LocateError(f"There is no method {name!r}. {suggest(name, self.methods)}")
        sides = [self.data["value"].sel(by=name).transpose("fact", "measure").values for name in (one, other)]
        apart = sides[0] - sides[1]
        mean, low, high = mean_interval(apart, confidence=confidence, seed=seed)
        table = {"mean": mean, "low": low, "high": high, "n": (~np.isnan(apart)).sum(0)}
        return pd.DataFrame(table, index=pd.Index(self.measures, name="measure"))

    def _found(self) -> str:
        table: Any = self.table()
        first = [(method, table.iloc[0][method]) for method in self.methods]
        ends = [f"{method} {spread(own['mean'], own['low'], own['high'])}" for method, own in first]
        return f"{self.measures[0]}: {', '.join(ends)}"

    def _rows(self) -> pd.DataFrame:
        table: Any = self.table()
        named = {
            method: [spread(one["mean"], one["low"], one["high"]) for _, one in table[method].iterrows()]
            for method in self.methods
        }
        return pd.DataFrame({"measure": self.measures, **named})

    def plot(self, **options: Any) -> "Figure":
        """Methods beside each other, measure by measure; see ``edit.propagation.comparison_figures``."""
        return self.draw(**options)


def compare_propagation(
    reports: Mapping[str, Sequence[PropagationReport]], *, facts: Sequence[str] | None = None
) -> PropagationComparison:
    """Reports of several methods' edits of the same facts, averaged and beside each other; one method is enough.

    Args:
        reports: by method, one report for each fact, in the same order.
        facts: their names; by default the text of each edit's own probe.

    Raises:
        LocateError: there are none, methods have other numbers of reports, or their edits are of other prompts.

    >>> edit.compare_propagation({"ROME": [followed]}).methods
    ['ROME']
    """
    numbers = {name: len(each) for name, each in reports.items()}
    if not numbers or not max(numbers.values()):
        raise LocateError("There are no reports to compare; give, by method, those of its edits.")
    if len(set(numbers.values())) > 1:
        raise LocateError(f"Each method needs a report for each fact; found {numbers}.")
    n = next(iter(numbers.values()))
    if facts is not None and len(facts) != n:
        raise LocateError(f"facts: {len(facts)} names were given for {n} reports.")
    named = list(facts) if facts is not None else [_about(one) for one in next(iter(reports.values()))]
    for name, each in reports.items():
        for place, (one, theirs) in enumerate(zip(each, next(iter(reports.values())), strict=True)):
            if _about(one) != _about(theirs):
                raise LocateError(
                    f"Report {place} of {name} is of the prompt {_about(one)!r}, that of {next(iter(reports))} of "
                    f"{_about(theirs)!r}: numbers are paired by fact. Give reports of the same facts, in one order."
                )
    told = {name: [one.summary() for one in each] for name, each in reports.items()}
    measures = list(dict.fromkeys(key for each in told.values() for one in each for key in one))
    values = np.array([[[one.get(key, np.nan) for key in measures] for one in each] for each in told.values()], float)
    data = xr.Dataset(
        {"value": (("by", "fact", "measure"), values)},
        coords={"by": list(reports), "fact": named, "measure": measures},
    )
    models = dict.fromkeys(str(one.flow.info["model"]) for each in reports.values() for one in each)
    return PropagationComparison(data=data, info={"model": ", ".join(models), "facts": n})


def load_propagation_comparison(path: str | Path) -> PropagationComparison:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> file = edit.compare_propagation({"ROME": [followed]}).save("comparison.nc")
    >>> edit.load_propagation_comparison(file).methods
    ['ROME']
    """
    return PropagationComparison.load(path)


def _about(report: PropagationReport) -> str:
    totals: Any = report.totals
    own = totals[totals["role"] == "edit"]
    return str((own if len(own) else totals).iloc[0]["text"])
