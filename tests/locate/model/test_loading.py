"""Loading models as raw-mode bridges."""

import copy

import pytest
import torch
from tokenizers import processors
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from locate import ModelError, load_model
from tests import tiny

TOKENS = torch.arange(3, 11)[None]


@pytest.fixture
def folder(tmp_path):
    """A tiny model as transformers saves it."""
    tiny.hf_model("llama").save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def plain_logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options).eval()
    with torch.no_grad():
        return model(TOKENS).logits


def logits(model):
    with torch.no_grad():
        return model(TOKENS)


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_saved_folder_gives_the_logits_of_plain_transformers(folder, as_type):
    model = load_model(as_type(folder), device="cpu")
    assert isinstance(model, TransformerBridge)
    assert not model.compatibility_mode
    assert not model.original_model.training
    torch.testing.assert_close(logits(model), plain_logits(folder, dtype=torch.float32))
    assert model.tokenizer("Paris is")["input_ids"] == tiny.tokenizer()("Paris is")["input_ids"]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, torch.float64])
def test_dtypes_by_name_and_by_value(folder, dtype):
    wanted = torch.bfloat16 if dtype == "bfloat16" else dtype
    model = load_model(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.original_model.parameters()} == {wanted}
    torch.testing.assert_close(logits(model), plain_logits(folder, dtype=wanted))


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_a_model_in_memory_is_wrapped_as_it_is(kind):
    inner = tiny.hf_model(kind)
    with torch.no_grad():
        expected = inner(TOKENS).logits
    model = load_model(inner, tiny.tokenizer())
    assert model.original_model is inner
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_may_be_given_with_a_folder(folder):
    other = copy.deepcopy(tiny.tokenizer())
    other.add_tokens(["Eiffelturm"])
    assert load_model(folder, other, device="cpu").tokenizer is other


@pytest.mark.parametrize("template", [None, "<|end|> $A", "<|end|> $A <|end|>"])
def test_strings_given_to_transformer_lens_are_tokenised_plainly(template):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    if template is not None:
        post = processors.TemplateProcessing(single=template, special_tokens=[("<|end|>", 0)])
        tokenizer.backend_tokenizer.post_processor = post
    model = load_model(tiny.hf_model("gpt2"), tokenizer)
    content = tokenizer("The Louvre is", add_special_tokens=False)["input_ids"]
    found = model.to_tokens("The Louvre is")[0].tolist()
    assert found == (content if template is None else [0, *content])
    assert model.to_tokens("The Louvre is", prepend_bos=False)[0].tolist() == content


def test_a_tokenizer_without_padding_gets_some():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.pad_token = None
    assert load_model(tiny.hf_model("gpt2"), tokenizer).tokenizer.pad_token == "<|end|>"


def test_a_model_in_memory_needs_its_tokenizer():
    with pytest.raises(ModelError, match="A loaded model needs its tokenizer: load_model"):
        load_model(tiny.hf_model("gpt2"))


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"There is no model folder '.*none'\. Give a folder or"):
        load_model(tmp_path / "none")


def test_a_folder_without_weights_is_refused_with_what_is_there(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no weights: .*found .*config\.json.*Pickled weights"):
        load_model(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no weights: .*found nothing"):
        load_model(tmp_path)


def test_a_folder_with_several_gguf_files_is_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match="holds 2 GGUF files; give the path of one of them"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_with_a_damaged_file_is_refused(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(folder)


def test_a_name_that_is_out_of_reach_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"The model 'nobody/no-such-model' could not be loaded.*'smollm2-135m'"):
        load_model("nobody/no-such-model")


def test_unknown_dtypes_are_refused_with_the_nearest():
    with pytest.raises(ModelError, match=r"Unknown dtype 'float23'\. Did you mean float32"):
        load_model(dtype="float23")


def test_device_and_device_map_exclude_each_other(folder):
    with pytest.raises(ModelError, match="either device or device_map"):
        load_model(folder, device="cpu", device_map="auto")


def test_models_that_cannot_be_bridged_are_refused():
    class UnheardOf(T5ForConditionalGeneration):
        pass

    config = T5Config(vocab_size=tiny.VOCAB, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
    config.model_type = "unheard-of"
    with pytest.raises(ModelError, match=r"TransformerLens \S+ does not know the architecture UnheardOf"):
        load_model(UnheardOf(config), tiny.tokenizer())


def test_errors_are_of_one_kind_and_suggestions_list_what_there_is():
    from locate import errors

    kinds = [value for name, value in vars(errors).items() if name.endswith("Error")]
    assert len(kinds) > 5
    assert all(issubclass(kind, errors.LocateError) for kind in kinds)
    assert errors.suggest("zzz", [f"name{i:02}" for i in range(12)]).endswith("name09, ….")


@pytest.mark.real_model
def test_the_default_model_equals_plain_transformers(smollm):
    from locate.model.bundled import bundled_folder

    plain = AutoModelForCausalLM.from_pretrained(bundled_folder(), dtype=torch.float32, attn_implementation="eager")
    tokens = torch.tensor([smollm.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        expected = plain(tokens).logits
        torch.testing.assert_close(smollm(tokens), expected, atol=1e-4, rtol=1e-4)
    assert smollm.tokenizer.decode(expected[0, -1].argmax()) == " Paris"
    assert float(expected[0, -1].softmax(-1).max()) == pytest.approx(0.77, abs=0.01)
