"""Exact patching of edges: what cutting each of them does to the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.circuits.circuit import Circuit
from locate.circuits.cutting import Edge, cut_edges
from locate.circuits.evaluating import by_pair
from locate.circuits.gathering import Gathered, Pairs, check_gap
from locate.circuits.judging import check_model
from locate.circuits.written import tellable
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metrics
from locate.contrast.pairs import Text
from locate.errors import LocateError, SiteError
from locate.model.weights import model_fingerprint
from locate.names import DEFAULT_BUDGET
from locate.results import Result
from locate.showing import shown
from locate.sites.components import site_written
from locate.sites.graph import Graph
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeEffects(Result):
    """What the metric is with each of some edges cut.

    Attributes:
        data: ``values`` of the metric with dims ``edge`` and ``pair`` (in order of length), ``clean`` and ``corrupted``
            with dim ``pair``, and each edge's ``writer`` and ``reader``.
        info: how they were made.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> effects = locate.patch_edges(model, pairs, edges=[("m2", "logits"), ("a0.h1", "a3.h2.q")], progress=False)
    >>> effects.effect.dims, effects.to_dataframe()["reader"].tolist()
    (('edge',), ['logits', 'a3.h2.q'])
    """

    stored_as = "edge_effects"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.circuits.patching_figures:plot_edge_effects"}

    info: dict[str, Any]

    @property
    def effect(self) -> xr.DataArray:
        """By how much cutting an edge moves the metric of the clean run, in the mean over pairs."""
        return self._moved.mean("pair")

    @property
    def standard_error(self) -> xr.DataArray:
        """Of the effect, over pairs; NaN of a single one."""
        n = self.data.sizes["pair"]
        return self._moved.std("pair", ddof=1) / n**0.5 if n > 1 else self.effect * np.nan

    @property
    def clean(self) -> float:
        """The metric with no edge cut."""
        return float(self.data["clean"].mean())

    @property
    def corrupted(self) -> float:
        """The metric with all of them cut: that of the corrupted run."""
        return float(self.data["corrupted"].mean())

    def best(self) -> Site:
        """Where the head or MLP writes whose edge has the largest effect.

        Raises:
            SiteError: no head and no MLP writes to any of the edges.

        >>> pairs = locate.tasks.ioi(model, 4)
        >>> locate.patch_edges(model, pairs, edges=[("m2", "logits")], progress=False).best()
        Site(kind='mlp', layer=2, position=None, head=None, neuron=None)
        """
        table = self.to_dataframe()
        table = table[table["writer"] != "embed"]
        if not len(table):
            raise SiteError("No head and no MLP writes to these edges, so none of them is best.")
        largest = int(np.abs(np.asarray(table["effect"])).argmax())
        return site_written(str(np.asarray(table["writer"])[largest]))

    def plot(self, **options: Any) -> "Figure":
        """The largest effects; see ``locate.plots.plot_edge_effects``."""
        return self.draw(**options)

    def _on(self) -> str:
        return f"{self.info['prompt']} ({self.info['pairs']} pairs)"

    def _found(self) -> str:
        first = self._rows().iloc[0]
        error = shown(float(first["standard_error"]))
        effect = f"{shown(float(first['effect']))}{error and f' ± {error}'}"
        return f"{self.info['metric']} {shown(self.clean)}, {first['writer']} → {first['reader']} moves it by {effect}"

    def _rows(self) -> pd.DataFrame:
        """The largest effects, either way."""
        table = self.to_dataframe()[["writer", "reader", "effect", "standard_error"]]
        return pd.DataFrame(table).sort_values("effect", key=abs, ascending=False, ignore_index=True)

    @property
    def _moved(self) -> xr.DataArray:
        return self.data["values"] - self.data["clean"]

    def _tables(self) -> Sequence[xr.Dataset]:
        return [xr.Dataset({"effect": self.effect, "standard_error": self.standard_error})]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        table = table.assign(clean=self.clean, corrupted=self.corrupted)
        return table.loc[:, ["writer", "reader", "effect", "standard_error", "clean", "corrupted"]]


@torch.inference_mode(False)
def patch_edges(
    model: TransformerBridge,
    pairs: Pairs,
    corrupt: Corruption | Text | Sequence[Text] | None = None,
    *,
    edges: Sequence[tuple[str, str] | tuple[str, str, float]] | Circuit,
    metric: Metrics | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> EdgeEffects:
    """Cut edges one at a time, and measure exactly what each of them does to the answer.

    In the clean run the reader v of an edge u → v, and nothing else, takes a_u(x′) − a_u(x) besides what it reads of
    the stream: what u writes in the corrupted run in place of what it writes in the clean one, at all positions. All
    that comes after v is computed anew. ``find_circuit`` estimates this: its scores have the same sign.

    Args:
        model: a raw-mode bridge.
        pairs: as in ``find_circuit``.
        corrupt: as in ``find_circuit``.
        edges: writer and reader of each, as ``("a3.h1", "m5")`` or ``("m5", "a7.h0.q")``; or a circuit, for the edges
            that it has.
        metric: of several the first counts; by default as in ``find_circuit``.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        The effect of each edge, in the order given.

    Raises:
        FactError: there are no pairs, or prompts of a pair do not fit each other.
        LocateError: there are no edges, a circuit is of another model, or the metric is the same in both runs.
        ModelError: as ``find_circuit`` does.
        SiteError: a component that the model does not have, or a reader that reads before its writer has written.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> best = locate.find_circuit(model, pairs, method="eap", progress=False).top(5)
    >>> effects = locate.patch_edges(model, pairs, edges=best, progress=False)
    >>> effects.to_dataframe()["effect"].shape
    (5,)
    """
    graph = tellable(model)
    named = _names(model, edges)
    places = places_of(graph, named)
    gathered = Gathered(model, pairs, corrupt, metric=metric, budget=budget)
    values, clean, corrupted, record = [], [], [], {}
    with tqdm(total=len(gathered) * len(places), desc="cutting edges", disable=not progress, delay=1) as bar:
        for contrast in gathered.contrasts():
            metrics = contrast.metrics(gathered.metric)[:1]
            each = len(contrast.rows) / len(contrast.questions.prompts)
            found = cut_edges(
                contrast, graph, places, metrics, progress=lambda rows, each=each: bar.update(rows / each)
            )
            values.append(by_pair(contrast, found[..., 0]))
            ends = contrast.ends(metrics)
            clean.append(by_pair(contrast, ends.target[:, 0].float()))
            corrupted.append(by_pair(contrast, ends.source[:, 0].float()))
            record = record or {**contrast.record, "metric": metrics[0].name, "metric_label": metrics[0].label}
    data = xr.Dataset(
        {
            "values": (("edge", "pair"), np.concatenate(values, axis=-1)),
            "clean": ("pair", np.concatenate(clean)), "corrupted": ("pair", np.concatenate(corrupted)),
        },
        coords={"writer": ("edge", [one for one, _ in named]), "reader": ("edge", [one for _, one in named])},
    )  # fmt: skip
    told = "model", "prompt", "metric", "metric_label", "answer", "target_new", "corruption"
    info = {
        **{name: record[name] for name in told},
        "pairs": len(gathered), "lengths": gathered.lengths, "model_print": model_fingerprint(model),
    }  # fmt: skip
    effects = EdgeEffects(data=data, info=info)
    check_gap(info["metric"], effects.clean, effects.corrupted)
    return effects


def load_edge_effects(path: str | Path) -> EdgeEffects:
    """Read effects of edges that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> effects = locate.patch_edges(model, pairs, edges=[("m2", "logits")], progress=False)
    >>> locate.load_edge_effects(effects.save("effects.nc")).clean == effects.clean
    True
    """
    return EdgeEffects.load(path)


def places_of(graph: Graph, edges: Sequence[tuple[str, str]]) -> list[Edge]:
    """Where edges stand in a graph.

    Raises:
        SiteError: a component that the model does not have, or a reader that reads before its writer has written.

    >>> from locate.sites.graph import graph
    >>> places_of(graph(model), [("embed", "a0.h1.q"), ("a0.h0", "m0")])
    [(0, 1), (1, 15)]
    """
    at = {one.name: place for place, one in enumerate(graph.writers)}
    to = {one.name: place for place, one in enumerate(graph.readers)}
    found = []
    for writer, reader in edges:
        if graph.writer(writer).order >= graph.reader(reader).order:
            raise SiteError(
                f"There is no edge {writer} → {reader}: {reader} reads the stream before {writer} has written to it. "
                "Turn them round, or leave it out."
            )
        found.append((at[writer], to[reader]))
    return found


def _names(
    model: TransformerBridge, edges: Sequence[tuple[str, str] | tuple[str, str, float]] | Circuit
) -> list[tuple[str, str]]:
    if isinstance(edges, Circuit):
        check_model(edges, model)
        edges = [(writer, reader) for writer, reader, _ in edges.edges]
    many = isinstance(edges, Sequence) and not isinstance(edges, str)
    if not many or any(isinstance(edge, str) or len(edge) not in (2, 3) for edge in edges):
        raise LocateError(f"edges: give pairs of a writer and a reader, as [('m5', 'logits')], found {edges!r}.")
    if not edges:
        raise LocateError("edges: there are none; give at least one.")
    return [(edge[0], edge[1]) for edge in edges]  # a circuit's own have a score as well
