"""How two circuits of one model, or of one before and after an edit, differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from locate.errors import LocateError
from locate.sites.components import Component


@runtime_checkable
class Scored(Protocol):
    """What a circuit has that is compared."""

    @property
    def scores(self) -> xr.DataArray: ...
    @property
    def kept(self) -> xr.DataArray: ...
    @property
    def writers(self) -> tuple[Component, ...]: ...
    @property
    def readers(self) -> tuple[Component, ...]: ...
    @property
    def info(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CircuitDiff:
    """How two circuits differ.

    Attributes:
        edges: those that one of them has, with ``writer``, ``reader``, ``here`` and ``there`` (the scores of both), and
            ``where``: ``here``, ``there`` or ``both``.
        jaccard: the edges of both over the edges of either; NaN if neither has any.
        spearman: between the scores of all edges that both have scores of; NaN where there is no order to compare.

    >>> circuit.top(20).diff(circuit.top(30)).there["where"].unique().tolist()
    ['there']
    """

    edges: pd.DataFrame
    jaccard: float
    spearman: float

    @property
    def here(self) -> pd.DataFrame:
        """The edges that only the first has."""
        return self._of("here")

    @property
    def there(self) -> pd.DataFrame:
        """The edges that only the second has."""
        return self._of("there")

    @property
    def both(self) -> pd.DataFrame:
        """The edges that both have."""
        return self._of("both")

    def _of(self, where: str) -> pd.DataFrame:
        return self.edges.query("where == @where").reset_index(drop=True)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={(self.edges['where'] == name).sum()}" for name in ("here", "there", "both"))
        return f"CircuitDiff({counts}, jaccard={self.jaccard:.3f}, spearman={self.spearman:.3f})"


def check_alike(one: Scored, other: Scored) -> None:
    """Refuse circuits that are not of the same model.

    Raises:
        LocateError: saying what differs.
    """
    _check_components(one, other)
    prints = [circuit.info.get("model_print") for circuit in (one, other)]
    if prints[0] != prints[1]:
        names = [circuit.info.get("model") for circuit in (one, other)]
        raise LocateError(
            f"The circuits are of models with other weights: {names[0]} ({prints[0]}) and {names[1]} ({prints[1]}). "
            "Find both on the same model, or compare them by diff."
        )


def _check_components(one: Scored, other: Scored) -> None:
    """Refuse circuits of models that are built otherwise."""
    for side in ("writers", "readers"):
        own, its = ([part.name for part in getattr(circuit, side)] for circuit in (one, other))
        if own != its:
            odd = sorted(set(own) ^ set(its)) or [f"the order of {side}"]
            raise LocateError(
                f"The circuits are of other models: {len(own)} and {len(its)} {side}; they differ in "
                f"{', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}."
            )
        if getattr(one, side) != getattr(other, side):
            raise LocateError(f"The circuits are of other models: their {side} are the same and in another order.")


def compared(one: Scored, other: Scored) -> CircuitDiff:
    """How two circuits differ; the weights of their models may, as before and after an edit.

    Raises:
        LocateError: they are of models that are built otherwise.
    """
    _check_components(one, other)
    here, there = one.kept.values, other.kept.values
    at, to = np.nonzero(here | there)
    own, its = one.scores.values, other.scores.values
    edges = pd.DataFrame({
        "writer": one.kept["writer"].values[at], "reader": one.kept["reader"].values[to],
        "where": np.select([here[at, to] & there[at, to], here[at, to]], ["both", "here"], "there"),
        "here": own[at, to], "there": its[at, to],
    })  # fmt: skip
    scored = np.isfinite(own) & np.isfinite(its)
    ranks = [rankdata(side[scored]) for side in (own, its)]
    ordered = all(len(np.unique(side)) > 1 for side in ranks)
    return CircuitDiff(
        edges=edges,
        jaccard=float((here & there).sum() / len(edges)) if len(edges) else float("nan"),
        spearman=float(np.corrcoef(*ranks)[0, 1]) if ordered else float("nan"),
    )
