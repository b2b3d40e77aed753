"""Circuits: edges are chosen, pruned and compared as a slow and obvious way would."""

from functools import cache

import jaxtyping
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import locate
from locate import Circuit, LocateError
from locate.circuits.selecting import as_count
from locate.sites.components import site_written
from tests import tiny

LAYER = {"n_heads": 6, "n_kv_heads": 3}
grid = cache(tiny.made_up_graph)


def circuit(share=1.0, seed=0, **changed):
    whole = tiny.made_up_circuit(grid(**changed), seed=seed)
    kept = whole.kept & (np.random.default_rng(seed + 100).random(whole.kept.shape) < share)
    return locate.Circuit.of(grid(**changed), whole.scores, model_print="tiny", kept=kept, info=whole.info)


def names(found):
    return {(writer, reader) for writer, reader, _ in found.edges}


def heads_of(reader, layer=LAYER):
    """The components that a reader is an input of, from its name."""
    if "." not in reader:
        return [reader]
    attention, head, which = reader.split(".")
    shared = layer["n_heads"] // layer["n_heads" if which == "q" else "n_kv_heads"]
    return [f"{attention}.h{int(head[1:]) * shared + at}" for at in range(shared)]


def test_all_possible_edges_are_kept_at_first():
    found = tiny.made_up_circuit(grid())
    assert found.n_edges == found.n_possible == int(grid().edges().sum())
    assert not found.scores.isnull().values[grid().edges()].any()
    assert found.scores.isnull().values[~grid().edges()].all()
    assert found.nodes == (*(one.name for one in grid().writers), "logits")


def test_edges_are_in_order_of_their_absolute_scores():
    found = circuit(0.2)
    scores = [score for *_, score in found.edges]
    assert scores == sorted(scores, key=abs, reverse=True)
    assert len(scores) == found.n_edges
    assert all(float(found.scores.sel(writer=at, reader=to)) == score for at, to, score in found.edges)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_threshold_takes_the_largest(absolute):
    found = circuit(0.5)
    order = sorted(found.edges, key=lambda one: -(abs(one[2]) if absolute else one[2]))
    assert names(found.top(17, "threshold", absolute=absolute)) == {one[:2] for one in order[:17]}
    assert found.top(0.1, "threshold").n_edges == round(0.1 * found.n_possible)


def greedily(found, k, absolute, layer):
    """All edges are looked at each time."""
    inside, left, taken = {"logits"}, list(found.edges), []
    for _ in range(k):
        near = [one for one in left if inside & set(heads_of(one[1], layer))]
        best = max(near, key=lambda one: abs(one[2]) if absolute else one[2])
        left.remove(best)
        taken.append(best)
        inside.add(best[0])
    return {one[:2] for one in taken}


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(
    ("share", "changed"), [(1.0, {}), (0.4, {}), (0.4, {"n_kv_heads": 6}), (1.0, {"has_mlp": False})]
)
def test_greedy_is_what_looking_at_all_edges_each_time_takes(share, changed, absolute):
    found = circuit(share, n_layers=3, **changed)
    for k in (1, 2, 40, 110):
        found_k = found.top(k, absolute=absolute)
        assert names(found_k) == greedily(found, k, absolute, {**LAYER, **changed})
        assert set(found_k.graph.nodes) == {"logits"} | nx.ancestors(found_k.graph, "logits")


def on_simple_paths(found):
    """The edges of all simple paths from the embedding to the logits, one by one."""
    network = nx.MultiDiGraph()
    network.add_nodes_from(["embed", "logits"])
    for writer, reader in names(found):
        for head in heads_of(reader):
            network.add_edge(writer, head, key=reader)
    paths = nx.all_simple_edge_paths(network, "embed", "logits")
    return {(writer, reader) for path in paths for writer, _, reader in path}


@pytest.mark.parametrize("seed", range(8))
def test_pruning_leaves_the_edges_of_all_simple_paths(seed):
    found = circuit(0.06, seed)
    pruned = found.prune()
    assert names(pruned) == on_simple_paths(found)
    assert names(pruned.prune()) == names(pruned)
    assert pruned.n_edges < found.n_edges


def test_pruning_what_does_not_reach_the_logits_leaves_nothing():
    found = circuit()
    lost = Circuit.of(
        grid(), found.scores, model_print="tiny", kept=found.kept & (found.kept["reader"] != "logits")
    ).prune()  # fmt: skip
    assert (lost.n_edges, lost.nodes, lost.graph.number_of_nodes()) == (0, (), 0)
    with pytest.raises(LocateError, match="none of them is best"):
        lost.best()


SHARES = st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 3))


@settings(max_examples=30, deadline=None)
@given(SHARES, SHARES, SHARES)
def test_circuits_are_sets_of_edges(first, second, third):
    one, two, three = (circuit(*given, n_layers=2) for given in (first, second, third))
    a, b = names(one), names(two)
    assert (names(one | two), names(one & two), names(one - two)) == (a | b, a & b, a - b)
    assert names(one - (two | three)) == names((one - two) & (one - three))
    assert names((one - two) | (one & two)) == a
    found = one.diff(two)
    either = a | b
    pairs = [set(zip(part["writer"], part["reader"], strict=True)) for part in (found.here, found.there, found.both)]
    assert pairs == [a - b, b - a, a & b]
    assert found.jaccard == (len(a & b) / len(either) if either else pytest.approx(np.nan, nan_ok=True))
    assert one.overlap(two) == (len(a & b) / len(a) if a else pytest.approx(np.nan, nan_ok=True))
    possible = grid(n_layers=2).edges()
    expected = spearmanr(one.scores.values[possible], two.scores.values[possible])[0]
    assert found.spearman == pytest.approx(expected)
    assert xr.testing.assert_identical((one | two).scores, one.scores) is None


def test_circuits_of_other_models_are_refused():
    one = circuit()
    other = Circuit.of(grid(), one.scores, model_print="another", info={"model": "next"})
    for operation in (one.overlap, one.__or__, one.__and__, one.__sub__):
        with pytest.raises(LocateError, match=r"other weights: tiny \(tiny\) and next \(another\).*by diff"):
            operation(other)
    for operation in (one.diff, one.overlap, one.__or__, one.__and__, one.__sub__):
        with pytest.raises(
            LocateError, match=r"22 and 15 writers; they differ in a2.h0, a2.h1, a2.h2, a2.h3, a2.h4, …"
        ):
            operation(circuit(n_layers=2))
        with pytest.raises(LocateError, match="readers are the same and in another order"):
            operation(circuit(n_layers=3, parallel=True))


def test_circuits_before_and_after_an_edit_are_compared():
    one = circuit().top(20)
    moved = Circuit.of(grid(), -one.scores, model_print="edited", info={"model": "next"}).top(30)
    found = one.diff(moved)
    assert (len(found.both), len(found.here), len(found.there)) == (20, 0, 10)
    assert found.spearman == pytest.approx(-1)
    np.testing.assert_array_equal(found.both["here"], -found.both["there"])


def test_more_edges_than_there_are_is_an_error(monkeypatch):
    found = circuit(0.3)
    with pytest.raises(
        LocateError, match=rf"{found.n_edges + 1} edges were asked for, and the circuit has {found.n_edges}"
    ):
        found.top(found.n_edges + 1, "threshold")
    whole = circuit()
    kept = ((whole.kept["reader"] == "logits") & (whole.kept["writer"] == "m2")) | (whole.kept["reader"] == "m0")
    more = Circuit.of(grid(), whole.scores, model_print="tiny", kept=kept)
    with pytest.raises(
        LocateError, match=rf"{more.n_edges} edges were asked for, and 1 of the circuit's {more.n_edges}"
    ):
        more.top(more.n_edges)
    for k in (-1, 1.5):
        with pytest.raises(LocateError, match="a count of edges, or a share"):
            found.top(k)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(LocateError, match="no way 'best'"):
        found.top(3, "best")


@pytest.mark.parametrize("k", [True, float("nan"), -1, 1.5, "10", np.float64(2)])
def test_what_is_no_number_of_edges_is_an_error(k):
    with pytest.raises(LocateError, match="give a count of edges, or a share"):
        as_count(k, 100, "top")


def test_numbers_of_any_kind_are_counts():
    assert [as_count(k, 100, "top") for k in (7, np.int64(7), 0.5, np.float32(0.5))] == [7, 7, 50, 50]


def test_best_writes_the_most():
    found = circuit(0.3)
    table = pd.DataFrame(found.edges, columns=["writer", "reader", "score"])
    weight = table[table.writer != "embed"].assign(score=table.score.abs()).groupby("writer").score.sum()
    assert found.best() == site_written(weight.idxmax())


def test_a_head_is_one_node_and_a_shared_key_goes_to_those_that_take_part():
    kept = [("embed", "a1.h1.k"), ("a0.h5", "a1.h1.k"), ("a1.h2", "logits"), ("a1.h2", "m2"), ("a0.h5", "a1.h4.q")]
    kept += [("a0.h5", "a2.h0.v"), ("a0.h5", "a1.h2.q")]
    whole = circuit()
    mask = whole.kept & False
    for writer, reader in kept:
        mask.loc[{"writer": writer, "reader": reader}] = True
    found = Circuit.of(grid(), whole.scores, model_print="tiny", kept=mask)
    assert found.nodes == ("embed", "a0.h5", "a1.h2", "a1.h4", "a2.h0", "a2.h1", "m2", "logits")
    network = found.graph
    assert set(network.nodes) == set(found.nodes)
    assert set(network.edges(keys=True)) == {
        ("embed", "a1.h2", "a1.h1.k"), ("a0.h5", "a1.h2", "a1.h1.k"), ("a1.h2", "logits", "logits"),
        ("a1.h2", "m2", "m2"), ("a0.h5", "a1.h4", "a1.h4.q"), ("a0.h5", "a2.h0", "a2.h0.v"),
        ("a0.h5", "a2.h1", "a2.h0.v"), ("a0.h5", "a1.h2", "a1.h2.q"),
    }  # fmt: skip
    assert network.nodes["a1.h2"] == {"layer": 1, "kind": "head", "head": 2}
    assert network.nodes["m2"] == {"layer": 2, "kind": "mlp", "head": None}
    assert network.edges["a0.h5", "a2.h1", "a2.h0.v"]["input"] == "v"


def test_the_table_has_a_row_for_each_possible_edge():
    whole = tiny.made_up_circuit(grid())
    table = whole.top(9).to_dataframe()
    assert (len(table), int(table.kept.sum())) == (whole.n_possible, 9)
    row = table[(table.writer == "a0.h1") & (table.reader == "a2.h1.k")].iloc[0]
    assert (row.input, row.writer_layer, row.reader_layer) == ("k", 0, 2)
    assert row.score == float(whole.scores.sel(writer="a0.h1", reader="a2.h1.k"))
    assert row.standard_error == float(whole.standard_error.sel(writer="a0.h1", reader="a2.h1.k"))


def test_what_is_no_circuit_is_refused():
    scores = np.ones(grid().edges().shape)
    with pytest.raises(LocateError, match=r"22 writers, 39 readers|\(22, 40\).*found shape \(2, 2\)"):
        Circuit.of(grid(), scores[:2, :2], model_print="tiny")
    scores[0, 3] = np.nan
    with pytest.raises(LocateError, match=r"1 kept edges are without a finite score, as embed → a0.h3.q"):
        Circuit.of(grid(), scores, model_print="tiny")
    found = circuit()
    with pytest.raises(LocateError, match=r"kept edges are impossible, as a0.h0 → a0.h0.q"):
        Circuit(scores=found.scores, kept=found.kept | True, writers=found.writers, readers=found.readers)
    with pytest.raises(LocateError, match="must have the dims writer, reader"):
        Circuit(scores=found.scores.T, kept=found.kept, writers=found.writers, readers=found.readers)


def test_arrays_of_any_kind_make_the_same_circuit():
    found = circuit()
    for same in (found.scores.values, torch.tensor(found.scores.values, requires_grad=True), found.scores.T):
        xr.testing.assert_identical(Circuit.of(grid(), same, model_print="tiny").scores, found.scores)


def test_it_shows_itself():
    found = circuit().top(3)
    assert repr(found).splitlines()[0] == "Circuit of tiny, made up"
    assert f"3 of {found.n_possible} edges, {len(found.nodes)} nodes" in repr(found)
    assert found.edges[0][0] in found._repr_html_()
    assert repr(found.diff(found)) == "CircuitDiff(here=0, there=0, both=3, jaccard=1.000, spearman=1.000)"
