"""Which of the weights that TransformerLens shows are those that compute, and that the toolkit writes these."""

import copy

import pytest
import torch
from einops import einsum
from transformers import AutoModelForCausalLM

import edit
import locate
from edit.changes.lowrank import LowRank
from locate.model.weights import down_projection
from locate.model.wrapped import check_plain
from tests import tiny
from tests.test_house import MODULES
from tests.transformer_lens.models import TOKENS, cached, fresh, hf_model, hooked, model

COPIED = {
    "gpt_neox": "gpt_neox.layers.1.attention.query_key_value",
    "bloom": "transformer.h.1.self_attention.query_key_value",
    "falcon": "transformer.h.1.self_attention.query_key_value",
    "mpt": "transformer.blocks.1.attn.Wqkv",
    "codegen": "transformer.h.1.attn.qkv_proj",
}
SHARED = {"gpt2": "transformer.h.1.attn.c_attn", "phi3": "model.layers.1.self_attn.qkv_proj"}


@pytest.mark.parametrize("kind", [*COPIED, *SHARED])
def test_a_fused_weight_may_be_a_copy(kind, library, tmp_path):
    hf, path = hf_model(kind), {**COPIED, **SHARED}[kind]
    fused = hf.get_submodule(path).weight
    bridge = locate.load_model(hf, tiny.tokenizer())
    before, stored = hooked(bridge, TOKENS), fused.detach().clone()
    with library, torch.no_grad():
        fused.mul_(1.5)
        for answer in (hooked(bridge, TOKENS), hf(TOKENS).logits[:, -1]):
            assert torch.equal(answer, before) == (kind in COPIED)
        fused.copy_(stored)
        bridge.blocks[1].attn.W_V.mul_(2)
        after = hooked(bridge, TOKENS)
        assert not torch.equal(after, before)
        assert torch.equal(fused, stored) == (kind in COPIED)
    folder = edit.export(bridge, None, tmp_path / "edited")
    with torch.no_grad():
        exported = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(TOKENS).logits
    torch.testing.assert_close(exported[:, -1], after, rtol=1e-4, atol=1e-5)
    delta = {f"{path}.weight": LowRank(left=torch.ones(len(stored), 1), right=torch.ones(1, stored.shape[1]))}
    if kind in COPIED:
        with pytest.raises(locate.LocateError, match="would do nothing"):
            edit.WeightUpdate.make(bridge, delta, method="none").apply(bridge)
    else:
        with edit.WeightUpdate.make(bridge, delta, method="none").applied(bridge):
            assert not torch.equal(hooked(bridge, TOKENS), after)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_the_stack_of_all_layers_weights_is_a_copy(kind, library):
    bridge, plain = fresh(kind), hf_model(kind)
    before = hooked(bridge, TOKENS)
    with library, torch.no_grad():
        bridge.W_out[1].mul_(2)
        assert torch.equal(hooked(bridge, TOKENS), before)
        bridge.blocks[1].mlp.W_out.mul_(2)
        assert not torch.equal(hooked(bridge, TOKENS), before)
        bridge.blocks[1].mlp.W_out.div_(2)
    down = down_projection(bridge, 1)
    size = down.parameter.shape
    delta = LowRank(left=torch.ones(size[0], 1), right=torch.full((1, size[1]), 0.1))
    with torch.no_grad():
        plain.get_parameter(down.name).add_(0.1)
        wanted = plain(TOKENS).logits[:, -1]
    with edit.WeightUpdate.make(bridge, {down.name: delta}, method="none").applied(bridge):
        torch.testing.assert_close(hooked(bridge, TOKENS), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(hooked(bridge, TOKENS), before)


@pytest.mark.parametrize(("kind", "scale"), [("llama", 8**-0.5), ("granite", 0.2), ("gpt2", 8**-0.5)])
def test_the_scale_of_attention_in_the_configuration_is_no_scale(kind, scale, library):
    bridge = model(kind)
    states = cached(bridge)
    q, k = (states[f"blocks.1.attn.hook_{part}"][0, 0] for part in "qk")
    k = k.repeat_interleave(len(q) // len(k), 0)
    scores = einsum(q, k, "head d_head, head d_head -> head") * scale  # positions rotate nothing at the first
    with library:
        assert bridge.cfg.attn_scale == -1
        torch.testing.assert_close(states["blocks.1.attn.hook_attn_scores"][0, :, 0, 0], scores)
    assert not [path for path in MODULES if "attn_scale" in path.read_text()]


def tied():
    """A model whose unembedding is its embedding."""
    hf = tiny.hf_model("llama")
    config = copy.deepcopy(hf.config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return tiny.enlarged(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), 4.0)


def test_an_edit_of_one_of_two_tied_matrices_is_lost_when_they_grow(library, tmp_path):
    hf = tied()
    own = hf.lm_head.weight.detach() * 2
    hf.lm_head.weight = torch.nn.Parameter(own)
    wanted = hf(TOKENS).logits
    hf.save_pretrained(tmp_path / "saved")
    with library:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(again(TOKENS).logits, wanted)
        assert again.config.tie_word_embeddings
        again.resize_token_embeddings(tiny.VOCAB + 2)
        assert not torch.equal(again.lm_head.weight[: tiny.VOCAB], own)
    folder = edit.export(locate.load_model(hf, tiny.tokenizer()), None, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(exported(TOKENS).logits, wanted)
    exported.resize_token_embeddings(tiny.VOCAB + 2)
    torch.testing.assert_close(exported(TOKENS).logits[..., : tiny.VOCAB], wanted)


@pytest.mark.parametrize("where", ["embed_tokens", "lm_head"])
def test_a_tied_adapter_is_merged_twice(where, library):
    peft = pytest.importorskip("peft", reason="peft is no dependency: its behaviour is held where it is installed")
    config = peft.LoraConfig(target_modules=[where], r=2, ensure_weight_tying=True, init_lora_weights=False)
    adapted = peft.get_peft_model(tied(), config).eval()
    with pytest.raises(locate.ModelError, match=r"Merge first.*merges twice"):
        check_plain(adapted)  # as load_model does
    with torch.no_grad():
        wanted = adapted(TOKENS).logits[:, -1]
        before = tied().get_input_embeddings().weight
        deltas = [one.get_delta_weight("default") for one in adapted.modules() if hasattr(one, "get_delta_weight")]
        delta = next(one if one.shape == before.shape else one.T for one in deltas)
        merged = adapted.merge_and_unload()
        with library:
            torch.testing.assert_close(merged.get_input_embeddings().weight, before + 2 * delta)
        merged.get_input_embeddings().weight.sub_(delta)
    bridge = locate.load_model(merged, tiny.tokenizer())
    torch.testing.assert_close(hooked(bridge, TOKENS), wanted, rtol=1e-4, atol=1e-5)
