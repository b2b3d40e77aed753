"""Scores of edges against one edge at a time in whole passes."""

from functools import cache

import numpy as np
import pytest
import torch

import locate
from locate.circuits.scoring import Sums, add_scores, edge_method
from locate.circuits.written import tellable, written_hooks
from tests import tiny
from tests.architectures import table
from tests.locate.circuits import literal
from tests.sampling import sampled

KINDS = [
    "gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "cohere", "falcon", "mpt",
    "gptj", "bloom", "phi3", "mixtral", "llama4_text",
]  # fmt: skip
CLEAN = "I think that Big Ben is in the city of"


@cache
def model(kind):
    return table.bridge(kind)


@cache
def prompts():
    ids = torch.tensor(tiny.tokenizer()(CLEAN)["input_ids"])
    other = ids.clone()
    other[4:6] = torch.tensor(tiny.tokenizer()(" London Paris")["input_ids"])[:2]
    return ids, other


def metric(logits):
    return (logits[:, 7] - logits[:, 9]).float()


@cache
def contrast(kind):
    names = written_hooks(model(kind))
    return locate.Contrast.of(model(kind), *prompts(), direction="break", keep=names, keep_target=names, metric=metric)


def scores(kind, method, steps=3, by_position=False):
    graph = tellable(model(kind))
    shape = len(graph.writers), len(graph.readers)
    n = contrast(kind).target.tokens.shape[1]
    places = torch.zeros(n, *shape) if by_position else None
    sums = Sums(total=torch.zeros(shape), squares=torch.zeros(shape), by_position=places)
    add_scores(sums, contrast(kind), graph, contrast(kind).metrics(metric)[0], edge_method(method), steps=steps)
    return sums


def some_edges(graph, n=14):
    every = np.argwhere(graph.edges())
    chosen = np.random.default_rng(0).choice(len(every), n, replace=False)
    last = [i for i, (_, reader) in enumerate(every) if reader == len(graph.readers) - 1]
    return [tuple(every[i]) for i in (*chosen, *last[:: len(graph.writers) // 3])]


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_scores_are_the_slope_of_patching_an_edge(kind):
    bridge, graph = model(kind), tellable(model(kind))
    clean, corrupt = (ids[None] for ids in prompts())
    own, theirs = literal.added(bridge, clean), literal.added(bridge, corrupt)
    found = scores(kind, "eap").total
    size = float(found.abs().max())

    def measured(writer, reader, share):
        moved = (theirs[writer.name] - own[writer.name]) * share
        hooks = literal.edge_hooks(bridge, reader, moved, graph.anatomy.layers[min(reader.layer, 2)].parallel)
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
            return float(metric(bridge(clean)[:, -1].double())[0])

    for i, j in some_edges(graph):
        writer, reader = graph.writers[i], graph.readers[j]
        step = 1e-2
        slope = (measured(writer, reader, step) - measured(writer, reader, -step)) / (2 * step)
        assert float(found[i, j]) == pytest.approx(slope, rel=2e-2, abs=3e-3 * size), (writer.name, reader.name)
    assert float(found[~torch.from_numpy(graph.edges())].abs().max()) == 0
