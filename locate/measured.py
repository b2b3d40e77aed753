"""What results with one or more metrics have in common: one of them is in view."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import xarray as xr

from locate.errors import LocateError

_Result = TypeVar("_Result", bound="Measured")


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A result that was measured by one or more metrics, of which one is in view; ``of`` changes the view.

    Attributes:
        data: the arrays, with a dim ``metric``, among them ``clean`` for the run that nothing was done to.
        metric: the metric in view.
        info: how the result was made.

    >>> patches.of("logit_diff").metric
    'logit_diff'
    """

    data: xr.Dataset
    metric: str
    info: dict[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics that were measured."""
        return tuple(str(name) for name in self.data["metric"].values)

    @property
    def clean(self) -> float:
        """The metric in the clean run."""
        return float(self._view("clean"))

    def of(self: _Result, metric: str) -> _Result:
        """The same result with another metric in view.

        Raises:
            LocateError: that metric was not measured.

        >>> trace.of("probability").metric
        'probability'
        """
        if metric not in self.metrics:
            raise LocateError(f"This result has no metric {metric!r}; it has {', '.join(self.metrics)}.")
        return replace(self, metric=metric)

    def _view(self, name: str) -> xr.DataArray:
        return self.data[name].sel(metric=self.metric, drop=True)
