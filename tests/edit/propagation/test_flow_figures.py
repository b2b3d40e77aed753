"""A made-up propagation and circuit as a flow."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import edit
import locate
from edit.propagation.flow_figures import flow_of
from locate.errors import SiteError
from locate.figures.flow_html import flow_html
from locate.figures.flow_map import flow_figure
from tests import tiny
from tests.figures import check_fits

KINDS = ["resid", "attn", "mlp"]


def propagation(**data: xr.DataArray) -> edit.Propagation:
    """Of two probes, of which one was measured; nothing is carried before layer 2."""
    values = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 6))
    values[..., :2], values[1] = 0, np.nan
    dims = ("probe", "direction", "kind", "position", "layer")
    coords = {"direction": ["lost", "gained"], "kind": KINDS, "layer": range(6), "position": range(4)}
    totals = pd.DataFrame(
        {"role": ["edit", "neighbour"], "text": "…", "old": "Paris", "new": "Rome", "total_effect": 5.0}
    )
    mediation = xr.DataArray(values, coords={**coords, "probe": [0, 1]}, dims=dims)
    return edit.Propagation(
        data=xr.Dataset({"mediation": mediation, **data}), totals=totals, tokens=(("The", " Tower", " is", " in"),) * 2,
        layers=(2,), info={"kinds": [*KINDS, *data]},
    )  # fmt: skip


def circuit() -> locate.Circuit:
    graph = tiny.made_up_graph(6, n_heads=2)
    scores = np.random.default_rng(1).normal(size=(len(graph.writers), len(graph.readers)))
    return locate.Circuit.of(graph, scores, model_print="tiny", info={}).top(60)


def test_states_are_nodes_and_edges_arrows():
    found, edges = propagation(), circuit()
    flow = flow_of(found, direction="lost", circuit=edges)
    assert len(flow.nodes) == 3 * 4 * 4
    own = found.mediation.sel(probe=0, direction="lost", kind="mlp", layer=2)
    best = int(np.abs(own).argmax("position"))
    assert flow.nodes.loc["m2@1", "effect"] == float(own.sel(position=1))
    assert dict(flow.edited) == {f"m2@{best}": (2, best)}
    # What enters a head enters its attention, and nothing below the edit has a place.
    network = edges.graph
    reached = [
        (writer, end, score) for writer, end, score in network.edges(data="score")
        if network.nodes[writer]["kind"] != "embed" and network.nodes[writer]["layer"] >= 2
    ]  # fmt: skip
    assert flow.arrows["weight"].sum() == pytest.approx(sum(score for *_, score in reached))
    assert {"logits"} < set(flow.arrows["end"]) <= {"logits", *flow.nodes.index}
    check_fits(flow_figure(flow, figsize=(3.3, 3.0)))
    both = {("edit", direction): flow_of(found, direction=direction) for direction in ("gained", "lost")}
    assert "a4" in flow_html(both, title="made up")


def test_heads_stand_for_attention_where_they_were_measured():
    heads = np.ones((2, 2, 4, 6, 2))
    dims = ("probe", "direction", "position", "layer", "head")
    flow = flow_of(propagation(attn_head=xr.DataArray(heads, dims=dims, coords={"direction": ["lost", "gained"]})))
    assert set(flow.nodes["kind"]) == {"resid", "mlp", "head"}
    assert flow.nodes.loc["a3.h1@2", "head"] == 1
    assert flow.arrows.empty


def test_what_was_not_measured_is_told():
    with pytest.raises(SiteError, match="was not measured"):
        flow_of(propagation(), probe=1)
    with pytest.raises(SiteError, match="found 'both'"):
        flow_of(propagation(), direction="both")
