"""Circuits between two runs of one prompt under other weights: those of an edit, or of a fine-tune."""

from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch

import locate
from locate import FactError, LocateError, ModelError
from locate.circuits.running import run_circuits
from locate.circuits.scoring import Sums, add_scores, edge_method
from locate.circuits.written import differences, tellable, written_hooks
from locate.engine import freeze, refreeze
from locate.facts.prompts import Prompt, encode_text
from locate.facts.questions import Questions
from locate.model.anatomy import down_module
from locate.model.held import exchange
from locate.model.weights import hf_parameters
from tests.locate.circuits import literal
from tests.locate.circuits.test_scoring import CLEAN, KINDS, metric, model, some_edges
from tests.sampling import sampled

# Which parts of which blocks have other weights: one MLP, as after an edit, or two, or what reads and attends as well.
PARTS = {"one": [(1, "down")], "several": [(0, "down"), (1, "down")], "more": [(1, "attn"), (1, "ln1"), (2, "mlp")]}


def parts(bridge, wanted):
    for layer, name in wanted:
        block = bridge.blocks[layer]
        part = (down_module(block) or block.mlp) if name == "down" else getattr(block, name, None)
        if part is not None:
            yield name, part


def parameters(bridge, wanted):
    """The parameters of these, whole ones in place of what the bridge sees in them; of attention no biases."""
    found = {}
    for name, part in parts(bridge, wanted):
        for one in part.parameters():
            at = one.untyped_storage().data_ptr()
            if (name != "attn" or one.ndim > 1) and (at not in found or found[at].numel() < one.numel()):
                found[at] = one
    return list(found.values())


@contextmanager
def changed(bridge, own, *, share=1.0):
    """A share of the way to other values of some parameters, and back."""
    generator, before = torch.Generator().manual_seed(0), [(one, one.data) for one in own]
    way = [old.abs().mean() * torch.randn(old.shape, generator=generator) for _, old in before]
    exchange(bridge, [(one, old + share * to.to(old)) for (one, old), to in zip(before, way, strict=True)])
    try:
        yield
    finally:
        exchange(bridge, before)


@cache
def contrast(kind, edit, tokens=CLEAN):
    bridge, names = model(kind), written_hooks(model(kind))
    ids = encode_text(bridge, tokens)
    base = freeze(bridge, ids[None], keep=names)
    with changed(bridge, parameters(bridge, PARTS[edit])):
        run = refreeze(base)
    return between(run, base)


def between(run, base):
    prompt = Prompt(text=CLEAN, tokens=base.tokens[0], subject_span=(0, 0))
    questions = Questions(
        model=run.model, prompts=(prompt,), answers=torch.tensor([7]), targets_new=(None,), clean=base.logits
    )
    return locate.Contrast.between(run, base, questions)


def scores(kind, edit, method, steps=2):
    graph, own = tellable(model(kind)), contrast(kind, edit)
    shape = len(graph.writers), len(graph.readers)
    sums = Sums(total=torch.zeros(shape), squares=torch.zeros(shape))
    add_scores(sums, own, graph, own.metrics(metric)[0], edge_method(method), steps=steps)
    return sums.total


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_circuits_between_weights_are_run_as_written_out(kind):
    bridge, graph = model(kind), tellable(model(kind))
    edges, generator = graph.edges(), np.random.default_rng(1)
    half = edges & (generator.random(edges.shape) < 0.7)
    kept = torch.from_numpy(np.stack([edges, np.zeros_like(edges), half]))
    tokens = encode_text(bridge, CLEAN)
    theirs = literal.added(bridge, tokens[None])
    for edit, places in PARTS.items():
        own = contrast(kind, edit)
        found = run_circuits(own, graph, kept, own.metrics(metric))[:, 0, 0].tolist()
        target, source = (float(one) for one in own.ends(metric))
        size = abs(target - source)
        assert size > 3e-3
        with changed(bridge, parameters(bridge, places)):
            expected = literal.circuit(bridge, graph, half, tokens, theirs, metric)
            with torch.no_grad():
                assert target == pytest.approx(float(metric(bridge(tokens[None])[:, -1])[0]), abs=1e-4 * size)
        assert found == pytest.approx([target, source, expected], abs=1e-3 * size), edit
        assert expected not in (pytest.approx(target, abs=1e-2 * size), pytest.approx(source, abs=1e-2 * size))


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_scores_are_mean_slopes_on_the_way_of_the_weights(kind):
    bridge, graph = model(kind), tellable(model(kind))
    edit = "more"
    tokens = encode_text(bridge, CLEAN)[None]
    base = literal.added(bridge, tokens)
    own = parameters(bridge, PARTS[edit])
    with changed(bridge, own):
        moved = {name: base[name] - one for name, one in literal.added(bridge, tokens).items()}

    def slope(i, j, share):
        writer, reader = graph.writers[i], graph.readers[j]
        parallel = graph.anatomy.layers[min(reader.layer, len(graph.anatomy.layers) - 1)].parallel
        values = []
        with changed(bridge, own, share=share), torch.no_grad():
            for step in (1e-2, -1e-2):
                hooks = literal.edge_hooks(bridge, reader, step * moved[writer.name], parallel)
                with bridge.hooks(fwd_hooks=hooks):
                    values.append(float(metric(bridge(tokens)[:, -1].double())[0]))
        return (values[0] - values[1]) / 2e-2

    chosen = [(i, j) for i, j in some_edges(graph, 60) if float(moved[graph.writers[i].name].abs().max()) > 0][::3]
    for method, shares in (("eap", [1.0]), ("eap-ig", [0.5, 1.0]), ("clean-corrupted", [0.0, 1.0])):
        found = scores(kind, edit, method)
        size = float(found.abs().max())
        for i, j in chosen:
            expected = float(np.mean([slope(i, j, share) for share in shares]))
            names = graph.writers[i].name, graph.readers[j].name, method
            assert float(found[i, j]) == pytest.approx(expected, rel=2e-2, abs=4e-3 * size), names


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_what_reaches_the_logits_is_all_that_differs(kind):
    for edit in PARTS:
        own = contrast(kind, edit)
        moved = differences(own, torch.tensor([0])).sum(2)
        expected = own.source.residuals[-1] - own.target.residuals[-1]
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4 * float(own.target.residuals[-1].abs().max()))


def test_scores_into_the_logits_sum_to_about_the_effect():
    found, own = scores("llama", "one", "eap-ig", steps=20), contrast("llama", "one")
    target, source = (float(one) for one in own.ends(metric))
    assert float(found[:, -1].sum()) == pytest.approx(source - target, rel=0.05)
    ahead = [one.layer < 1 or one.name.startswith("a1.") for one in tellable(model("llama")).writers]
    assert float(found[torch.tensor(ahead)].abs().max()) == 0


def test_an_embedding_of_its_own_is_a_writer_as_any_other():
    bridge, graph = model("gpt_neox"), tellable(model("gpt_neox"))
    base = freeze(bridge, encode_text(bridge, CLEAN)[None], keep=written_hooks(bridge))
    with changed(bridge, [hf_parameters(bridge)["gpt_neox.embed_in.weight"]]):
        own = between(refreeze(base), base)
    edges = torch.from_numpy(graph.edges())
    found = run_circuits(own, graph, torch.stack([edges, ~edges & edges]), own.metrics(metric))[:, 0, 0].tolist()
    assert found == pytest.approx([float(one) for one in own.ends(metric)], abs=1e-4)
    circuit = locate.find_circuit(bridge, own, metric=metric, progress=False)
    assert float(np.abs(circuit.scores.values[0]).max()) > 0


def test_several_contrasts_of_other_lengths_are_averaged():
    bridge = model("llama")
    both = [contrast("llama", "one"), contrast("llama", "one", CLEAN + " Paris")]
    found = locate.find_circuit(bridge, both, metric=metric, progress=False)
    alone = [locate.find_circuit(bridge, one, metric=metric, progress=False) for one in both]
    np.testing.assert_allclose(found.scores, (alone[0].scores + alone[1].scores) / 2, rtol=1e-5, atol=1e-7)
    assert found.info["pairs"] == 2
    kept = locate.prune_edges(bridge, found.top(20), both, threshold=1e-3, metric=metric, progress=False)
    assert 0 < kept.n_edges < 20
    with pytest.raises(FactError, match="contrasts alone"):
        locate.find_circuit(bridge, [both[0], CLEAN], metric=metric, progress=False)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("llama", "model.norm.weight", "model.norm.weight differs.*the logits are read with it"),
        ("gpt2", "transformer.wte.weight", "transformer.wte.weight differs"),
        ("gpt2", "transformer.h.1.attn.c_proj.bias", "layer 1 adds.*bias of attention's output"),
    ],
)
def test_what_no_edge_carries_is_refused_by_name(kind, name, words):
    bridge = model(kind)
    base = freeze(bridge, encode_text(bridge, CLEAN)[None], keep=written_hooks(bridge))
    with changed(bridge, [hf_parameters(bridge)[name]]):
        other = hf_parameters(bridge)[name].data
        exchange(bridge, [(hf_parameters(bridge)[name], other + 0.5)])
        own = between(refreeze(base), base)
    with pytest.raises(ModelError, match=words):
        locate.find_circuit(bridge, own, metric=metric, progress=False)


def test_other_tokens_and_other_weights_at_once_have_no_path():
    bridge, names = model("llama"), written_hooks(model("llama"))
    own = contrast("llama", "one")
    other = freeze(bridge, own.source.tokens.flip(1), keep=names)
    mixed = between(own.target, other)
    with pytest.raises(LocateError, match="no one path"):
        locate.find_circuit(bridge, mixed, metric=metric, progress=False)
    assert locate.find_circuit(bridge, mixed, method="eap", metric=metric, progress=False).n_edges
