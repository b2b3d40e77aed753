"""Edges patched one by one, as users ask for it."""

import jaxtyping
import numpy as np
import pytest

import locate
from locate.circuits import finding
from locate.circuits.cutting import cut_edges
from locate.circuits.written import tellable
from tests import tiny
from tests.locate.circuits.test_scoring import contrast, metric, model

EDGES = [("m1", "logits"), ("a0.h1", "a2.h0.q"), ("embed", "m0"), ("a1.h0", "a2.h0.k")]


def test_effects_are_of_the_edges_in_the_order_given():
    own, graph = contrast("llama"), tellable(model("llama"))
    found = locate.patch_edges(model("llama"), own, edges=EDGES, metric=metric, progress=False)
    for edge, effect in zip(EDGES, found.effect.values, strict=True):
        place = [one.name for one in graph.writers].index(edge[0]), [one.name for one in graph.readers].index(edge[1])
        value = float(cut_edges(own, graph, [place], own.metrics(metric)))
        assert effect == pytest.approx(value - found.clean, abs=1e-4 * abs(found.clean - found.corrupted))
    table = found.to_dataframe()
    assert list(zip(table["writer"], table["reader"], strict=True)) == EDGES
    assert table.columns.tolist() == ["writer", "reader", "effect", "standard_error", "clean", "corrupted"]
    assert table["standard_error"].isna().all()
    largest = np.abs(np.where(table["writer"] == "embed", 0, table["effect"])).argmax()
    assert found.best().layer == int(EDGES[largest][0][1])


def test_effects_are_means_over_pairs_and_are_saved(tmp_path):
    bridge = model("gpt2")
    texts = ["The Louvre is in Paris", "Big Ben is in London", "To visit Rome, you need a flight to Paris"]
    others = ["The Louvre is in Rome", "Big Ben is in France", "To visit Rome, you need a flight to Rome"]
    found = locate.patch_edges(bridge, texts, others, edges=EDGES, metric=metric, progress=False)
    single = [
        locate.patch_edges(bridge, one, other, edges=EDGES, metric=metric, progress=False).effect.values
        for one, other in zip(texts, others, strict=True)
    ]
    size = np.abs(single).max()
    np.testing.assert_allclose(found.effect, np.mean(single, 0), atol=1e-4 * size)
    np.testing.assert_allclose(found.standard_error, np.std(single, 0, ddof=1) / 3**0.5, atol=1e-4 * size)
    loaded = locate.load_edge_effects(found.save(tmp_path / "effects.nc"))
    assert loaded.to_dataframe().equals(found.to_dataframe())
    assert loaded.info == found.info


def test_a_circuit_is_scored_by_cutting_all_edges():
    bridge = model("gpt2")
    texts, others = (
        ["The Louvre is in Paris", "Big Ben is in London"],
        ["The Louvre is in Rome", "Big Ben is in France"],
    )
    circuit = locate.find_circuit(bridge, texts, others, method="exact", metric=metric, progress=False)
    best = circuit.top(25, "threshold")
    effects = locate.patch_edges(bridge, texts, others, edges=best, metric=metric, progress=False)
    size = abs(best.edges[0][2])
    np.testing.assert_allclose(effects.effect, [score for _, _, score in best.edges], atol=1e-4 * size)
    table = circuit.to_dataframe().set_index(["writer", "reader"])["standard_error"]
    expected = [table[writer, reader] for writer, reader, _ in best.edges]
    np.testing.assert_allclose(effects.standard_error, expected, atol=1e-3 * size)
    assert circuit.info["method"] == "exact"


def test_too_many_cuts_are_refused_with_what_they_would_take(monkeypatch):
    monkeypatch.setattr(finding, "_MOST_CUTS", 100)
    with pytest.raises(locate.LocateError, match=r"takes about \d+ passes .*patch_edges"):
        locate.find_circuit(model("llama"), contrast("llama"), method="exact", metric=metric, progress=False)
    with pytest.raises(locate.LocateError, match="by_position"):
        locate.find_circuit(model("llama"), contrast("llama"), method="exact", by_position=True, progress=False)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("a9.h0", "logits")], "layer 9 is out of range"), ([("m1", "a2.h0")], "receives by its query"),
        ([("m2", "a1.h0.v")], "m2 → a1.h0.v: a1.h0.v reads the stream before"), ([], "at least one"),
        ([("logits", "m1")], "send nothing"), ([("neuron", "m1")], "no component 'neuron'"),
        ([("a0.h0", "a0.h1.q")], "no edge a0.h0"),
    ],
)  # fmt: skip
def test_edges_that_cannot_be_are_refused(edges, message):
    with pytest.raises(locate.LocateError, match=message):
        locate.patch_edges(model("llama"), contrast("llama"), edges=edges, metric=metric, progress=False)


def test_edges_without_a_reader_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(locate.LocateError, match="a writer and a reader"):
        locate.patch_edges(model("llama"), contrast("llama"), edges=["m1"], progress=False)


def test_circuits_of_other_models_and_pairs_without_a_gap_are_refused():
    circuit = tiny.made_up_circuit(tellable(model("llama")))
    for ask in (
        lambda: locate.patch_edges(model("llama"), contrast("llama"), edges=circuit, progress=False),
        lambda: locate.prune_edges(model("llama"), circuit, contrast("llama"), threshold=0.1, progress=False),
    ):
        with pytest.raises(locate.LocateError, match="of another model"):
            ask()

    def constant(logits):
        return logits[:, 0].float() * 0 + 1

    with pytest.raises(locate.LocateError, match="no edge matters"):
        locate.patch_edges(model("llama"), contrast("llama"), edges=EDGES, metric=constant, progress=False)
