"""Models whose weights are not plainly their own are refused when they are loaded."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import pytest
import torch

from locate import ModelError, load_model
from tests import tiny
from tests.wrapping import MergingPeftWrapper, PeftWrapper, adapted, offloaded

TOKENS = torch.arange(3, 11)[None]
LAYERS = r"holds 1 layers with a peft adapter that is not merged, model.layers.1.mlp.down_proj among them. Merge first"


@pytest.fixture
def unchecked(monkeypatch):
    """Wrappers are of no type that is declared: the check of types at run time, which only tests have, is off."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(model, match):
    with pytest.raises(ModelError, match=match):
        load_model(model, tiny.tokenizer())


@pytest.mark.usefixtures("unchecked")
def test_a_wrapper_that_can_be_merged_is_refused_with_the_call():
    wrapper = MergingPeftWrapper(adapted(tiny.hf_model("llama")))
    refused(wrapper, r"found MergingPeftWrapper\)\. Merge first: load_model\(model.merge_and_unload\(\), tokenizer=")


@pytest.mark.usefixtures("unchecked")
def test_an_adapter_that_is_merged_twice_is_refused_with_a_warning():
    wrapper = MergingPeftWrapper(adapted(tiny.hf_model("llama")))
    wrapper.peft_config = {"default": SimpleNamespace(ensure_weight_tying=True)}
    refused(wrapper, r"Merge first: .* ensure_weight_tying=True, and peft merges twice .* compare the logits")


def test_what_the_call_gives_is_loaded_and_says_the_same():
    wrapper = MergingPeftWrapper(adapted(tiny.hf_model("llama")))
    with torch.no_grad():
        expected = wrapper.base_model(TOKENS).logits
        assert not torch.allclose(tiny.hf_model("llama")(TOKENS).logits, expected)
        model = load_model(wrapper.merge_and_unload(), tiny.tokenizer())
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_wrapper_without_weights_to_merge_is_refused_without_the_call():
    with pytest.raises(ModelError, match="nothing to merge into the weights: only its base model") as refusal:
        load_model(PeftWrapper(tiny.hf_model("llama")), tiny.tokenizer())
    assert "merge_and_unload" not in str(refusal.value)


def test_adapters_inside_a_plain_model_are_refused():
    refused(adapted(tiny.hf_model("llama")), LAYERS)


def test_offloaded_parameters_are_refused_with_a_remedy():
    message = r"^9 of 39 parameters hold no values, model.layers.1.self_attn.q_proj.weight .*accelerate.*device='cpu'"
    refused(offloaded(tiny.hf_model("llama")), message)


def test_parameters_that_were_never_loaded_are_refused_with_another():
    message = r"^39 of 39 .* made on the meta device. Load it with its weights: load_model\(name\)"
    refused(tiny.hf_model("llama").to("meta"), message)


def test_hooks_that_offload_nothing_are_no_reason():
    model = tiny.hf_model("llama")
    model._hf_hook = object()
    assert load_model(model, tiny.tokenizer()).original_model is model


@pytest.mark.usefixtures("unchecked")
def test_what_peft_makes_is_refused_until_it_is_merged():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=r".*layers\.1\.mlp\.down_proj", r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapper = peft.get_peft_model(tiny.hf_model("llama"), config)
    refused(wrapper, r"Merge first: load_model\(model.merge_and_unload\(\)")
    refused(wrapper.base_model.model, LAYERS)
    merged = wrapper.merge_and_unload()
    assert load_model(merged, tiny.tokenizer()).original_model is merged


@pytest.mark.usefixtures("unchecked")
def test_prompts_learnt_by_peft_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    refused(peft.get_peft_model(tiny.hf_model("llama"), config), "nothing to merge")


def test_an_offload_to_disk_by_accelerate_is_refused(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.disk_offload(tiny.hf_model("llama"), str(tmp_path), execution_device=torch.device("cpu"))
    refused(model, r"^39 of 39 parameters hold no values, .*accelerate offloaded them to disk or CPU")
