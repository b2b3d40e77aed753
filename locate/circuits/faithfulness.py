"""Faithfulness curves: what share of the answer circuits of several sizes carry, beside random ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from locate.circuits.evaluating import Measured
from locate.circuits.selecting import as_count
from locate.errors import LocateError
from locate.results import Result
from locate.showing import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The sizes at which the MIB benchmark (2025) asks, as shares of all edges.
PUBLISHED_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness(Result):
    """What circuits of several sizes carry: f(C) = (m(C) − m(∅)) / (m(M) − m(∅)).

    ``m`` is the mean of the metric over pairs, ``M`` the model, and in ``∅`` every edge brings what it brings in the
    corrupted run (or its mean, or nothing).

    Attributes:
        data: ``values`` of the metric with dims ``size`` (a count of edges) and ``pair`` (in order of length),
            ``whole`` and ``empty`` with dim ``pair``, and where random circuits were run, ``random`` with dims
            ``sample``, ``size`` and ``pair``.
        info: how it was made.

    >>> curve = circuit.faithfulness(model, pairs, sizes=[20, 0.1, 1.0], progress=False)
    >>> [round(float(one), 3) for one in curve.curve.values][-1]
    1.0
    """

    stored_as = "faithfulness"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.circuits.faithfulness_figures:plot_faithfulness"}

    info: dict[str, Any]

    @property
    def curve(self) -> xr.DataArray:
        """f by size."""
        return self.data["size"].copy(data=self._measured(self.data["values"].values).faithfulness())

    @property
    def random(self) -> xr.DataArray:
        """f of random circuits of the same sizes, sample by sample.

        Raises:
            LocateError: none were run.
        """
        if "random" not in self.data:
            raise LocateError("No random circuits were run; ask for them by random=….")
        values = self.data["random"]
        found = [self._measured(one.values).faithfulness() for one in values]
        return values.isel(pair=0, drop=True).copy(data=np.stack(found))

    def interval(self, confidence: float = 0.95) -> tuple[xr.DataArray, xr.DataArray]:
        """The bounds of f by size, from a bootstrap over pairs.

        >>> low, high = circuit.faithfulness(model, pairs, sizes=[20, 0.1, 1.0], progress=False).interval()
        >>> bool((low <= high).all())
        True
        """
        bounds = np.percentile(self._resampled(), [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)
        low, high = (self.data["size"].copy(data=one) for one in bounds)
        return low, high

    @property
    def cpr(self) -> float:
        """The circuit performance ratio: the area under f over the share of edges, more is better.

        Raises:
            LocateError: the sizes do not reach all edges.
        """
        return float(self._area(self.curve.values[None])[0])

    @property
    def cmd(self) -> float:
        """The circuit–model distance: the area between f and 1, less is better.

        Raises:
            LocateError: the sizes do not reach all edges.
        """
        return float(self._area(np.abs(1 - self.curve.values)[None])[0])

    def cmd_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The bounds of the circuit–model distance, from a bootstrap over pairs.

        >>> low, high = circuit.faithfulness(model, pairs, sizes=[20, 0.1, 1.0], progress=False).cmd_interval()
        >>> low <= high
        True
        """
        areas = self._area(np.abs(1 - self._resampled()))
        low, high = np.percentile(areas, [50 * (1 - confidence), 50 * (1 + confidence)])
        return float(low), float(high)

    @property
    def random_cmd(self) -> np.ndarray:
        """The circuit–model distance of random circuits, sample by sample."""
        return self._area(np.abs(1 - self.random.values))

    def _on(self) -> str:
        return f"{self.data.sizes['pair']} pairs, circuits of {self.data.sizes['size']} sizes"

    def _found(self) -> str:
        sizes = self.data["size"].values
        if sizes[-1] >= self.info["n_possible"]:
            return f"circuit–model distance {spread(self.cmd, *self.cmd_interval())}"
        ends = (float(one[-1]) for one in (self.curve, *self.interval()))
        return f"{int(sizes[-1])} of {self.info['n_possible']} edges carry {spread(*ends)}"

    def plot(self, **options: Any) -> "Figure":
        """f over the share of edges; see ``locate.plots.plot_faithfulness``."""
        return self.draw(**options)

    def _measured(self, values: Float[np.ndarray, "circuit pair"]) -> Measured:
        return Measured(values=values, whole=self.data["whole"].values, empty=self.data["empty"].values)

    def _resampled(self) -> Float[np.ndarray, "resample size"]:
        return self._measured(self.data["values"].values).resampled()

    def _area(self, heights: Float[np.ndarray, "curve size"]) -> Float[np.ndarray, "curve"]:
        shares = self.data["size"].values / self.info["n_possible"]
        if shares[-1] < 1:
            raise LocateError(
                f"The largest circuit has {self.data['size'].values[-1]} of {self.info['n_possible']} edges; an area "
                "needs sizes that reach all of them. Ask the whole circuit that find_circuit gives."
            )
        return np.trapezoid(heights, shares, axis=-1)

    def _tables(self) -> Sequence[xr.Dataset]:
        low, high = self.interval()
        table = {"faithfulness": self.curve, "low": low, "high": high}
        if "random" in self.data:
            table["random"] = self.random.mean("sample")
        return [xr.Dataset(table)]


def load_faithfulness(path: str | Path) -> Faithfulness:
    """Read a curve that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> curve = circuit.faithfulness(model, pairs, sizes=[20, 1.0], progress=False)
    >>> locate.load_faithfulness(curve.save("curve.nc")).cmd == curve.cmd
    True
    """
    return Faithfulness.load(path)


def counts(sizes: Sequence[int | float] | None, n_possible: int, n_edges: int) -> list[int]:
    """Sizes as counts of edges, in order; by default the published shares that the circuit has, and its own size.

    Raises:
        LocateError: a size below one edge, or above what the circuit has.

    >>> counts([0.5, 7], 100, 100), counts(None, 1000, 15)
    ([7, 50], [1, 2, 5, 10, 15])
    """
    if sizes is None:
        shares = {max(1, round(share * n_possible)) for share in PUBLISHED_SIZES}
        return sorted({one for one in shares if one <= n_edges} | {n_edges})
    if not isinstance(sizes, Sequence | np.ndarray) or not len(sizes):
        raise LocateError(f"sizes: give at least one, in a list; found {sizes!r}.")
    found = sorted({as_count(one, n_possible, "sizes") for one in sizes})
    if found[0] < 1 or found[-1] > n_edges:
        raise LocateError(f"sizes: from 1 to the circuit's {n_edges} edges, found {found}.")
    return found


def random_edges(
    possible: np.ndarray, sizes: Sequence[int], samples: int, seed: int
) -> Bool[np.ndarray, "sample size writer reader"]:
    """Edges drawn at random, of each size; the smaller ones of a sample are among its larger ones."""
    places = np.argwhere(possible)
    found = np.zeros((samples, len(sizes), *possible.shape), dtype=bool)
    for sample in range(samples):
        order = np.random.default_rng((seed, sample)).permutation(len(places))
        for index, size in enumerate(sizes):
            at, to = places[order[:size]].T
            found[sample, index, at, to] = True
    return found
