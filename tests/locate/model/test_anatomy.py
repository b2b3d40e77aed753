"""What is found about a model once, and what a model is found to be made of."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from locate import ModelError
from locate.model.anatomy import LayerAnatomy, anatomy
from locate.model.found import once
from tests import tiny

PLAIN = {
    "n_heads": 4, "n_kv_heads": 4, "d_head": 8, "has_mlp": True, "parallel": False, "norm_after_attention": False,
    "norm_after_mlp": False, "multiplier": 1.0, "one_down_projection": True, "adds_up": True,
}  # fmt: skip
GROUPED = {"n_kv_heads": 2}
SANDWICHED = {**GROUPED, "norm_after_attention": True, "norm_after_mlp": True}
EXPECTED = {
    "gpt2": {}, "gpt_neox": {"parallel": True}, "gptj": {"parallel": True}, "llama": GROUPED, "mistral": GROUPED,
    "qwen3": GROUPED, "gemma3_text": SANDWICHED, "olmo2": SANDWICHED, "phi3": GROUPED, "bloom": {},
    "falcon": {"parallel": True, "n_kv_heads": 1}, "granite": {**GROUPED, "multiplier": 0.3},
    "mixtral": {**GROUPED, "one_down_projection": False},
}  # fmt: skip


def test_it_is_found_once_for_each_model_and_goes_with_it():
    one, other = tiny.bridge("llama"), tiny.bridge("llama")
    asked = []

    def find():
        asked.append(1)
        return len(asked)

    assert [once(one, "a", find), once(one, "a", find), once(other, "a", find), once(one, "b", find)] == [1, 1, 2, 3]
    assert not any("_locate_found" in name for name in one.state_dict())


def built(kind, **changes):
    """A model of a kind with a changed configuration."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**tiny.CONFIGS.get(kind, tiny.CONFIGS["llama"]), **changes})
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return locate.load_model(hf, tiny.tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.OTHER_CONFIGS])
def test_every_architecture_is_made_of_what_its_configuration_says(kind, dtype):
    found = anatomy(tiny.bridge(kind, dtype=dtype))
    assert found.layers == (LayerAnatomy(**{**PLAIN, **EXPECTED[kind]}),) * 4
    assert (found.n_layers, found.n_heads, found.d_head) == (4, 4, 8)


def test_blocks_are_parallel_where_they_behave_so():
    """The same architecture computes its parts side by side or one after the other."""
    assert [anatomy(built("gpt_neox", use_parallel_residual=one)).parallel for one in (True, False)] == [True, False]
    assert not anatomy(built("falcon", parallel_attn=False)).parallel


GEMMA4 = {
    "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": tiny.VOCAB,
    "num_kv_shared_layers": 0, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip


def test_layers_may_differ():
    found = anatomy(built("gemma4_text", **GEMMA4))
    assert [layer.d_head for layer in found.layers] == [8, 16, 8, 16]
    with pytest.raises(ModelError, match=r"d_head differs between layers: \[8, 16, 8, 16\]"):
        found.d_head  # noqa: B018
    assert found.n_heads == 4


def test_a_layer_that_adds_something_else_does_not_add_up():
    found = anatomy(built("gemma4_text", **{**GEMMA4, "hidden_size_per_layer_input": 8}))
    assert not any(layer.adds_up for layer in found.layers)


def test_looking_leaves_nothing_behind():
    bridge = tiny.bridge("granite")
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = bridge(tokens)
        anatomy(bridge)
        assert torch.equal(bridge(tokens), before)
    assert not any(point.has_hooks() for point in bridge.hook_dict.values())
