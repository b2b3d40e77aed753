"""The writers and readers of a model: that they add up, and that they reach whom the graph says."""

from functools import cache

import numpy as np
import pytest
import torch

from locate import ModelError, SiteError
from locate.engine import freeze
from locate.model.anatomy import anatomy
from locate.sites import contributions as contributed
from locate.sites.contributions import contribution_hooks, contributions, passage
from locate.sites.graph import graph
from locate.sites.table import hook_name
from tests import tiny
from tests.locate.model.test_anatomy import GEMMA4, built

KINDS = [*tiny.CONFIGS, *tiny.OTHER_CONFIGS]
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


@cache
def model(kind):
    """With biases and gains that are not what they are before training, so that leaving one out is seen."""
    bridge = tiny.bridge(kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bridge.original_model.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return bridge


def watched(bridge, names, change=()):
    """The values at some hook points, by the library's own hooks, and the logits."""
    found = {}

    def keep(name):
        return lambda value, hook: found.update({name: value.detach().clone()})

    with torch.no_grad(), bridge.hooks(fwd_hooks=[*change, *((name, keep(name)) for name in names)]):
        bridge(TOKENS)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_written_sums_to_the_final_stream(kind):
    bridge, layers = model(kind), range(4)
    entering, final = graph(bridge).writer("embed").hook, graph(bridge).reader("logits").hook
    states = watched(bridge, [*contribution_hooks(bridge, layers), hook_name("attn_out", 2), entering, final])
    total = states[entering].clone()
    for layer in layers:
        own = contributions(bridge, layer, states)
        assert own.heads.shape == (*TOKENS.shape, 4, 32)
        total += own.heads.sum(2) + own.bias + own.mlp
        if layer == 2:
            torch.testing.assert_close(
                own.heads.sum(2) + own.bias, states[hook_name("attn_out", 2)], rtol=1e-4, atol=1e-5
            )
            assert all(own.heads[:, :, head].abs().max() > 1e-3 for head in range(4))
    torch.testing.assert_close(total, states[final], rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "olmo2", "granite"])
def test_a_head_adds_what_its_z_makes_of_the_projection_at_that_scale(kind):
    """Against what attention adds without the head, where a norm keeps the scale that it has with it."""
    bridge, layer, head = model(kind), 1, 2
    name, out = hook_name("attn_head_z", layer), hook_name("attn_out", layer)
    states = watched(bridge, [*contribution_hooks(bridge, [layer]), out])
    own = contributions(bridge, layer, states)

    def silence(value, hook):
        value = value.clone()
        value[:, :, head] = 0
        return value

    names = [hook_name("attn_proj_out", layer), out]
    without = watched(bridge, names, [(name, silence)])
    if anatomy(bridge).layers[layer].norm_after_attention:
        # A norm of its kind divides by the root mean square.
        before, after = (states[names[0]], without[names[0]])
        rescaled = without[out] * ((after**2).mean(-1, keepdim=True) / (before**2).mean(-1, keepdim=True)).sqrt()
    else:
        rescaled = without[out]
    torch.testing.assert_close(own.heads[:, :, head], states[out] - rescaled, rtol=1e-3, atol=2e-4)


def test_a_norm_that_centres_and_shifts_is_linear_at_its_scale():
    norm = torch.nn.LayerNorm(7)
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(0))
        norm.bias.fill_(0.5)
    states = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)) * 3 + 1
    parts = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(2))
    parts[:, :, -1] += states - parts.sum(2)
    through = contributed.Passage.of(norm, states, 2.0)
    assert through.centred
    torch.testing.assert_close(through(parts).sum(2) + through.shift * 2.0, norm(states) * 2.0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(through(states), through(parts).sum(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_a_writer_changes_exactly_the_readers_that_it_reaches(kind):
    """Bit for bit: what an edge does not reach is computed from the same numbers."""
    bridge = model(kind)
    found = graph(bridge)
    hooks = list(dict.fromkeys(reader.hook for reader in found.readers))
    clean = watched(bridge, hooks)
    generator = torch.Generator().manual_seed(3)
    changed = np.zeros((len(found.writers), len(found.readers)), dtype=bool)

    def disturb(writer):
        def hook(value, hook):
            value = value.clone()
            part = value if writer.head is None else value[:, :, writer.head]
            part += torch.randn(part.shape, generator=generator)
            return value

        return hook

    for row, writer in enumerate(found.writers):
        states = watched(bridge, hooks, [(writer.hook, disturb(writer))])
        for column, reader in enumerate(found.readers):
            one, other = (run[reader.hook] for run in (clean, states))
            if reader.head is not None:
                one, other = one[:, :, reader.head], other[:, :, reader.head]
            changed[row, column] = not torch.equal(one, other)
    assert 0 < changed.sum() < changed.size
    np.testing.assert_array_equal(changed, found.edges())


@pytest.mark.parametrize("kind", ["llama", "falcon", "gpt2"])
def test_a_head_reads_through_the_key_value_head_of_its_group(kind):
    bridge = model(kind)
    found, layer = graph(bridge), 1
    pattern, keys = hook_name("attn_head_pattern", layer), hook_name("attn_head_k", layer)
    clean = watched(bridge, [pattern])[pattern]
    for group in range(anatomy(bridge).n_kv_heads):

        def disturb(value, hook, group=group):
            value = value.clone()
            value[:, :, group] *= -2
            return value

        moved = watched(bridge, [pattern], [(keys, disturb)])[pattern]
        heads = [head for head in range(4) if not torch.equal(moved[:, head], clean[:, head])]
        assert heads == [head for head in range(4) if found.kv_head(layer, head) == group]


def test_names_in_order_of_computation():
    found = graph(model("llama"))
    assert [one.name for one in found.writers[:7]] == ["embed", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0", "a1.h0"]
    first = ["a0.h0.q", "a0.h1.q", "a0.h2.q", "a0.h3.q", "a0.h0.k", "a0.h1.k", "a0.h0.v", "a0.h1.v", "m0", "a1.h0.q"]
    assert [one.name for one in found.readers[:10]] == first
    assert (found.writers[-1].name, found.readers[-1].name) == ("m3", "logits")
    for side in (found.writers, found.readers):
        assert [one.order for one in side] == sorted(one.order for one in side)
        assert len({one.name for one in side}) == len(side)
    assert graph(model("llama")) is found


def test_an_mlp_beside_attention_does_not_read_it():
    edges = {}
    for kind in ("llama", "gptj"):
        found = graph(model(kind))
        table = found.edges()
        edges[kind] = table[found.writers.index(found.writer("a2.h1")), found.readers.index(found.reader("m2"))]
    assert edges == {"llama": True, "gptj": False}


@pytest.mark.parametrize(("side", "name", "message"), [
    ("writer", "a9.h1", "layer 9 is out of range: the model has 4 layers"),
    ("writer", "a1.h4", "head 4 is out of range: a layer of the model has 4 heads"),
    ("reader", "a1.h2.k", "head 2 is out of range: a layer of the model has 2 key-value heads"),
    ("reader", "a1.h1", r"its query, key or value; write a1\.h1\.q"),
    ("writer", "a1.h1.q", r"a head sends one output; write it without \.q"),
    ("writer", "logits", "The logits receive; they send nothing"),
    ("reader", "embed", "The embedding sends; it receives nothing"),
    ("reader", "head 3", "There is no component 'head 3'. Write heads as a3.h1"),
    ("writer", "m4", "m4: layer 4 is out of range"),
])  # fmt: skip
def test_components_that_do_not_exist_are_refused(side, name, message):
    with pytest.raises(SiteError, match=message):
        getattr(graph(model("llama")), side)(name)


def test_a_layer_that_adds_something_else_is_not_taken_apart():
    bridge = built("gemma4_text", **{**GEMMA4, "hidden_size_per_layer_input": 8})
    states = watched(bridge, contribution_hooks(bridge, [1]))
    with pytest.raises(ModelError, match=r"What layer 1 of Gemma4.* is not the sum of heads"):
        contributions(bridge, 1, states)


def test_projections_that_are_not_the_states_are_refused():
    bridge = model("llama")
    run = freeze(bridge, TOKENS, keep=contribution_hooks(bridge, [1]))
    wrong = {**run.kept, hook_name("attn_head_z", 1): run.kept[hook_name("attn_head_z", 1)] * 1.5}
    with pytest.raises(ModelError, match="cannot be told apart"):
        contributions(bridge, 1, wrong)
    assert passage(bridge, 1, run.kept[hook_name("attn_proj_out", 1)]).gain is None


def test_layers_without_heads_are_refused_with_those_that_have():
    bridge = model("lfm2")  # convolutions in layers 0 and 2
    message = r"Layer 2 has no attention heads .*told apart by head\. Choose among those that have: 1, 3\."
    with pytest.raises(ModelError, match=message):
        contribution_hooks(bridge, range(1, 3))
    for ask in (lambda: contributions(bridge, 2, {}), lambda: passage(bridge, 2, torch.zeros(1, 1, 32))):
        with pytest.raises(ModelError, match=message):
            ask()
    layers = [1, 3]
    states = watched(bridge, [*contribution_hooks(bridge, layers), *(hook_name("attn_out", one) for one in layers)])
    for layer in layers:
        own = contributions(bridge, layer, states)
        torch.testing.assert_close(
            own.heads.sum(2) + own.bias, states[hook_name("attn_out", layer)], rtol=1e-4, atol=1e-5
        )
