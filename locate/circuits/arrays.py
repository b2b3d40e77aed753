"""The arrays of a circuit: writers by readers, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from locate.circuits.comparing import Scored
from locate.circuits.selecting import Edges
from locate.errors import LocateError
from locate.sites.components import Component
from locate.sites.graph import Graph

Array = xr.DataArray | np.ndarray | Tensor
DIMS = ("writer", "reader")


def labelled(graph: Graph, given: Array, dtype: Any = float) -> xr.DataArray:
    """An array of a graph's writers and readers with their names, NaN (or False) where no edge is possible.

    Raises:
        LocateError: it has another shape.

    >>> from locate.sites.graph import graph
    >>> labelled(graph(model), np.ones(graph(model).edges().shape)).dims
    ('writer', 'reader')
    """
    possible = graph.edges()
    coords = {"writer": [one.name for one in graph.writers], "reader": [one.name for one in graph.readers]}
    if isinstance(given, xr.DataArray):
        given = given.transpose(..., *DIMS)
    array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    if array.shape[-2:] != possible.shape or array.ndim > 3:
        raise LocateError(f"The graph has {possible.shape} writers and readers, found shape {array.shape}.")
    array = array & possible if dtype is bool else np.where(possible, array, np.nan).astype(dtype)
    return xr.DataArray(array, coords=coords, dims=("position", *DIMS)[-array.ndim :])


def check_arrays(circuit: Scored, possible: Edges) -> None:
    """Whether a circuit's arrays are of its components.

    Raises:
        LocateError: they are of others, or an edge is kept that is impossible or has no score.
    """
    names = {"writer": [one.name for one in circuit.writers], "reader": [one.name for one in circuit.readers]}
    for what in ("scores", "kept", "standard_error", "by_position"):
        found = getattr(circuit, what)
        if found is None:
            continue
        if found.dims[-2:] != DIMS or any(list(found[dim].values) != names[dim] for dim in DIMS):
            raise LocateError(
                f"A circuit's {what} must have the dims writer, reader of its {len(circuit.writers)} writers and "
                f"{len(circuit.readers)} readers by name; found {dict(found.sizes)}."
            )
    for odd, why in ((~possible, "impossible"), (~np.isfinite(circuit.scores.values), "without a finite score")):
        places = np.argwhere(circuit.kept.values & odd)
        if len(places):
            writer, reader = (names[dim][at] for dim, at in zip(DIMS, places[0], strict=True))
            raise LocateError(f"{len(places)} kept edges are {why}, as {writer} → {reader}. Leave them out.")


def named(
    arrays: Mapping[str, np.ndarray], writers: Sequence[Component], readers: Sequence[Component]
) -> dict[str, xr.DataArray]:
    """Arrays of a file with their components' names.

    Raises:
        ValueError: there are not as many components.
    """
    coords = {"writer": [one.name for one in writers], "reader": [one.name for one in readers]}
    return {
        name: xr.DataArray(one, coords=coords, dims=("position", *DIMS)[-one.ndim :]) for name, one in arrays.items()
    }
