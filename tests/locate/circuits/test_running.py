"""Circuits that are run against a forward pass written out component by component."""

import numpy as np
import pytest
import torch

from locate.circuits.running import run_circuits
from locate.circuits.written import tellable
from locate.sites.contributions import attention_contributions
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


def literal_run(bridge, graph, kept, theirs):
    """Every edge that is cut moves its reader's input, one after the other, by hooks of its own on one whole pass.

    What writers write meanwhile is seen as they write it: a later reader takes what the pass has by then.
    """
    clean = prompts()[0][None]
    current = {}

    def wrote(name, value):
        current[name] = theirs[name] - value

    hooks = []
    anatomy = graph.anatomy

    def entering(layer):
        def hook(value, hook):
            current["stream"] = current["mid"] = value
            if layer == 0:
                wrote("embed", value)

        return hook

    def cut(reader):
        j = graph.readers.index(reader)
        return sum(
            current[one.name] for i, one in enumerate(graph.writers) if one.order < reader.order and not kept[i, j]
        )

    for layer, own in enumerate(anatomy.layers):
        block = bridge.blocks[layer]
        hooks.append((f"blocks.{layer}.hook_resid_pre", entering(layer)))
        for one in "qkv":
            readers = [r for r in graph.readers if r.layer == layer and r.input == one]

            def head(value, hook, readers=readers, one=one, block=block, layer=layer):
                value = value.clone()
                norm = literal.reading(bridge, layer, "attn")
                module = getattr(block.attn, one).original_component
                for reader in readers:
                    made = module(norm(current["stream"] + cut(reader))).reshape(value.shape)
                    value[:, :, reader.head] = made[:, :, reader.head]
                return value

            hooks.append((f"blocks.{layer}.attn.hook_{one}", head))
        seen = {}

        def z(value, hook, seen=seen):
            seen["z"] = value

        def projected(value, hook, seen=seen, layer=layer):
            heads, _ = attention_contributions(bridge, layer, seen["z"], value)
            for head in range(heads.shape[2]):
                wrote(f"a{layer}.h{head}", heads[:, :, head])

        def attended(value, hook, own=own):
            if not own.parallel:
                current["mid"] = current["stream"] + value

        def mlp_in(value, hook, layer=layer):
            reader = next(r for r in graph.readers if r.name == f"m{layer}")
            return literal.reading(bridge, layer, "mlp")(current["mid"] + cut(reader))

        def mlp_out(value, hook, layer=layer):
            wrote(f"m{layer}", value)

        hooks += [
            (f"blocks.{layer}.attn.hook_z", z), (f"blocks.{layer}.attn.o.hook_out", projected),
            (f"blocks.{layer}.hook_attn_out", attended), (f"blocks.{layer}.mlp.hook_in", mlp_in),
            (f"blocks.{layer}.hook_mlp_out", mlp_out),
        ]  # fmt: skip
    hooks.append(("ln_final.hook_in", lambda value, hook: value + cut(graph.readers[-1])))
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        return float(metric(bridge(clean)[:, -1])[0])


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
        expected = literal_run(bridge, graph, one.numpy(), theirs)
        assert value == pytest.approx(expected, abs=1e-3 * size), kind
    between = (found[2:, None] - torch.cat([*ends])[:, 0]).abs().amin(1)
    assert float(between.max()) > 1e-2 * size
