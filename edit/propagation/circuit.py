"""The circuit of an edit: the edges by which what it changed reaches the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from edit.requests.probes import Probe
from locate.circuits.circuit import Circuit
from locate.circuits.comparing import CircuitDiff
from locate.circuits.selecting import feeding, on_a_path
from locate.errors import LocateError
from locate.results import Result
from locate.showing import shown, spread
from locate.sites.components import Component
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class EditCircuit(Result):
    """The smallest set of edges found that carries a share of what an edit does to the answer.

    In the edited model every edge outside of it brings what its writer writes in the base model: without any edge the
    answer is the base model's, with all it is the edited one's. All shares are of runs of such models, exact ones.

    Attributes:
        data: ``scores`` of edges and ``kept`` ones, with dims ``writer`` and ``reader``; ``differs`` by ``writer``,
            whether it writes anything else in the edited model. The logit difference o* − o by ``probe``: ``base``,
            ``edited`` and, with this circuit, ``circuit``; in ``values`` by ``size`` as well, of the circuits that were
            tried; and in ``random`` by ``among`` and ``sample``, of as many edges drawn at random.
        probes: what was asked.
        writers: the components that write.
        readers: those that read.
        edited: the writers that have other weights.
        info: how it was found.

    >>> carrier.share >= 0.85, carrier.n_edges <= carrier.n_differing <= carrier.n_possible
    (True, True)
    """

    stored_as = "edit circuit"
    figures: ClassVar[Mapping[str, str]] = {
        "plot": "edit.propagation.circuit_figures:plot_edit_circuit",
        "plot_curve": "edit.propagation.circuit_figures:plot_edit_curve",
    }

    probes: tuple[Probe, ...]
    writers: tuple[Component, ...]
    readers: tuple[Component, ...]
    edited: tuple[str, ...]
    info: dict[str, Any]

    @cached_property
    def circuit(self) -> Circuit:
        """Its edges as a circuit of the edited model, for all that can be asked of one.

        >>> carrier.circuit.n_edges == carrier.n_edges
        True
        """
        return Circuit(
            scores=self.data["scores"], kept=self.data["kept"], writers=self.writers, readers=self.readers,
            info=self.info,
        )  # fmt: skip

    @property
    def n_edges(self) -> int:
        """How many edges it has."""
        return self.circuit.n_edges

    @property
    def n_possible(self) -> int:
        """How many edges the model has."""
        return self.circuit.n_possible

    @property
    def n_differing(self) -> int:
        """How many of them can bring anything else than in the base model: those of writers that differ."""
        possible = np.isfinite(self.data["scores"].values)
        return int(possible[self.data["differs"].values].sum())

    @property
    def size(self) -> float:
        """Its edges as a share of all that the model has."""
        return self.n_edges / self.n_possible

    @property
    def size_of_differing(self) -> float:
        """Its edges as a share of those that can bring anything else."""
        return self.n_edges / self.n_differing

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components that take part, in order of computation."""
        return self.circuit.nodes

    @property
    def total_effect(self) -> float:
        """What the edit adds to the logit difference o* − o, in the mean over probes."""
        return float((self.data["edited"] - self.data["base"]).mean())

    @property
    def share(self) -> float:
        """What share of the total effect it carries, in the mean over probes: above 1 where the rest works against it.

        >>> 0.85 <= carrier.share
        True
        """
        return float(self._carried(self.data["circuit"]))

    @property
    def curve(self) -> xr.DataArray:
        """The share that circuits of other sizes carry, of all that were tried on the way; by ``size``.

        >>> carrier.curve.dims
        ('size',)
        """
        return self._carried(self.data["values"])

    @property
    def random(self) -> xr.DataArray:
        """The share that as many edges carry that were drawn at random, by ``sample`` and by what they were drawn
        ``among``: ``all`` edges; those on a way (``ways``) from what was edited to the logits; or ``grown`` from the
        logits as the circuit is, by scores without meaning.

        Raises:
            LocateError: none were run.

        >>> carrier.random["among"].values.tolist()
        ['all', 'ways', 'grown']
        """
        if "random" not in self.data:
            raise LocateError("No random edges were run; ask for them by random=….")
        return self._carried(self.data["random"])

    def by_probe(self) -> pd.DataFrame:
        """One row for each probe: what is asked, both models' logit differences, the effect and the share carried.

        >>> carrier.by_probe()["role"].tolist()
        ['edit']
        """
        ends = {name: self.data[name].values for name in ("base", "edited", "circuit")}
        table = pd.DataFrame([{name: getattr(one, name) for name in ("role", "text", "new", "old")}
                              for one in self.probes]).assign(**ends)  # fmt: skip
        effect = table["edited"] - table["base"]
        return table.assign(effect=effect, share=(table["circuit"] - table["base"]) / effect.replace(0, np.nan))

    def summary(self) -> pd.Series:
        """Its size both ways, what it carries, and what random edges carry: the mean, and bounds of 95% of them.

        >>> int(carrier.summary()["edges"]) == carrier.n_edges
        True
        """
        row: dict[str, Any] = {
            "edges": self.n_edges, "nodes": len(self.nodes), "size": self.size,
            "size_of_differing": self.size_of_differing, "total_effect": self.total_effect, "share": self.share,
        }  # fmt: skip
        if "random" in self.data:
            for among, values in zip(self.random["among"].values, self.random.values, strict=True):
                low, high = np.percentile(values, [2.5, 97.5])
                row |= {f"random_{among}": values.mean(), f"random_{among}_low": low, f"random_{among}_high": high}
        return pd.Series(row)

    def best(self) -> Site:
        """Where that component writes which passes on most of what was edited: by the scores of its kept edges.

        What was edited itself comes into question where it reaches the logits alone.

        >>> carrier.best().layer >= 4
        True
        """
        passing = self.data["kept"] & ~self.data["writer"].isin(list(self.edited))
        chosen = replace(self.circuit, kept=passing) if bool(passing.any()) else self.circuit
        return chosen.best()

    def largest(self, k: int) -> Circuit:
        """Its largest edges, grown from the logits, without those on no way from what was edited.

        >>> carrier.largest(20).n_edges <= 20
        True
        """
        chosen = self.circuit.top(min(k, self.n_edges))
        source = self.data["writer"].isin(list(self.edited)).values
        kept = on_a_path(chosen.kept.values, feeding(self.writers, self.readers), source)
        return replace(chosen, kept=chosen.kept.copy(data=kept))

    def diff(self, other: "EditCircuit") -> CircuitDiff:
        """How it differs from the circuit of another edit of the same model, or of one built alike.

        Raises:
            LocateError: the other is of a model that is built otherwise.

        >>> carrier.diff(carrier).jaccard
        1.0
        """
        return self.circuit.diff(other.circuit)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each of its edges, the largest first; a ``score`` is what cutting it is estimated to do.

        >>> len(carrier.to_dataframe()) == carrier.n_edges
        True
        """
        table = self.circuit.to_dataframe().query("kept").drop(columns=["standard_error", "kept"])
        return table.sort_values("score", key=abs, ascending=False, ignore_index=True)

    def plot(self, **options: Any) -> "Figure":
        """A layered graph of its largest edges; see ``plot_edit_circuit`` beside this module."""
        return self.draw(**options)

    def plot_curve(self, **options: Any) -> "Figure":
        """The share carried over the number of edges; see ``plot_edit_curve`` beside this module."""
        return self.draw("plot_curve", **options)

    def _carried(self, values: xr.DataArray) -> xr.DataArray:
        return (values - self.data["base"]).mean("probe") / self.total_effect

    def _plain(self) -> dict[str, Any]:
        parts = {name: [vars(one) for one in getattr(self, name)] for name in ("probes", "writers", "readers")}
        return {**super()._plain(), **parts}

    def _on(self) -> str:
        first, n = self.probes[0], len(self.probes)
        return f"{first.text}: {first.old} → {first.new}" + (f" (and {n - 1} more probes)" if n > 1 else "")

    def _headline(self) -> Mapping[str, str]:
        size = f"{self.n_edges} of {self.n_possible} edges, {len(self.nodes)} nodes"
        return {**super()._headline(), "sizes": size}

    def _found(self) -> str:
        """What it carries, and what as many random edges do."""
        own = self.summary()
        random = [f"random_ways{end}" for end in ("", "_low", "_high")]
        by_chance = f", random edges {spread(*own[random])}" if "random" in self.data else ""
        return f"carries {shown(self.share)} of an effect of {shown(self.total_effect)} logits{by_chance}"

    def _rows(self) -> pd.DataFrame:
        return pd.DataFrame(self.to_dataframe()[["writer", "reader", "score"]])


def load_edit_circuit(path: str | Path) -> EditCircuit:
    """Read the circuit of an edit that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> load_edit_circuit(carrier.save("edit-circuit.nc")).share == carrier.share
    True
    """
    return EditCircuit.load(path)
