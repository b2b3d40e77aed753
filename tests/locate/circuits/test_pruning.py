"""Pruning in batches against trying one edge after the other."""

import numpy as np
import pytest
import torch

import locate
from locate.circuits.running import run_circuits
from locate.circuits.scoring import Sums, add_scores, edge_method
from locate.circuits.written import tellable
from locate.model.weights import model_fingerprint
from tests.locate.circuits.test_scoring import contrast, metric, model

KINDS = ["gpt2", "llama", "gemma2"]


def scored(kind):
    graph, own = tellable(model(kind)), contrast(kind)
    shape = graph.edges().shape
    sums = Sums(total=torch.zeros(shape), squares=torch.zeros(shape))
    add_scores(sums, own, graph, own.metrics(metric)[0], edge_method("eap"), steps=1)
    return locate.Circuit.of(graph, sums.mean, model_print=model_fingerprint(model(kind)))


def literal(kind, circuit, threshold, wanted, order):
    """Every edge by itself: readers backwards, one pass each."""
    graph, own = tellable(model(kind)), contrast(kind)
    metrics = own.metrics(wanted)
    whole = float(own.ends(metrics).target)

    def distance(kept):
        return abs(float(run_circuits(own, graph, torch.from_numpy(kept)[None], metrics)) - whole)

    kept = circuit.kept.values.copy()
    now, passes = distance(kept), 1
    for reader in reversed(range(len(graph.readers))):
        writers = np.flatnonzero(kept[:, reader])[::-1]
        if order == "smallest":
            writers = sorted(writers, key=lambda one, reader=reader: abs(circuit.scores.values[one, reader]))
        for writer in writers:
            tried = kept.copy()
            tried[writer, reader] = False
            then = distance(tried)
            passes += 1
            if then - now < threshold:
                kept, now = tried, then
    return kept, passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("share", "wanted", "order"),
    [(0.003, metric, "smallest"), (0.03, metric, "latest"), (0.1, "kl_divergence", "smallest")],
)
def test_many_at_a_time_is_one_after_the_other(kind, share, wanted, order):
    circuit, own = scored(kind).top(0.2, "threshold"), contrast(kind)
    ends = own.ends(wanted)
    threshold = share * abs(float(ends.target - ends.source))
    expected, passes = literal(kind, circuit, threshold, wanted, order)
    found = locate.prune_edges(
        model(kind), circuit, own, threshold=threshold, metric=wanted, order=order, progress=False
    )
    np.testing.assert_array_equal(found.kept.values, expected)
    assert 0 < found.n_edges < circuit.n_edges
    assert found.info["batches"] < 0.7 * passes
    assert (found.info["threshold"], found.info["pruned_by"]) == (threshold, "metric" if wanted is metric else wanted)


@pytest.mark.parametrize("room", [1, 2])
def test_how_many_go_together_changes_nothing(room, monkeypatch):
    circuit, own = scored("llama").top(0.2, "threshold"), contrast("llama")
    ask = {"threshold": 0.02 * abs(float(own.ends(metric).target - own.ends(metric).source)), "metric": metric}
    expected = locate.prune_edges(model("llama"), circuit, own, **ask, progress=False)
    monkeypatch.setattr("locate.circuits.pruning._Runs.together", room)
    found = locate.prune_edges(model("llama"), circuit, own, **ask, progress=False)
    np.testing.assert_array_equal(found.kept.values, expected.kept.values)
    assert found.info["batches"] >= found.info["tried"] / room
    assert found.info["batches"] > expected.info["batches"] or room > 1


def test_what_cannot_be_asked_is_refused():
    circuit, own = scored("llama").top(9), contrast("llama")
    for options, message in (
        ({"threshold": 0.0}, "threshold: must be above 0"),
        ({"threshold": 0.1, "order": "last"}, "Did you mean latest"),
        ({"threshold": 0.1, "metric": lambda logits: logits[:, 0].float() * 0 + 1}, "no gap"),
    ):
        with pytest.raises(locate.LocateError, match=message):
            locate.prune_edges(model("llama"), circuit, own, **options, progress=False)
