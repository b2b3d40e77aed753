"""Circuits that are run against a forward pass written out component by component."""

import numpy as np
import pytest
import torch

from locate.circuits.running import run_circuits
from locate.circuits.written import tellable
from tests.locate.circuits import literal
from tests.locate.circuits.test_scoring import contrast, metric, model, prompts
from tests.sampling import sampled

KINDS = [
    "gpt2",
    "gpt_neox",
    "llama",
    "qwen3",
    "gemma2",
    "olmo2",
    "granite",
    "cohere",
    "falcon",
    "mpt",
    "gptj",
    "mixtral",
]


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_a_circuit_is_run_as_written_out(kind):
    bridge, graph = model(kind), tellable(model(kind))
    corrupt = prompts()[1][None]
    theirs = literal.added(bridge, corrupt)
    edges = graph.edges()
    generator = np.random.default_rng(1)
    kept = torch.from_numpy(np.stack([
        edges, np.zeros_like(edges), edges & (generator.random(edges.shape) < 0.5),
        edges & (generator.random(edges.shape) < 0.9),
    ]))  # fmt: skip
    found = run_circuits(contrast(kind), graph, kept, contrast(kind).metrics(metric))[:, 0, 0]
    ends = contrast(kind).ends(metric)
    size = abs(float(ends.target - ends.source))
    assert float(found[0]) == pytest.approx(float(ends.target), abs=1e-4 * size)
    assert float(found[1]) == pytest.approx(float(ends.source), abs=1e-3 * size)
    for one, value in zip(kept[2:], found[2:].tolist(), strict=True):
        expected = literal.circuit(bridge, graph, one.numpy(), prompts()[0], theirs, metric)
        assert value == pytest.approx(expected, abs=1e-3 * size), kind
    between = (found[2:, None] - torch.cat([*ends])[:, 0]).abs().amin(1)
    assert float(between.max()) > 1e-2 * size
