"""Where TransformerLens' attributions do not add up or are refused, and that the toolkit's do."""

import numpy as np
import pytest
import torch
from transformer_lens.patching import get_act_patch_attn_head_k_all_pos, get_act_patch_attn_head_v_all_pos
from transformer_lens.tools.analysis import direct_logit_attribution
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
    faithfulness,
)

import locate
from locate.sites.contributions import contribution_hooks, contributions
from tests.transformer_lens.models import FACT, SWAP, TOKENS, cached, fresh, hooked, model, pair

pytestmark = pytest.mark.filterwarnings("ignore:The corruption changes probability by only")


def check_adds_up(kind):
    """What ``logit_attribution`` gives to parts is the model's own difference."""
    bridge = model(kind)
    logits = hooked(bridge, TOKENS)[0]
    found = locate.logit_attribution(bridge, TOKENS[0], (11, 12), by="head", progress=False)
    assert float(found.sum[0]) == pytest.approx((logits[11] - logits[12]).item(), abs=1e-4)


@pytest.mark.parametrize(("kind", "factor"), [("granite", 2.0), ("llama", 1.0)])
def test_attributions_of_scaled_logits_are_too_large_by_the_scale(kind, factor, library):
    folded = fresh(kind)
    folded.enable_compatibility_mode()
    with library:
        logits = hooked(folded, TOKENS)[0]
        found = direct_logit_attribution(folded, TOKENS, answer_tokens=11, incorrect_tokens=12).attribution
        assert found.sum().item() == pytest.approx(factor * (logits[11] - logits[12]).item(), rel=1e-3)
    check_adds_up(kind)


@pytest.mark.parametrize("kind", ["olmo2", "glm4"])
def test_attributions_through_a_norm_that_is_not_folded_are_refused(kind, library):
    folded = fresh(kind)
    folded.enable_compatibility_mode()
    with library, pytest.raises(ValueError, match="identity final norm weight"):
        direct_logit_attribution(folded, TOKENS, answer_tokens=11)
    check_adds_up(kind)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "granite", "olmo2", "gemma2", "gemma3_text", "glm4"])
def test_what_heads_add_does_not_sum_where_a_norm_follows(kind, library):
    bridge = fresh(kind)
    bridge.set_use_attn_result(True)
    states, block = cached(bridge), bridge.blocks[1]
    final, norm_follows = states["ln_final.hook_in"], kind in ("olmo2", "gemma2", "gemma3_text", "glm4")
    with library:
        heads = states["blocks.1.attn.hook_result"].sum(2)
        if block.attn.b_O is not None:
            heads = heads + block.attn.b_O.detach()
        off = (heads - states["blocks.1.hook_attn_out"]).abs().max() / heads.abs().max()
        assert (off > 0.1) == norm_follows
        for neurons in (True, False):
            whole = states.get_full_resid_decomposition(expand_neurons=neurons).sum(0)
            off = (whole - final).abs().max() / final.abs().max()
            assert (off > 0.1) == norm_follows
        torch.testing.assert_close(states.decompose_resid().sum(0), final, rtol=1e-4, atol=1e-5)
    bridge = model(kind)
    states = cached(bridge)
    own = contributions(bridge, 1, {name: states[name] for name in contribution_hooks(bridge, [1])})
    torch.testing.assert_close(own.heads.sum(2) + own.bias, states["blocks.1.hook_attn_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("site", "sweep"), [
    ("attn_head_k", get_act_patch_attn_head_k_all_pos), ("attn_head_v", get_act_patch_attn_head_v_all_pos),
], ids=["k", "v"])  # fmt: skip
def test_keys_and_values_are_patched_by_key_value_head(site, sweep, library):
    bridge = model("llama")
    clean, corrupt, answer = pair(bridge)

    def metric(logits):
        return logits[0, -1].softmax(-1)[answer]

    with library:
        table = sweep(bridge, corrupt, cached(bridge, clean), metric)
        assert table.shape == (4, 2)
        assert bridge.cfg.n_heads == 4
    patched = locate.patch(bridge, FACT, SWAP, sites=site, progress=False)
    np.testing.assert_allclose(patched.values.transpose("layer", "head"), table, rtol=1e-4)


def test_edges_are_refused_under_grouped_queries(library):
    bridge = model("llama")
    clean, corrupt, answer = pair(bridge)

    def metric(logits):
        return logits[0, -1, answer]

    with library:
        with pytest.raises(ValueError, match="GQA"):
            attribution_patch(bridge, clean, corrupt, metric, EdgeAttributionConfig(granularity="edge"))
        with pytest.raises(ValueError, match="GQA"):
            faithfulness(bridge, clean, corrupt, metric, [])
        with pytest.raises(NotImplementedError):
            EdgeAttributionConfig(ig_steps=2)
    # Head 1 of layer 0 to the keys of the first group in layer 2, and nothing between them answers.
    paths = locate.path_patch(bridge, FACT, SWAP, receivers="a2.h0.k", senders=["a0.h1"], progress=False)
    own, other = cached(bridge, clean), cached(bridge, corrupt)
    sent = other["blocks.0.attn.hook_z"][:, :, 1] - own["blocks.0.attn.hook_z"][:, :, 1]
    arriving = own["blocks.2.hook_resid_pre"] + sent @ bridge.blocks[0].attn.W_O[1].detach()
    keys = []
    entering = ("blocks.2.hook_resid_pre", lambda value, hook: arriving)
    hooked(bridge, clean, entering, ("blocks.2.attn.hook_k", lambda value, hook: keys.append(value.clone())))

    def receive(value, hook):
        value = value.clone()
        value[:, :, 0] = keys[0][:, :, 0]
        return value

    literal = hooked(bridge, clean, ("blocks.2.attn.hook_k", receive)).softmax(-1)[0, answer]
    assert paths.values.item() == pytest.approx(literal.item(), rel=1e-4)
