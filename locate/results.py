"""What results have in common: files, tables, figures by name, and of several metrics one in view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

import pandas as pd
import xarray as xr
from pydantic import ConfigDict, TypeAdapter, ValidationError

from locate.errors import DataError, LocateError, suggest
from locate.showing import ROWS, Shown, first_of, numbers_in
from locate.store.netcdf import load_result, save_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Found = TypeVar("_Found", bound="Result")
_Result = TypeVar("_Result", bound="Measured")


@dataclass(frozen=True, kw_only=True, eq=False)
class Result(Shown):
    """What an analysis found: arrays, and a description that fits into JSON.

    A new one is a dataclass that adds its fields, names its files, and says which tables its arrays are. Its figures
    stand in modules of their own, and are imported when one is drawn. It shows itself by a few lines, a figure and a
    table (``Shown``); what these say of it follows from its arrays and ``info``, where it says nothing else.

    Words mean the same on every result. ``best(…)`` is the ``Site`` of its largest effect on the answer, in the
    direction that brings it where effects have one, and of what is asked for where there is a choice: where it would
    edit, as ``fit(layer=…)`` takes it. ``top(n)`` are the ``n`` largest, of patches and of what parts add to a logit by
    size, either way: a table, sites where these go on to other functions (neurons), or a circuit of them. ``peak(…)``
    is the layer of the best with its effect and the bounds of its interval. ``summary()`` are its main numbers.

    Attributes:
        stored_as: what its files are called, such as ``"trace"``.
        format: of its files.
        figures: by the name under which the result draws it, the function that does, as ``"module:function"``.
        data: the arrays.

    >>> trace.stored_as, trace.format
    ('trace', 2)
    """

    stored_as: ClassVar[str]
    format: ClassVar[int] = 1
    figures: ClassVar[Mapping[str, str]] = {}

    data: xr.Dataset

    def save(self, path: str | Path) -> Path:
        """Write everything to one netCDF file, which ``load`` reads back.

        >>> trace.save("t.nc").name
        't.nc'
        """
        return save_result(path, self.stored_as, self.format, self.data, self._plain())

    @classmethod
    def load(cls: type[_Found], path: str | Path) -> _Found:
        """Read what was saved.

        Raises:
            DataError: the file is missing, damaged, or holds something else.

        >>> type(trace).load(trace.save("t.nc")).metric
        'probability'
        """
        data, plain = load_result(path, cls.stored_as, cls.format)
        try:
            return cls._of(data, plain)
        except (KeyError, TypeError, ValidationError) as error:
            raise DataError(f"{path} is not a saved {cls.stored_as}: {error}") from error

    def to_dataframe(self) -> pd.DataFrame:
        """One row per site.

        >>> list(trace.to_dataframe().columns[-4:])
        ['score', 'standard_error', 'indirect_effect', 'token']
        """
        parts = [part.to_dataframe().reset_index() for part in self._tables()]
        table = pd.concat(parts, ignore_index=True)
        if "head" in table and bool(table["head"].isna().any()):  # empty for what is not of a head
            table["head"] = table["head"].astype("Int64")
        return self._labelled(table)

    def draw(self, name: str = "plot", **options: Any) -> "Figure":
        """One of the result's figures.

        Raises:
            LocateError: there is no figure of this name.
        """
        if name not in self.figures:
            raise LocateError(f"{type(self).__name__} has no figure {name!r}. {suggest(name, self.figures)}")
        module, function = self.figures[name].split(":")
        return getattr(import_module(module), function)(self, **options)

    def _headline(self) -> Mapping[str, str]:
        return {
            "on": self._on(),
            "sizes": " × ".join(f"{name} {size}" for name, size in self.data.sizes.items()),
            "found": self._found(),
            "best": self._chosen(),
        }

    def _on(self) -> str:
        """What was asked: by default the prompt, or the facts."""
        if prompt := getattr(self, "info", {}).get("prompt"):
            return str(prompt)
        if "fact" in self.data.coords:
            return first_of([str(text) for text in self.data["fact"].values])
        return ""

    def _found(self) -> str:
        """Its main number, with its interval; by default the first of its summary."""
        told: Any = self.summary() if hasattr(self, "summary") else None  # type: ignore[attr-defined]
        return numbers_in(told) if isinstance(told, Mapping) else ""

    def _rows(self) -> pd.DataFrame | None:
        """By default its largest, its summary, or the first rows of its table."""
        for name, given in (("top", (ROWS,)), ("summary", ())):
            found: Any = getattr(self, name)(*given) if hasattr(self, name) else None
            if isinstance(found, pd.DataFrame):
                return found
            if isinstance(found, Mapping):
                return pd.DataFrame({"measure": list(found), "value": list(found.values())})
        return self.to_dataframe()

    def _picture(self) -> "Figure | None":
        return self.plot() if "plot" in self.figures else None  # type: ignore[attr-defined]

    def _tables(self) -> Sequence[xr.Dataset]:
        """The arrays of the table, joined one below the other."""
        return [self.data]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with what helps to read it, such as tokens."""
        return table

    def _plain(self) -> dict[str, Any]:
        """All fields but the arrays."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "data"}

    @classmethod
    def _of(cls: type[_Found], data: xr.Dataset, plain: dict[str, Any]) -> _Found:
        """A result from its arrays and its description, in which tuples have become lists."""
        types, anything = get_type_hints(cls), ConfigDict(arbitrary_types_allowed=True)
        found = {name: TypeAdapter(types[name], config=anything).validate_python(one) for name, one in plain.items()}
        return cls(data=data, **found)


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


def restoring(effects: xr.DataArray, total_effect: float) -> xr.DataArray:
    """Effects, positive where they go the way of the total effect: a rank or a divergence is restored by going down."""
    return effects if total_effect >= 0 else -effects


def place_of_largest(values: xr.DataArray) -> dict[str, Any]:
    """The coordinates of the largest value; what is NaN does not count.

    >>> place_of_largest(xr.DataArray([[1.0, 3.0], [2.0, float("nan")]], dims=("layer", "head")))
    {'layer': 0, 'head': 1}
    """
    where: Any = values.argmax(dim=[str(dim) for dim in values.dims])
    return {name: values[name].values[int(index)].item() for name, index in where.items()}
