"""A propagation as a flow: its mediating states as nodes, and the edges of a circuit as arrows between them."""

from typing import Any

import numpy as np
import pandas as pd

from edit.names import DIRECTIONS, HEAD
from edit.propagation.propagation import Propagation
from locate.circuits.circuit import Circuit
from locate.errors import SiteError
from locate.figures.flow import ARROW_COLUMNS, LOGITS, NODE_COLUMNS, Flow

_LABELS = {"mlp": "m{layer}", "attn": "a{layer}", "resid": "r{layer}", "head": "a{layer}.h{head}"}


def flow_of(found: Propagation, *, probe: int = 0, direction: str = "gained", circuit: Circuit | None = None) -> Flow:
    """One probe's flow in one direction, for ``flow_figure`` and ``flow_html`` of ``locate.figures``.

    Single heads stand where they were measured by position; else attention stands for them. A circuit's nodes have no
    position: each stands where it carries most.

    Args:
        found: from ``edit.mediate`` or ``edit.propagate``.
        probe: index of the probe, whose mediation was measured.
        direction: ``"gained"`` or ``"lost"``.
        circuit: of the edit, whose edges are drawn; without one there are no arrows.

    Raises:
        SiteError: no such probe or direction, or a probe without mediation.
        LocateError: the edit does not change the probe's answer.

    >>> flow_of(flow).n_layers                                                         # doctest: +SKIP
    9
    """
    if direction not in DIRECTIONS:
        raise SiteError(f"direction: must be one of {', '.join(DIRECTIONS)}, found {direction!r}.")
    found.share(probe)  # tells what is wrong with the probe
    parts = {str(kind): found.of_kind(str(kind)) for kind in found.mediation.coords["kind"].values}
    if HEAD in found.info["kinds"]:
        parts = {kind: part for kind, part in parts.items() if kind != "attn"} | {"head": found.of_kind(HEAD)}
    tables = []
    for kind, part in parts.items():
        own = part.sel(probe=probe, direction=direction, drop=True).rename("effect").to_dataframe().reset_index()
        tables.append(own.assign(kind=kind).dropna(subset="effect").query("effect != 0"))
    nodes: Any = pd.concat([pd.DataFrame(columns=["head"], dtype="Int64"), *tables], ignore_index=True)
    nodes = nodes.astype({"head": "Int64", "layer": int, "position": int})
    nodes["label"] = [_LABELS[one["kind"]].format(**one) for one in nodes.to_dict("records")]
    nodes.index = pd.Index([f"{one.label}@{one.position}" for one in nodes.itertuples()])
    row: Any = found.totals.loc[probe]
    return Flow(
        tokens=found.tokens[probe], n_layers=found.mediation.sizes["layer"], nodes=nodes[list(NODE_COLUMNS)],
        arrows=_arrows(circuit, nodes), total=float(row["total_effect"]),
        answers=(str(row["old"]), str(row["new"])), edited=_sites(found, nodes),
    )  # fmt: skip


def _sites(found: Propagation, nodes: Any) -> dict[str, tuple[int, int | None]]:
    """Each edited layer, at the token where its MLP carries most; without one where that was not measured."""
    sites: dict[str, tuple[int, int | None]] = {}
    for layer in found.layers:
        own = nodes[(nodes["kind"] == "mlp") & (nodes["layer"] == layer)]
        position = None if own.empty else int(own.loc[own["effect"].abs().idxmax(), "position"])
        sites[f"m{layer}@{position}"] = (layer, position)
    return sites


def _arrows(circuit: Circuit | None, nodes: Any) -> pd.DataFrame:
    """The circuit's edges, those of a head's query, key and value taken together."""
    weights: dict[tuple[str, str], float] = {}
    if circuit is not None:
        order = nodes.sort_values("effect", key=np.abs, kind="stable")
        places, network = dict(zip(order["label"], order.index, strict=True)), circuit.graph
        for writer, end, score in network.edges(data="score"):
            start, stop = (_place(network.nodes[name], places) for name in (writer, end))
            if start is not None and stop is not None:  # what carries nothing has no place
                weights[start, stop] = weights.get((start, stop), 0.0) + score
    rows = [(*ends, weight) for ends, weight in weights.items()]
    return pd.DataFrame(rows, columns=list(ARROW_COLUMNS))


def _place(node: dict[str, Any], places: dict[str, str]) -> str | None:
    """The flow's node that carries most of a circuit's node; attention stands for heads that were not measured."""
    if node["kind"] == "logits":
        return LOGITS
    kinds = {"head": ("head", "attn"), "mlp": ("mlp",)}.get(node["kind"], ())
    return next((places[label] for kind in kinds if (label := _LABELS[kind].format(**node)) in places), None)
