"""Path patching against three literal whole passes."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch

import locate
from locate import Site, SiteError
from locate.sites.components import site_written
from locate.sites.graph import graph
from tests import tiny
from tests.sampling import slow

TEXT = "I think that Big Ben is in the city of"


@cache
def model(kind):
    return tiny.bridge(kind, scale=20.0)


def prompts():
    ids = torch.tensor(tiny.tokenizer()(TEXT)["input_ids"])
    other = ids.clone()
    other[4:6] = torch.tensor(tiny.tokenizer()(" London Paris")["input_ids"])[:2]
    return ids, other


def difference(logits):
    return (logits[:, 7] - logits[:, 9]).float()


def patched(kind, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate.path_patch(model(kind), *prompts(), metric=difference, progress=False, **options)


def literal(kind, sender, receivers, through):
    """Record what arrives at the receivers with one sender corrupted and all else clean, then put it in."""
    bridge = model(kind)
    clean, corrupt = prompts()
    layers = range(bridge.cfg.n_layers)
    with torch.no_grad():
        _, a = bridge.run_with_cache(clean[None])
        _, b = bridge.run_with_cache(corrupt[None])
    node = graph(bridge).writer(sender)

    def z(layer):
        def hook(value, hook):
            value = a[f"blocks.{layer}.attn.hook_z"].clone()
            if node.head is not None and node.layer == layer:
                value[:, :, node.head] = b[f"blocks.{layer}.attn.hook_z"][:, :, node.head]
            return value

        return (f"blocks.{layer}.attn.hook_z", hook)

    def mlp(layer):
        mine = node.head is None and node.layer == layer
        return (f"blocks.{layer}.hook_mlp_out", lambda value, hook: (b if mine else a)[f"blocks.{layer}.hook_mlp_out"])

    hooks = [z(layer) for layer in layers if through != "all" or (node.head is not None and node.layer == layer)]
    hooks += [mlp(layer) for layer in layers if through == "direct" or (node.head is None and node.layer == layer)]
    arrived = {}

    def record(name):
        def hook(value, hook):
            arrived[name] = value.detach().clone()

        return (name, hook)

    nodes = [graph(bridge).reader(name) for name in receivers]
    names = {
        one: f"blocks.{one.layer}.attn.hook_{one.input}" if one.head is not None else f"blocks.{one.layer}.mlp.hook_in"
        for one in nodes
        if one.name != "logits"
    }
    with torch.no_grad(), bridge.hooks(fwd_hooks=[*(record(name) for name in names.values()), *hooks]):
        logits = bridge(clean[None])[:, -1]
    if nodes[0].name == "logits":
        return float(difference(logits)[0])

    def put(one):
        def hook(value, hook):
            if one.head is None:
                return arrived[names[one]]
            value = value.clone()
            value[:, :, one.head] = arrived[names[one]][:, :, one.head]
            return value

        return (names[one], hook)

    with torch.no_grad(), bridge.hooks(fwd_hooks=[put(one) for one in nodes]):
        return float(difference(bridge(clean[None])[:, -1])[0])


@pytest.mark.parametrize("through", ["direct", "mlps", "all"])
@pytest.mark.parametrize("receivers", [["logits"], ["a2.h1.q"], ["a3.h0.k", "a2.h1.v"], ["m2"], ["m1", "a3.h1.q"]])
@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=slow), "llama"])
def test_heads_and_mlps_equal_three_whole_passes(kind, receivers, through):
    heads = patched(kind, receivers=receivers, through=through)
    mlps = patched(kind, receivers=receivers, through=through, senders="mlps")
    assert heads.scores.dims == ("layer", "head")
    assert mlps.scores.dims == ("layer",)
    for layer in range(4):
        for head in (0, 3):
            expected = literal(kind, f"a{layer}.h{head}", receivers, through)
            assert float(heads.values[layer, head]) == pytest.approx(expected, abs=3e-5)
        assert float(mlps.values[layer]) == pytest.approx(literal(kind, f"m{layer}", receivers, through), abs=3e-5)
    assert np.abs(heads.effect.values).max() > 1e-4


def test_named_senders_are_labelled():
    found = patched("llama", senders=["a1.h2", "m0"], receivers=["a3.h1.q"])
    assert list(found.values["sender"].values) == ["a1.h2", "m0"]
    alone = patched("llama", senders=["a1.h2", "m0"], receivers="a3.h1.q")
    np.testing.assert_allclose(alone.values, found.values, rtol=1e-5)
    every = patched("llama", receivers=["a3.h1.q"])
    assert float(found.values.sel(sender="a1.h2")) == pytest.approx(float(every.values[1, 2]), abs=1e-6)


def test_a_small_budget_and_several_prompts_change_nothing():
    clean, corrupt = prompts()
    other = clean.clone()
    other[0] = 50
    options = {"metric": difference, "progress": False, "receivers": ["a3.h1.q"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [locate.path_patch(model("llama"), one, corrupt, **options) for one in (clean, other)]
        both = locate.path_patch(model("llama"), [clean, other], [corrupt, corrupt], **options)
        small = locate.path_patch(model("llama"), [clean, other], [corrupt, corrupt], budget=1, **options)
    each = np.stack([one.values.values for one in alone])
    np.testing.assert_allclose(both.values, each.mean(0), atol=3e-5)
    np.testing.assert_allclose(both.standard_error, each.std(0, ddof=1) / 2**0.5, atol=3e-5)
    np.testing.assert_allclose(small.values, both.values, atol=3e-5)


def test_a_metric_that_hardly_changes_is_warned_about():
    clean, corrupt = prompts()
    with pytest.warns(UserWarning, match="The corruption changes constant by only 0,"):
        locate.path_patch(model("llama"), clean, corrupt, metric=constant, progress=False)


def constant(logits):
    return torch.ones(len(logits))


def test_what_comes_after_the_receivers_sends_nothing():
    found = patched("llama", receivers=["a2.h1.q"])
    np.testing.assert_allclose(found.values[2:], found.clean, atol=1e-6)
    assert np.abs(found.effect.values[:2]).max() > 1e-5


def test_the_best_sender_is_a_site():
    heads = patched("llama")
    layer, head = np.unravel_index(int(heads.scores.values.argmin()), heads.scores.shape)
    assert heads.best() == Site("attn_head", layer=int(layer), head=int(head))
    mlps = patched("llama", senders="mlps")
    assert mlps.best() == Site("mlp", layer=int(mlps.scores.values.argmin()))
    names = ["a1.h2", "m0", "a2.h3"]
    named = patched("llama", senders=names)
    assert named.best() == site_written(names[int(named.scores.values.argmin())])
    with pytest.raises(SiteError, match="The logits are read from the stream"):
        site_written("logits")


@pytest.mark.parametrize(("options", "message"), [
    ({"receivers": ["a9.h1.q"]}, r"a9\.h1\.q: layer 9 is out of range: the model has 4 layers"),
    ({"receivers": ["a1.h4.q"]}, "head 4 is out of range: a layer of the model has 4 heads"),
    ({"receivers": ["a1.h2.k"]}, "head 2 is out of range: a layer of the model has 2 key-value heads"),
    ({"receivers": ["a1.h1"]}, r"a1\.h1: a head receives by its query, key or value; write a1\.h1\.q, a1\.h1\.k or"),
    ({"receivers": []}, "give at least one"),
    ({"receivers": ["logits", "m2"]}, "in a call of their own"),
    ({"receivers": ["head 3"]}, "There is no component 'head 3'. Write heads as a3.h1"),
    ({"senders": ["a1.h1.q"]}, "a head sends one output"),
    ({"senders": ["logits"]}, "The logits receive"),
    ({"senders": ["embed"]}, "heads and MLPs send; to send the embedding, patch resid_pre"),
    ({"receivers": ["embed"]}, "The embedding sends; it receives nothing"),
    ({"senders": []}, "senders must be"),
])  # fmt: skip
def test_components_that_do_not_exist_are_refused(options, message):
    with pytest.raises(SiteError, match=message):
        patched("llama", **options)
