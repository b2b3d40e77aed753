"""Ablations, completeness and minimality against every circuit run by itself, written out."""

import numpy as np
import pytest
import torch

from locate import LocateError
from locate.circuits.evaluating import evaluate
from locate.circuits.gathering import Gathered
from locate.circuits.written import tellable
from tests import tiny
from tests.locate.circuits import literal
from tests.locate.circuits.test_finding import find
from tests.locate.circuits.test_scoring import metric, model, prompts
from tests.sampling import sampled


def pairs():
    """Two pairs that differ in their first words too, so that means are of neither."""
    clean, corrupt = prompts()
    first = torch.tensor(tiny.tokenizer()(" London Paris")["input_ids"])[:1]
    return [clean, torch.cat([first, clean[1:]])], [corrupt, torch.cat([first, corrupt[1:]])]


def brought(bridge, ablation, corrupt):
    """What cut edges bring, for each pair."""
    each = [literal.added(bridge, one[None]) for one in corrupt]
    if ablation == "mean":
        return [{name: sum(one[name] for one in each) / len(each) for name in each[0]}] * len(each)
    return [{name: value * (ablation == "corrupt") for name, value in one.items()} for one in each]


def literally(kind, masks, ablation="corrupt"):
    """The metric of circuits on both pairs, one whole pass each."""
    bridge, (clean, corrupt) = model(kind), pairs()
    theirs = brought(bridge, ablation, corrupt)
    graph = tellable(bridge)
    return np.array([
        [literal.circuit(bridge, graph, kept, one, its, metric) for one, its in zip(clean, theirs, strict=True)]
        for kept in masks
    ])  # fmt: skip


def shares(kind, masks, ablation="corrupt"):
    """Faithfulness from the definition: the way from no edge to all of them, in means over the pairs."""
    empty, whole = np.zeros_like(masks[0]), tellable(model(kind)).edges()
    low, high, *found = literally(kind, [empty, whole, *masks], ablation).mean(1)
    return (np.array(found) - low) / (high - low)


@pytest.mark.parametrize("ablation", ["corrupt", "mean", "zero"])
@pytest.mark.parametrize("kind", sampled(["llama", "gpt2", "gemma2", "falcon"]))
def test_cut_edges_bring_what_the_ablation_says_at_every_position(kind, ablation):
    circuit = find(*pairs(), kind=kind, method="eap")
    curve = circuit.faithfulness(
        model(kind), *pairs(), sizes=[0.4, 0.8], how="threshold", ablation=ablation, metric=metric, progress=False
    )
    masks = [circuit.top(share, "threshold").kept.values for share in (0.4, 0.8)]
    values = literally(kind, [np.zeros_like(masks[0]), *masks], ablation)
    ends = abs(curve.data["whole"].values - curve.data["empty"].values).max()
    np.testing.assert_allclose(curve.data["empty"], values[0], atol=1e-3 * ends)
    np.testing.assert_allclose(curve.data["values"], values[1:], atol=1e-3 * ends)


@pytest.mark.parametrize("ablation", ["corrupt", "mean"])
def test_pairs_of_one_pass_are_run_once(monkeypatch, ablation):
    circuit, runs, run = find(*pairs(), method="eap").top(5), [], Gathered._run
    monkeypatch.setattr(Gathered, "_run", lambda self, group: runs.append(group) or run(self, group))
    circuit.faithfulness(model("llama"), *pairs(), ablation=ablation, metric=metric, progress=False)
    assert len(runs) == 1


def test_what_a_circuit_misses_shows_where_the_same_is_taken_out_of_it_and_of_the_model():
    circuit = find(*pairs(), method="eap").top(0.5, "threshold")
    table = circuit.completeness(model("llama"), *pairs(), samples=3, metric=metric, progress=False)
    writers = [one.name for one in circuit.writers]
    assert table["removed"][0] == []
    inner = {*circuit.nodes} - {"embed", "logits"}
    assert all(set(names) <= inner and names for names in table["removed"][1:])
    assert len({tuple(names) for names in table["removed"]}) == len(table)
    for base, column in ((circuit.kept.values, "circuit"), (tellable(model("llama")).edges(), "model")):
        masks = []
        for names in table["removed"]:
            masks.append(base.copy())
            masks[-1][[writers.index(name) for name in names]] = False
        np.testing.assert_allclose(table[column], shares("llama", masks), atol=2e-3)
    np.testing.assert_allclose(table["gap"], (table["circuit"] - table["model"]).abs())
    assert table["gap"].max() > 0.01
    whole = find(*pairs(), method="eap").completeness(
        model("llama"), *pairs(), samples=2, metric=metric, progress=False
    )
    assert whole["gap"].max() < 1e-4


@pytest.mark.parametrize("by", ["node", "edge"])
def test_what_a_part_is_worth_is_what_is_lost_without_it(by):
    circuit = find(*pairs(), method="eap").top(0.2, "threshold").prune()
    table = circuit.minimality(model("llama"), *pairs(), by=by, metric=metric, progress=False)
    writers, readers = ([one.name for one in side] for side in (circuit.writers, circuit.readers))
    masks = [circuit.kept.values]
    for row in table.itertuples():
        masks.append(circuit.kept.values.copy())
        if by == "node":
            masks[-1][writers.index(row.node)] = False
        else:
            masks[-1][writers.index(row.writer), readers.index(row.reader)] = False
    own, *without = shares("llama", masks)
    np.testing.assert_allclose(table["faithfulness"], without, atol=2e-3)
    np.testing.assert_allclose(table["lost"], own - np.array(without), atol=2e-3)
    assert table["lost"].abs().is_monotonic_decreasing
    assert (table["low"] <= table["lost"] + 1e-6).all()
    assert (table["high"] >= table["lost"] - 1e-6).all()
    assert len(table) == (len(circuit.nodes) - 2 if by == "node" else circuit.n_edges)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_what_is_left_of_a_stream_is_not_rounded_as_the_whole_of_it(kind):
    """Without biases and inputs MLPs add nothing, and norms make something of any rest."""
    circuit = find(*pairs(), kind=kind, method="eap")
    kept = np.zeros_like(circuit.kept.values)
    writers, readers = ([one.name for one in side] for side in (circuit.writers, circuit.readers))
    kept[writers.index("m0"), readers.index("m1")] = kept[writers.index("m1"), readers.index("logits")] = True
    graph, ask = tellable(model(kind)), Gathered(model(kind), *pairs(), metric=metric, budget=4096)
    measured = evaluate(ask, graph, np.stack([kept, graph.edges()]), ablation="zero")
    assert (measured.values[0] == 0).all()
    assert np.abs(measured.values[1]).min() > 0.01


@pytest.mark.parametrize("ablation", ["mean", "zero", "corrupt"])
def test_the_budget_changes_nothing(ablation):
    circuit = find(*pairs(), method="eap")
    asked = {"sizes": [0.2, 0.5], "ablation": ablation, "metric": metric, "progress": False}
    small, large = (circuit.faithfulness(model("llama"), *pairs(), budget=n, **asked).curve for n in (1, 4096))
    np.testing.assert_allclose(small, large, atol=1e-4)


def test_a_curve_says_what_was_measured():
    circuit = find(*pairs(), method="eap")
    curve = circuit.faithfulness(model("llama"), *pairs(), sizes=[5], metric="log_probability", progress=False)
    assert (curve.info["metric"], curve.info["pairs"]) == ("log_probability", 2)
    with pytest.warns(UserWarning, match="shares of so small a gap"):
        circuit.faithfulness(
            model("llama"), *pairs(), sizes=[5], metric=lambda logits: 1e3 + metric(logits), progress=False
        )


def test_what_cannot_be_taken_out_is_refused():
    circuit = find(*pairs(), method="eap")
    quiet = {"metric": metric, "progress": False}
    with pytest.raises(LocateError, match="samples: give 1 or more sets, found -2"):
        circuit.completeness(model("llama"), *pairs(), samples=-2, **quiet)
    with pytest.raises(LocateError, match="random: give 0 or more circuits, found -1"):
        circuit.faithfulness(model("llama"), *pairs(), random=-1, **quiet)
    direct = circuit.top(0)
    with pytest.raises(LocateError, match="nothing to take out"):
        direct.completeness(model("llama"), *pairs(), **quiet)
    with pytest.raises(LocateError, match="nothing in this circuit"):
        direct.minimality(model("llama"), *pairs(), **quiet)
