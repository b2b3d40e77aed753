"""Edges that are cut one at a time against circuits without them, and against whole passes with hooks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from locate.circuits.cutting import cut_edges
from locate.circuits.running import run_circuits
from locate.circuits.scoring import Sums, add_scores, edge_method
from locate.circuits.written import tellable, written_hooks
from tests import tiny
from tests.locate.circuits import literal
from tests.locate.circuits.test_scoring import contrast, metric, model, prompts, some_edges
from tests.sampling import sampled

KINDS = [
    "gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "cohere", "falcon", "mpt",
    "bloom", "phi3", "mixtral",
]  # fmt: skip


def edges_of(graph):
    return [(int(at), int(to)) for at, to in some_edges(graph)]


def gap(kind):
    ends = contrast(kind).ends(metric)
    return float(ends.target), abs(float(ends.target - ends.source))


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_a_cut_edge_is_a_circuit_without_it_and_a_pass_with_its_reader_moved(kind):
    bridge, graph = model(kind), tellable(model(kind))
    metrics = contrast(kind).metrics(metric)
    edges = edges_of(graph)
    found = cut_edges(contrast(kind), graph, edges, metrics)[:, 0, 0].tolist()
    whole, size = gap(kind)

    kept = torch.from_numpy(graph.edges()).repeat(len(edges), 1, 1)
    for one, (at, to) in zip(kept, edges, strict=True):
        one[at, to] = False
    run = run_circuits(contrast(kind), graph, kept, metrics)[:, 0, 0].tolist()
    size = max(size, *(abs(one - whole) for one in run))
    assert found == pytest.approx(run, abs=1e-5 * size), kind

    clean, corrupt = (ids[None] for ids in prompts())
    own, theirs = literal.added(bridge, clean), literal.added(bridge, corrupt)
    for (at, to), value in zip(edges, found, strict=True):
        writer, reader = graph.writers[at], graph.readers[to]
        parallel = graph.anatomy.layers[min(reader.layer, 2)].parallel
        hooks = literal.edge_hooks(bridge, reader, theirs[writer.name] - own[writer.name], parallel)
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
            expected = float(metric(bridge(clean)[:, -1])[0])
        assert value == pytest.approx(expected, abs=1e-4 * size), (writer.name, reader.name)
    assert np.abs(np.array(found) - whole).max() > 1e-2 * size


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_what_fits_one_pass_changes_nothing(kind):
    """Neither does the order in which edges are given, nor how many rows a pair has."""
    graph, own = tellable(model(kind)), contrast(kind)
    edges = edges_of(graph)[::-1]
    whole = cut_edges(own, graph, edges, own.metrics(metric))
    told = []
    small = replace(own, target=replace(own.target, budget=3 * own.target.tokens.shape[1]))
    found = cut_edges(small, graph, edges, own.metrics(metric), progress=told.append)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5 * gap(kind)[1])
    assert sum(told) == len(edges)
    assert len(told) > 4


def linear(kind):
    """A model of this type of which all but attention's values is linear, and patterns are uniform.

    What norms add to the variance is so large that nothing else counts, their gain makes up for it; queries and keys
    are nothing; activations are left out, and what a gate gives is 1.
    """
    config = {
        "gpt2": {**tiny.CONFIGS["gpt2"], "activation_function": "linear", "layer_norm_epsilon": 1e10},
        "llama": {**tiny.CONFIGS["llama"], "hidden_act": "linear", "rms_norm_eps": 1e10, "mlp_bias": True},
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), attn_implementation="eager")
    made = tiny.enlarged(made, {"gpt2": 12.0, "llama": 8.0}[kind])
    with torch.no_grad():
        for name, one in made.named_parameters():
            kept = name.removesuffix(".weight").split(".")[-1]
            if kept.startswith(("ln", "norm")) or kept.endswith("norm"):
                one.fill_(1e5) if name.endswith("weight") else one.zero_()
            elif kept in ("q_proj", "k_proj", "gate_proj"):
                one.zero_()
            elif name.endswith("c_attn.weight"):
                one[:, : 2 * made.config.n_embd] = 0
            elif name.endswith("gate_proj.bias"):
                one.fill_(1.0)
    return locate.load_model(made, tiny.tokenizer())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs"])
def test_scores_are_exact_where_all_is_linear(kind, method):
    bridge = linear(kind)
    graph, names = tellable(bridge), written_hooks(bridge)
    own = locate.Contrast.of(bridge, *prompts(), direction="break", keep=names, keep_target=names, metric=metric)
    edges = [(int(at), int(to)) for at, to in np.argwhere(graph.edges())]
    metrics = own.metrics(metric)
    cut = cut_edges(own, graph, edges, metrics)[:, 0, 0]
    shape = graph.edges().shape
    sums = Sums(total=torch.zeros(shape), squares=torch.zeros(shape))
    add_scores(sums, own, graph, metrics[0], edge_method(method), steps=3)
    scores, effects = sums.total[graph.edges()], cut - own.ends(metrics).target[0, 0]
    size = float(effects.abs().max())
    assert size > 0.1
    # Those into values, MLPs and logits do something.
    assert float((effects.abs() > 1e-3 * size).float().mean()) > 0.2
    torch.testing.assert_close(scores, effects, rtol=0, atol=2e-5 * size)
