"""Exported folders load with plain transformers and say the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import locate
from edit.changes import exporting
from edit.changes.exporting import export
from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from locate import ModelError, UpdateError
from locate.model.copies import copied
from locate.model.weights import hf_parameters, model_fingerprint
from tests import tiny
from tests.architectures import table as architectures
from tests.edit.changes.test_updates import make, prints
from tests.sampling import sampled
from tests.wrapping import Adapted

TOKENS = torch.arange(3, 11)[None]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model):
    return model(TOKENS)


@pytest.fixture
def model():
    return tiny.bridge("llama")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", sampled(list(tiny.CONFIGS)))
def test_export_and_load(kind, tmp_path):
    # Scaled as usual, so that the rounding of one attention implementation against another stays small.
    hf = tiny.hf_model(kind, scale=1.0)
    reference = tiny.hf_model(kind, scale=1.0)
    model = locate.load_model(hf, tiny.tokenizer())
    before, flags = prints(model), [p.requires_grad for p in hf_parameters(model).values()]
    update = make(model, layers=(0, 2), rank=2, scale=0.1, loss=0.5)
    with update.applied(model):
        edited, expected = prints(model), logits(model)
    folder = export(model, update, tmp_path / "edited")
    assert prints(model) == before
    assert not update.is_applied(model)
    assert [p.requires_grad for p in hf_parameters(model).values()] == flags

    loaded = load(folder)
    assert type(loaded) is type(reference)
    with torch.no_grad():
        parameters = dict(reference.named_parameters())
        for name in update.parameters:
            parameters[name].add_(update.delta(name))
    assert torch.equal(logits(loaded).logits, logits(reference).logits)
    torch.testing.assert_close(logits(loaded).logits, expected, rtol=0, atol=1e-6)
    again = locate.load_model(str(folder), device="cpu")
    assert prints(again) == edited
    assert torch.equal(logits(again), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "gpt_neox"])
def test_only_the_original_tensors_are_saved(kind, tmp_path):
    tiny.hf_model(kind).save_pretrained(tmp_path / "plain")
    export(tiny.bridge(kind), None, tmp_path / "exported")
    found = []
    for folder in ("plain", "exported"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            found.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom", "falcon", "falcon:alibi", "mpt", "codegen"])
def test_what_computes_is_written_where_fused_weights_are_copied(kind, tmp_path):
    model = architectures.bridge(kind)
    before = logits(model)
    fused = [one for one in copied(model) if one.parameter.ndim == 2]
    assert len(fused) == model.cfg.n_layers
    assert all(torch.equal(one.effective(), one.parameter) for one in copied(model))
    with torch.no_grad():  # the fused weight is not read
        fused[1].parameter.mul_(2)
        assert torch.equal(logits(model), before)
        fused[1].parameter.div_(2)
        for part in ("q", "k", "v"):
            getattr(model.blocks[1].attn, part).original_component.weight.mul_(1.5)
    edited = logits(model)
    assert not torch.allclose(edited, before, atol=1e-3)
    loaded = load(export(model, None, tmp_path / "m"))
    torch.testing.assert_close(logits(loaded).logits, edited, atol=1e-4 * float(edited.std()), rtol=0)
    delta = LowRank(left=torch.ones(len(fused[1].parameter), 1), right=torch.ones(1, fused[1].parameter.shape[1]))
    with pytest.raises(UpdateError, match=r"does not compute with .* but with copies of its query, key and value"):
        WeightUpdate.make(model, {fused[1].name: delta}, method="test")


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "llama"])
def test_shared_weights_are_no_copies(kind):
    assert copied(tiny.bridge(kind)) == ()


def test_embeddings_that_the_model_holds_apart_stay_apart(tmp_path):
    hf = tiny.hf_model("gpt2", scale=1.0)
    assert hf.config.tie_word_embeddings
    hf.lm_head.weight = torch.nn.Parameter(2 * hf.lm_head.weight.detach())
    model = locate.load_model(hf, tiny.tokenizer())
    loaded = load(export(model, None, tmp_path / "m"))
    torch.testing.assert_close(logits(loaded).logits, logits(model), rtol=0, atol=1e-6)


def test_keeps_dtype_ties_and_fingerprint(tmp_path):
    model = tiny.bridge("gpt2", dtype=torch.bfloat16)
    loaded = load(export(model, None, tmp_path / "plain"))
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert model_fingerprint(locate.load_model(loaded, tiny.tokenizer())) == model_fingerprint(model)


def test_keeps_the_generation_configuration(tmp_path):
    hf = tiny.hf_model("llama")
    hf.generation_config = GenerationConfig(do_sample=True, temperature=0.25, eos_token_id=0)
    loaded = load(export(locate.load_model(hf, tiny.tokenizer()), None, tmp_path / "m"))
    assert loaded.generation_config.temperature == 0.25


def test_reports_a_generation_configuration_that_cannot_be_saved(tmp_path):
    hf = tiny.hf_model("llama")
    hf.generation_config = GenerationConfig(do_sample=False, temperature=0.25)
    with pytest.raises(ModelError, match="transformers could not save the model"):
        export(locate.load_model(hf, tiny.tokenizer()), None, tmp_path / "m")
    assert names(tmp_path) == []


def test_saves_the_tokenizer_and_the_record(model, tmp_path):
    update = make(model, request="Paris to Rome")
    folder = export(model, update, tmp_path / "m")
    text = "The Eiffel Tower"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == model.tokenizer(text).input_ids
    record = json.loads((folder / "edit.json").read_text())
    assert record == {"method": "test", "parameters": update.parameters, "info": {"request": "Paris to Rome"}}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_applied_update_stays_applied(model, tmp_path):
    update = make(model)
    update.apply(model)
    expected = logits(model)
    folder = export(model, update, tmp_path / "m")
    assert update.is_applied(model)
    assert torch.equal(logits(locate.load_model(str(folder), device="cpu")), expected)


def test_the_exported_bridge_still_works_and_can_be_edited_again(model, tmp_path):
    export(model, None, tmp_path / "m")
    update, before = make(model), logits(model)
    with update.applied(model):
        assert not torch.equal(logits(model), before)


def test_refuses_an_update_of_another_model(model, tmp_path):
    with pytest.raises(UpdateError, match="another model"):
        export(tiny.bridge("llama", seed=1), make(model), tmp_path / "m")
    assert names(tmp_path) == []


def test_refuses_what_is_in_the_way(model, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UpdateError, match=r"is a file\. Give the name of a new folder"):
        export(model, None, tmp_path / "file", overwrite=True)
    with pytest.raises(UpdateError, match=r"is not empty. Choose another, or overwrite it"):
        export(model, None, tmp_path)
    with pytest.raises(UpdateError, match="does not hold a model"):
        export(model, None, tmp_path, overwrite=True)
    with pytest.raises(UpdateError, match="could not be written to"):
        export(model, None, tmp_path / "file" / "m")
    assert names(tmp_path) == ["file"]


def test_an_empty_folder_is_filled(model, tmp_path):
    (tmp_path / "m").mkdir()
    assert "config.json" in names(export(model, None, tmp_path / "m"))


def test_overwrite_replaces_a_model(model, tmp_path):
    folder = export(model, None, tmp_path / "m")
    (folder / "stale.txt").write_text("old")
    export(model, make(model, scale=1.0), folder, overwrite=True)
    assert "stale.txt" not in names(folder)
    assert json.loads((folder / "edit.json").read_text())["method"] == "test"
    assert names(tmp_path) == ["m"]


def test_a_model_can_be_exported_over_its_own_folder(model, tmp_path):
    folder = export(model, None, tmp_path / "m")
    own = locate.load_model(str(folder), device="cpu")
    update = make(own)
    export(own, update, folder, overwrite=True)
    with update.applied(own):
        assert prints(own) == prints(locate.load_model(str(folder), device="cpu"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_export_leaves_nothing(model, tmp_path, monkeypatch, error, existing):
    before, update = prints(model), make(model)
    if existing:
        export(model, None, tmp_path / "m")
    old = names(tmp_path)

    def interrupted(*_, **__):
        raise error("stop")

    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", interrupted)
    with pytest.raises(UpdateError if error is OSError else error, match="stop"):
        export(model, update, tmp_path / "m", overwrite=True)
    assert names(tmp_path) == old
    assert prints(model) == before
    if existing:
        assert json.loads((tmp_path / "m" / "edit.json").read_text())["method"] is None


def test_a_failed_rename_puts_the_old_folder_back(model, tmp_path, monkeypatch):
    folder = export(model, None, tmp_path / "m")
    (folder / "mark").write_text("old")
    rename = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(exporting.Path, "rename", failing)
    with pytest.raises(UpdateError, match="could not be written"):
        export(model, None, folder, overwrite=True)
    assert (folder / "mark").read_text() == "old"
    assert names(tmp_path) == ["m"]


_KILLED = """
import os, sys
from tests import tiny
from edit.changes.exporting import export
from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
model = tiny.bridge("llama")
type(model.tokenizer).save_pretrained = lambda *_, **__: os._exit(9)
export(model, None, sys.argv[1])
"""


def test_a_killed_export_leaves_no_folder(tmp_path):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "m")], env=environment, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "m").exists()


def test_refuses_compatibility_mode(model, tmp_path):
    model.compatibility_mode = True
    with pytest.raises(ModelError, match="compatibility mode cannot be exported"):
        export(model, None, tmp_path / "m")


def test_refuses_an_output_bias_that_the_original_does_not_have(model, tmp_path):
    with torch.no_grad():
        model.unembed.original_component.bias[3] = 1
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no place for lm_head.bias"):
        export(model, None, tmp_path / "m")


def test_refuses_offloaded_weights(model, tmp_path):
    model.blocks[1].mlp.out.original_component.to("meta")
    with pytest.raises(ModelError, match=r"^1 weights .*, model.layers.1.mlp.down_proj.weight .*They were offl"):
        export(model, None, tmp_path / "m")


def test_names_an_adapter_that_is_not_merged(model, tmp_path):
    owner = model.blocks[1].mlp.out
    owner._modules["_original_component"] = Adapted(owner.original_component)
    message = (
        r"^1 weights .*, model.layers.1.mlp.down_proj.weight among them. "
        r"A peft adapter stands around 1 layers, model.layers.1.mlp.down_proj among them. Merge .*merge_and_unload\(\)"
    )
    with pytest.raises(ModelError, match=message):
        export(model, None, tmp_path / "m")


def test_names_modules_that_store_weights_otherwise(model, tmp_path):
    matrix = model.blocks[1].mlp.out.original_component
    matrix.register_parameter("weight", None)
    matrix.register_buffer("qweight", torch.zeros(2, 2, dtype=torch.int32))
    message = r"^1 weights .*, model.layers.1.mlp.down_proj.weight among them. Other modules .* without quantisation"
    with pytest.raises(ModelError, match=message):
        export(model, None, tmp_path / "m")
