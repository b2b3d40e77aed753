"""What results have in common: figures by name, and of several metrics one in view."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import xarray as xr

from locate.errors import LocateError, suggest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Result = TypeVar("_Result", bound="Measured")


class Result:
    """What an analysis found. Its figures stand in modules of their own, and are imported when one is drawn.

    Attributes:
        figures: by the name under which the result draws it, the function that does, as ``"module:function"``.

    >>> Result.figures
    {}
    """

    figures: ClassVar[Mapping[str, str]] = {}

    def draw(self, name: str = "plot", **options: Any) -> "Figure":
        """One of the result's figures.

        Raises:
            LocateError: there is no figure of this name.
        """
        if name not in self.figures:
            raise LocateError(f"{type(self).__name__} has no figure {name!r}. {suggest(name, self.figures)}")
        module, function = self.figures[name].split(":")
        return getattr(import_module(module), function)(self, **options)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured(Result):
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
