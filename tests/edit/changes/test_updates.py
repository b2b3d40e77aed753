"""Applying, reverting, saving and loading weight updates."""

import copy
import gc
import hashlib
import json
import os
import pickle

import jaxtyping
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edit.changes import updates
from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate, load_update
from locate import UpdateError
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny

TOKENS = torch.arange(3, 11)[None]


def make(model, layers=(1,), seed=0, rank=1, scale=0.5, **info):
    """A random update of the down projections of some layers."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for layer in layers:
        down = down_projection(model, layer)
        out, into = down.parameter.shape
        deltas[down.name] = LowRank(
            left=scale * torch.randn(out, rank, generator=generator),
            right=torch.randn(rank, into, generator=generator),
        )
    return WeightUpdate.make(model, deltas, method="test", info=info)


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


@torch.no_grad()
def logits(model):
    return model(TOKENS)


@pytest.fixture
def model():
    return tiny.bridge("llama")


@pytest.fixture
def path(model, tmp_path):
    return make(model, layers=(0, 2), rank=2).save(tmp_path / "update.safetensors")


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_apply_equals_adding_the_dense_delta_by_hand(kind):
    model, other = tiny.bridge(kind), tiny.bridge(kind)
    update = make(model, layers=(0, 2), rank=3)
    before = logits(model)
    update.apply(model)
    with torch.no_grad():
        for name in update.parameters:
            hf_parameters(other)[name].add_(update.delta(name))
    assert torch.equal(logits(model), logits(other))
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_revert_is_bit_for_bit(kind, dtype):
    model = tiny.bridge(kind, dtype=dtype)
    before, answer = prints(model), logits(model)
    update = make(model, layers=(0, 1, 2), rank=2)
    update.apply(model)
    changed = {name for name, value in prints(model).items() if value != before[name]}
    assert changed == set(update.parameters)
    update.revert(model)
    assert prints(model) == before
    assert torch.equal(logits(model), answer)


def test_half_precision_is_summed_in_float32_and_rounded_once():
    model = tiny.bridge("llama", dtype=torch.bfloat16)
    parameter = down_projection(model, 1).parameter
    update = make(model, scale=0.01)
    (name,) = update.parameters
    expected = (parameter.detach().float() + update.delta(name)).to(torch.bfloat16)
    update.apply(model)
    assert torch.equal(parameter, expected)


def test_apply_keeps_the_parameter_object_and_its_gradient_flag(model):
    parameter = down_projection(model, 1).parameter
    parameter.requires_grad_(False)
    update = make(model)
    update.apply(model)
    assert down_projection(model, 1).parameter is parameter
    assert not parameter.requires_grad
    assert parameter.grad_fn is None


def test_merged_updates_add_up(model, tmp_path):
    one, other = make(model, layers=(0, 1), seed=1, asked="one"), make(model, layers=(1, 2), seed=2, rank=2)
    merged = one.merge(other)
    for layer in (0, 1, 2):
        name = down_projection(model, layer).name
        expected = sum(update.delta(name) for update in (one, other) if name in update.deltas)
        torch.testing.assert_close(merged.delta(name), expected)
    assert (merged.method, merged.rank) == ("test", 3)
    assert merged.info == {"merged": [{"method": "test", "asked": "one"}, {"method": "test"}]}
    before = prints(model)
    with load_update(merged.save(tmp_path / "merged.safetensors")).applied(model):
        assert prints(model) != before
    assert prints(model) == before


def test_updates_of_different_states_are_not_merged(model):
    first = make(model, layers=(0, 1), seed=1)
    with first.applied(model):
        second = make(model, layers=(1, 2), seed=2)
    with pytest.raises(UpdateError, match=r"was made for other values of .*layers.1.*in an EditSession"):
        first.merge(second)


def test_a_change_does_not_depend_on_the_precision_around_it(model):
    exact = torch.randn(32, 80, generator=torch.Generator().manual_seed(0))
    factors = torch.randn(32, 3), torch.randn(3, 80)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LowRank.exactly(exact).dense(), exact)
        found = LowRank(left=factors[0], right=factors[1]).dense()
    assert torch.equal(found, (factors[0].double() @ factors[1].double()).float())


def test_context_manager_reverts(model):
    before = prints(model)
    update = make(model)
    with update.applied(model) as edited:
        assert edited is model
        assert update.is_applied(model)
        assert prints(model) != before
    assert not update.is_applied(model)
    assert prints(model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_context_manager_reverts_on_exceptions(model, error):
    before = prints(model)
    update = make(model)
    with pytest.raises(error), update.applied(model):
        raise error
    assert prints(model) == before
    assert not update.is_applied(model)


def test_context_manager_refuses_when_already_applied(model):
    update = make(model)
    update.apply(model)
    after = prints(model)
    with pytest.raises(UpdateError, match="already applied"), update.applied(model):
        pass
    assert update.is_applied(model)
    assert prints(model) == after


def test_context_manager_allows_an_early_revert(model):
    update = make(model)
    with update.applied(model):
        update.revert(model)
    assert not update.is_applied(model)


def test_refuses_to_apply_twice(model):
    update = make(model)
    update.apply(model)
    with pytest.raises(UpdateError, match=r"already applied to this model\. Revert it first"):
        update.apply(model)


def test_can_be_applied_again_after_a_revert(model):
    update = make(model)
    update.apply(model)
    first = prints(model)
    update.revert(model)
    update.apply(model)
    assert prints(model) == first


def test_refuses_to_revert_what_is_not_applied(model):
    with pytest.raises(UpdateError, match="not applied to this model: there is nothing to revert"):
        make(model).revert(model)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", {"seed": 1}, r"another model, or another edit"),
        ("llama", {"dtype": torch.bfloat16}, r"dtype \(torch.bfloat16\)"),
        ("gpt2", {}, r"The model has no parameter 'model.layers.1.mlp.down_proj.weight'"),
    ],
)
def test_refuses_another_model(model, kind, options, message):
    update, other = make(model), tiny.bridge(kind, **options)
    before = prints(other)
    with pytest.raises(UpdateError, match=message):
        update.apply(other)
    assert prints(other) == before
    assert not update.is_applied(other)


def test_refuses_another_shape(model):
    (name,) = make(model).parameters
    delta = LowRank(left=torch.ones(80, 1), right=torch.ones(1, 32))
    with pytest.raises(UpdateError, match=r"has shape \(80, 32\), but this model's parameter has shape \(32, 80\)"):
        WeightUpdate.make(model, {name: delta}, method="test")
    update = WeightUpdate(deltas={name: delta}, before={name: ""}, method="test", info={})
    with pytest.raises(UpdateError, match="Use the model that the update was fitted on"):
        update.apply(model)


def test_applies_to_an_equal_model_and_counts_each_on_its_own(model):
    update, twin = make(model), tiny.bridge("llama")
    update.apply(twin)
    assert update.is_applied(twin)
    assert not update.is_applied(model)
    update.apply(model)
    assert prints(model) == prints(twin)
    update.revert(twin)
    assert update.is_applied(model)


def test_stacked_updates_come_off_in_reverse_order(model):
    before = prints(model)
    lower = make(model, seed=0)
    lower.apply(model)
    upper = make(model, seed=1)
    upper.apply(model)
    with pytest.raises(UpdateError, match="Revert the later update first"):
        lower.revert(model)
    assert lower.is_applied(model)
    upper.revert(model)
    lower.revert(model)
    assert prints(model) == before


def test_refuses_an_update_of_the_same_weights_that_was_made_before_the_other(model):
    first, second = make(model, seed=0), make(model, seed=1)
    first.apply(model)
    with pytest.raises(UpdateError, match="revert the other edit first"):
        second.apply(model)


def test_refuses_to_revert_over_a_foreign_change(model):
    update = make(model)
    update.apply(model)
    with torch.no_grad():
        down_projection(model, 1).parameter[0, 0] += 1
    with pytest.raises(UpdateError, match=r"down_proj.weight was changed after .* was applied"):
        update.revert(model)


class _FailsOnSecondCall:
    def __init__(self, error):
        self.error, self.calls, self.real = error, 0, updates._added

    def __call__(self, *args):
        self.calls += 1
        edited = self.real(*args)
        if self.calls == 2:
            raise self.error
        return edited


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_half_failed_apply_restores_everything(model, monkeypatch, error):
    before = prints(model)
    update = make(model, layers=(0, 1, 2))
    monkeypatch.setattr(updates, "_added", _FailsOnSecondCall(error))
    with pytest.raises(type(error)):
        update.apply(model)
    assert prints(model) == before
    assert not update.is_applied(model)
    monkeypatch.undo()
    update.apply(model)


def test_interrupted_revert_can_be_taken_up_again(model):
    before = prints(model)
    update = make(model, layers=(0, 1))
    update.apply(model)
    name = update.parameters[0]
    with torch.no_grad():
        hf_parameters(model)[name].copy_(update._kept[model][name].original)
    update.revert(model)
    assert prints(model) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_a_delta_that_is_not_finite(model, value):
    before = prints(model)
    (name,) = make(model).parameters
    left = torch.ones(32, 1)
    left[3] = value
    update = WeightUpdate.make(model, {name: LowRank(left=left, right=torch.ones(1, 80))}, method="test")
    with pytest.raises(UpdateError, match=r"down_proj\.weight holds NaN or infinite values"):
        update.apply(model)
    assert prints(model) == before


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1e3), (torch.float32, 1e30)])
def test_refuses_a_result_that_is_not_finite(dtype, scale):
    model = tiny.bridge("llama", dtype=dtype)
    before = prints(model)
    names = [down_projection(model, layer).name for layer in (0, 1)]
    small = LowRank(left=torch.ones(32, 1), right=torch.ones(1, 80))
    large = LowRank(left=scale * torch.ones(32, 1), right=scale * torch.ones(1, 80))
    update = WeightUpdate.make(model, dict(zip(names, (small, large), strict=True)), method="test")
    with pytest.raises(UpdateError, match=r"layers.1.* would not be finite in torch.float"):
        update.apply(model)
    assert prints(model) == before


def test_numbers_about_an_update(model):
    update = make(model, layers=(0, 2), rank=2)
    name = update.parameters[0]
    low = update.deltas[name]
    assert update.rank == low.rank == 2
    product = (low.left.double() @ low.right.double()).float()
    assert torch.equal(update.delta(name), product)
    assert update.norm(name) == pytest.approx(torch.linalg.matrix_norm(product).item())
    assert update.parameters == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 2)]
    with pytest.raises(UpdateError, match=r"does not change 'model.layers.1.mlp.down_proj.weight'. Did you mean"):
        update.norm("model.layers.1.mlp.down_proj.weight")


def test_repr_is_short(model):
    name = "model.layers.1.mlp.down_proj.weight"
    assert repr(make(model)).splitlines()[1] == f"  sizes: 0 edits, rank 1, 1 parameter, first {name}"
    assert "4 parameters" in repr(make(model, layers=range(4)))


def test_factors_are_private_float32_copies(model):
    left, right = torch.ones(32, 1, dtype=torch.float64), torch.ones(1, 80, requires_grad=True)
    low = LowRank(left=left, right=right)
    left.zero_()
    assert low.left.dtype == low.right.dtype == torch.float32
    assert low.left.min() == 1
    assert not low.right.requires_grad


def test_refuses_factors_that_do_not_fit(monkeypatch):
    # The shape checks that run during the tests would come first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UpdateError, match=r"found \(4, 2\) and \(1, 3\)"):
        LowRank(left=torch.ones(4, 2), right=torch.ones(1, 3))


def test_refuses_nothing_to_change(model):
    with pytest.raises(UpdateError, match="at least one delta"):
        WeightUpdate.make(model, {}, method="test")


def test_refuses_fingerprints_of_other_parameters():
    delta = LowRank(left=torch.ones(2, 1), right=torch.ones(1, 2))
    with pytest.raises(UpdateError, match="must name the same parameters; they differ in a, b"):
        WeightUpdate(deltas={"a": delta}, before={"b": ""}, method="test", info={})


@pytest.mark.parametrize("value", [torch.ones(1), float("nan"), {1, 2}])
def test_refuses_an_info_that_json_cannot_hold(model, value):
    with pytest.raises(UpdateError, match="info of an update must be plain JSON values"):
        make(model, loss=value)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda update: pickle.loads(pickle.dumps(update))])
def test_copies_are_applied_nowhere(model, duplicate):
    update = make(model, layers=(0, 1), loss=0.5)
    update.apply(model)
    other = duplicate(update)
    assert not other.is_applied(model)
    assert (other.method, other.info, other.before) == (update.method, update.info, update.before)
    assert all(torch.equal(other.delta(name), update.delta(name)) for name in update.parameters)


def test_an_update_does_not_keep_a_model_alive():
    model = tiny.bridge("llama")
    update = make(model)
    update.apply(model)
    assert len(update._kept) == 1
    del model
    gc.collect()
    assert len(update._kept) == 0


def test_save_and_load(model, tmp_path):
    update = make(model, layers=(0, 2), rank=2, losses=[1.0, 0.25], request={"subject": "Zürich", "ids": (1, 2)})
    loaded = load_update(update.save(tmp_path / "new" / "update.safetensors"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["update.safetensors"]
    assert (loaded.method, loaded.info, loaded.before) == (update.method, update.info, update.before)
    assert loaded.info["request"] == {"subject": "Zürich", "ids": [1, 2]}
    assert loaded.parameters == update.parameters
    for name in update.parameters:
        assert torch.equal(loaded.deltas[name].left, update.deltas[name].left)
        assert torch.equal(loaded.deltas[name].right, update.deltas[name].right)
    with update.applied(model):
        expected = prints(model)
    with loaded.applied(model):
        assert prints(model) == expected


def test_save_replaces_a_file_whole_or_not_at_all(model, path, monkeypatch):
    old = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        make(model, seed=5).save(path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    make(model, seed=5).save(path)
    assert path.read_bytes() != old


def test_save_reports_a_place_that_cannot_be_written(model, path):
    with pytest.raises(UpdateError, match="could not be written to"):
        make(model).save(path / "below" / "a-file.safetensors")


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(UpdateError, match=r"There is no update file .*missing.safetensors"):
        load_update(tmp_path / "missing.safetensors")
    with pytest.raises(UpdateError, match="There is no update file"):
        load_update(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_load_refuses_a_truncated_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UpdateError, match="is not a readable safetensors file"):
        load_update(path)


@pytest.mark.parametrize("text", ['{"method": "ROME"}', "hello", "PK\x03\x04" + "x" * 400])
def test_load_refuses_other_files(path, text):
    path.write_text(text)
    with pytest.raises(UpdateError, match="is not a readable safetensors file"):
        load_update(path)


def test_load_refuses_a_flipped_byte_wherever_it_is(model, path):
    data = path.read_bytes()
    for place in [*range(0, len(data), 37), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UpdateError, match=r"damaged|is a safetensors file but not a weight update"):
            load_update(path)


def test_load_names_the_checksum_when_a_value_is_flipped(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 16
    path.write_bytes(data)
    with pytest.raises(UpdateError, match="is damaged: its checksum does not match"):
        load_update(path)


def _rewrite(path, header):
    save_file({"x": torch.ones(1)}, path, metadata=header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"format": "pt"},
        {"locate_edit_update": "nonsense"},
        {"locate_edit_update": "[1]"},
        {"locate_edit_update": '{"version": 1}'},
    ],
)
def test_load_refuses_a_safetensors_file_that_is_no_update(path, header):
    _rewrite(path, header)
    with pytest.raises(UpdateError, match="is a safetensors file but not a weight update"):
        load_update(path)


def test_load_refuses_another_format_version(path):
    _rewrite(path, {"locate_edit_update": json.dumps({"version": 2})})
    with pytest.raises(
        UpdateError, match=r"is a safetensors file but not a weight update of format 1 \(found format 2\); save"
    ):
        load_update(path)


def test_the_files_layout_is_the_one_that_it_always_was(model, tmp_path):
    """Written out by hand, as the first version of this program wrote it."""
    update = make(model, layers=(0, 2), request={"subject": "Zürich", "ids": (1, 2)})
    tensors = {f"{n}.{side}": getattr(delta, side) for n, delta in update.deltas.items() for side in ("left", "right")}
    content = {"method": update.method, "info": update.info, "before": update.before}
    prints = {name: fingerprint(tensor) for name, tensor in tensors.items()}
    checksum = hashlib.sha256(json.dumps([content, prints], sort_keys=True).encode()).hexdigest()
    path, header = tmp_path / "old.safetensors", {"version": 1, **content, "checksum": checksum}
    save_file(tensors, path, metadata={"locate_edit_update": json.dumps(header)})
    loaded = load_update(path)
    assert (loaded.method, loaded.info, loaded.before) == (update.method, update.info, update.before)
    with safe_open(update.save(tmp_path / "new.safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["locate_edit_update"]) == header


def test_load_refuses_values_that_are_not_finite(model, tmp_path):
    (name,) = make(model).parameters
    delta = LowRank(left=torch.full((32, 1), float("nan")), right=torch.ones(1, 80))
    update = WeightUpdate.make(model, {name: delta}, method="test")
    path = update.save(tmp_path / "nan.safetensors")
    with pytest.raises(UpdateError, match="holds NaN or infinite values"):
        load_update(path)
