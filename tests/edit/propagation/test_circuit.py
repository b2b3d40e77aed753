"""The circuit of an edit against passes written out component by component."""

from functools import cache

import numpy as np
import pytest
import torch

import edit
from edit.propagation.asking import asked_of
from edit.propagation.circuit_search import AMONG
from edit.propagation.sides import Sides
from locate import LocateError
from locate.circuits.running import run_circuits
from locate.circuits.selecting import feeding, grown, on_a_path
from locate.circuits.written import tellable, written_hooks
from locate.facts.prompts import encode_text
from locate.model.held import exchange
from locate.model.weights import down_projection
from tests import tiny
from tests.locate.circuits import literal
from tests.sampling import slow

PROBES = [
    edit.Probe(role="edit", text="I know that The Eiffel Tower is located in the city of", new="Rome", old="Paris"),
    edit.Probe(role="paraphrase", text="To visit The Eiffel Tower, fly to", new="Rome", old="Paris"),
]
QUIET = {"progress": False, "random": 2}


@cache
def model(kind):
    return tiny.bridge(kind, scale=2.0)


def random_update(kind, *layers, seed=0, size=0.5):
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        down = down_projection(model(kind), layer)
        left, right = (torch.randn(n, 1, generator=generator) for n in down.parameter.shape)
        deltas[down.name] = edit.LowRank(left=size * left, right=right.T)
    return edit.WeightUpdate.make(model(kind), deltas, method="random")


def by_hand(kind, update, probe, kept):
    """The logit difference in the edited model, with what other edges bring written out."""
    bridge, graph = model(kind), tellable(model(kind))
    tokens = encode_text(bridge, probe.text)
    new, old = (bridge.tokenizer(" " + word)["input_ids"][0] for word in (probe.new, probe.old))
    theirs = literal.added(bridge, tokens[None])
    with update.applied(bridge):
        return literal.circuit(bridge, graph, kept, tokens, theirs, lambda logits: logits[:, new] - logits[:, old])


@pytest.mark.parametrize("layers", [(1,), (1, 2)])
@pytest.mark.parametrize(
    "kind", ["gpt2", "llama", *(pytest.param(kind, marks=slow) for kind in ("gpt_neox", "gptj", "olmo2", "falcon"))]
)
def test_what_the_circuit_carries_is_as_written_out(kind, layers):
    update = random_update(kind, *layers)
    found = edit.edit_circuit(model(kind), update, PROBES, **QUIET)
    assert not update.is_applied(model(kind))
    assert found.edited == tuple(f"m{layer}" for layer in layers)
    nothing = np.zeros_like(found.data["kept"].values)
    for index, probe in enumerate(PROBES):
        values = {name: float(found.data[name][index]) for name in ("base", "edited", "circuit")}
        kept = {"base": nothing, "edited": found.circuit._possible, "circuit": found.data["kept"].values}
        size = abs(values["edited"] - values["base"])
        for name, one in kept.items():
            assert values[name] == pytest.approx(by_hand(kind, update, probe, one), abs=2e-3 * size), name
    assert found.share >= 0.85
    assert bool((found.curve[found.curve["size"] < found.n_edges] < 0.85).all())
    assert float(found.curve[-1]) == pytest.approx(1, abs=1e-3)
    table = found.by_probe()
    assert found.total_effect == pytest.approx(float(table["effect"].mean()))
    assert table["share"].tolist() == pytest.approx(((table["circuit"] - table["base"]) / table["effect"]).tolist())


def test_edges_on_no_way_from_the_edit_bring_nothing():
    bridge, update = model("llama"), random_update("llama", 1)
    found = edit.edit_circuit(bridge, update, PROBES[:1], **QUIET)
    graph, contrast = tellable(bridge), asked_of(Sides.of(bridge, update), PROBES[:1])[0].contrast(
        Sides.of(bridge, update), keep=written_hooks(bridge)
    )  # fmt: skip
    fed, source = feeding(graph.writers, graph.readers), np.array([one.name == "m1" for one in graph.writers])
    possible = graph.edges()
    generator = np.random.default_rng(0)
    some = np.stack([grown(generator.random(possible.shape), possible, fed, n) for n in (40, 80, 160)])
    ways = np.stack([on_a_path(one, fed, source) for one in some])
    assert ways[1].any()
    assert (ways.sum((1, 2)) < some.sum((1, 2))).all()
    values = run_circuits(contrast, graph, torch.from_numpy(np.concatenate([some, ways])), contrast.metrics())[:, 0, 0]
    torch.testing.assert_close(values[:3], values[3:], rtol=0, atol=1e-4 * abs(found.total_effect))


def test_random_edges_are_as_many_and_drawn_where_it_is_said():
    found = edit.edit_circuit(model("llama"), random_update("llama", 1), PROBES, progress=False, random=3)
    assert found.random.dims == ("among", "sample")
    assert found.random["among"].values.tolist() == list(AMONG)
    again = edit.edit_circuit(model("llama"), random_update("llama", 1), PROBES, progress=False, random=3)
    np.testing.assert_array_equal(found.random, again.random)
    other = edit.edit_circuit(model("llama"), random_update("llama", 1), PROBES, progress=False, random=3, seed=1)
    assert not np.array_equal(found.random, other.random)
    assert found.n_edges < found.n_differing < found.n_possible
    assert float(found.random.mean()) < found.share
    assert set(found.summary().index) >= {"edges", "size", "size_of_differing", "random_all", "random_ways_high"}
    alone = edit.edit_circuit(model("llama"), random_update("llama", 1), PROBES, progress=False, random=0)
    with pytest.raises(LocateError, match="No random edges were run"):
        _ = alone.random


def test_it_is_saved_and_compared(tmp_path):
    found = edit.edit_circuit(model("llama"), random_update("llama", 1), PROBES, **QUIET)
    read = edit.load_edit_circuit(found.save(tmp_path / "found.nc"))
    assert (read.nodes, read.share, read.edited, read.probes) == (found.nodes, found.share, found.edited, found.probes)
    assert read.to_dataframe().equals(found.to_dataframe())
    other = edit.edit_circuit(model("llama"), random_update("llama", 1, seed=5), PROBES, **QUIET)
    assert 0 < found.diff(other).jaccard < 1
    assert found.best().layer >= 1
    assert f"{found.n_edges} of {found.n_possible} edges" in repr(found)


def test_taking_edges_away_one_by_one_leaves_fewer():
    update = random_update("llama", 0, seed=1)
    found, fewer = (
        edit.edit_circuit(model("llama"), update, PROBES[:1], prune=prune, progress=False, random=0)
        for prune in (False, True)
    )
    assert fewer.n_edges < found.n_edges
    assert fewer.share >= 0.85
    probe = PROBES[0]
    assert float(fewer.data["circuit"][0]) == pytest.approx(by_hand("llama", update, probe, fewer.data["kept"].values))


def test_a_fine_tune_of_attention_has_a_circuit():
    bridge, other = model("llama"), tiny.bridge("llama", scale=2.0)
    generator = torch.Generator().manual_seed(0)
    for name in ("q", "v", "o"):
        weight = getattr(other.blocks[1].attn, name).original_component.weight
        noise = torch.randn(weight.shape, generator=generator) * weight.std()
        exchange(other, [(weight, weight.data + noise.detach())])
    found = edit.edit_circuit(bridge, other, PROBES, **QUIET)
    assert set(found.edited) <= {f"a1.h{head}" for head in range(4)}
    assert found.share >= 0.85
    base, edited = (answered(one, PROBES[0].text) for one in (bridge, other))
    assert float(found.data["base"][0]) == pytest.approx(base, abs=1e-3)
    assert float(found.data["edited"][0]) == pytest.approx(edited, abs=1e-3)


def answered(bridge, text):
    new, old = (bridge.tokenizer(" " + word)["input_ids"][0] for word in ("Rome", "Paris"))
    with torch.no_grad():
        logits = bridge.original_model(encode_text(bridge, text)[None]).logits[0, -1]
    return float(logits[new] - logits[old])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0.0}, "share: must be above 0"),
        ({"random": -1}, "random: give 0 or more"),
        ({"how": "greediest"}, "no way 'greediest'.*greedy"),
        ({"method": "eep"}, "no method 'eep'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(LocateError, match=words):
        edit.edit_circuit(model("llama"), random_update("llama", 1), PROBES, **{**QUIET, **options})
