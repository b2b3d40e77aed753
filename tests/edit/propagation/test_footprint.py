"""Sizes, spectra and alignments against plain linear algebra."""

import pytest
import torch
import xarray as xr

import edit
import locate
from edit.changes.directions import Directions
from locate.model.weights import down_projection
from tests import tiny
from tests.edit.propagation.updates import FACT, REQUEST, random_update
from tests.sampling import slow

KINDS = ["gpt2", "olmo2", *(pytest.param(kind, marks=slow) for kind in ("llama", "gptj"))]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_plain_matrices(kind):
    model = tiny.bridge(kind)
    update = random_update(model, 1, 3, rank=3)
    found = edit.weight_footprint(model, update)
    for layer in (1, 3):
        down = down_projection(model, layer)
        weight, delta = down.parameter.detach().double(), update.delta(down.name).double()
        values = torch.linalg.svdvals(delta)
        own = found.data.sel(parameter=down.name)
        assert own["norm"].item() == pytest.approx(float(delta.norm()), rel=1e-5)
        assert own["relative_norm"].item() == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        assert own["spectral"].item() == pytest.approx(float(values[0]), rel=1e-5)
        assert own["relative_spectral"].item() == pytest.approx(float(values[0] / torch.linalg.svdvals(weight)[0]))
        assert own["rank"].item() == 3
        assert own["effective_rank"].item() == pytest.approx(float((values**2).sum() ** 2 / (values**4).sum()))
        assert own["singular"].values[:3] == pytest.approx(values[:3].tolist(), rel=1e-5)
        energy = delta.square().sum(1 if down.transposed else 0)  # what each neuron writes
        assert own["columns"].item() == down.key_size
        assert own["effective_columns"].item() == pytest.approx(float(energy.sum() ** 2 / energy.square().sum()))
        assert own["top_5"].item() == pytest.approx(float(energy.topk(5).values.sum() / energy.sum()))
        assert own["layer"].item() == layer


@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_alignment_is_with_what_raises_the_new_answer(kind):
    """Through the final norm's gain, and through that of a norm between the MLP and the stream."""
    model = tiny.bridge(kind)
    update = random_update(model, 1, rank=2)
    found = edit.weight_footprint(model, update, REQUEST)
    new, old = (model.tokenizer(" " + one)["input_ids"][0] for one in ("Rome", "Paris"))
    hf = model.original_model
    weights = dict(hf.named_parameters())
    weights = {name.replace("._original_component", ""): one.detach().double() for name, one in weights.items()}
    towards = (weights["lm_head.weight"][new] - weights["lm_head.weight"][old]) * weights["model.norm.weight"]
    if kind == "olmo2":
        towards = towards * weights["model.layers.1.post_feedforward_layernorm.weight"]
    left, _, right = torch.linalg.svd(update.delta(*update.parameters).double(), full_matrices=False)
    cosines = (towards @ left[:, :2]) / towards.norm()
    read = []
    hook = ("blocks.1.mlp.out.hook_in", lambda value, hook: read.append(value[0].double()))
    with torch.no_grad(), update.applied(model), model.hooks(fwd_hooks=[hook]):
        model(torch.tensor(model.tokenizer(FACT.text)["input_ids"])[None])
    doses = read[0] @ right[:2].T
    signs = doses.gather(0, doses.abs().argmax(0, keepdim=True))[0].sign()
    assert found.data["alignment"].values[0, :2] == pytest.approx((signs * cosines).tolist(), abs=1e-5)
    writes = read[0] @ update.delta(*update.parameters).double().T
    most = writes[writes.norm(dim=-1).argmax()]
    written = float(most @ towards / most.norm() / towards.norm())
    assert found.data["written"].item() == pytest.approx(written, abs=1e-5)


def test_any_parameter_of_another_model_has_a_footprint():
    model, other = tiny.bridge("llama"), locate.load_model(tiny.hf_model("llama", seed=1), tiny.tokenizer())
    found = edit.weight_footprint(model, other, REQUEST)
    table = found.to_dataframe().set_index("parameter")
    attention = table.loc["model.layers.0.self_attn.o_proj.weight"]
    query = table.loc["model.layers.0.self_attn.q_proj.weight"]
    assert abs(attention["written"]) <= 1
    assert query.isna()["written"]  # it does not write to the stream
    assert query[["rank", "columns"]].tolist() == [32, 32]
    assert table.loc["model.embed_tokens.weight", "layer"] == -1
    found.plot()


def test_a_vector_is_one_column_and_a_stack_is_blocks():
    vector = Directions.between(torch.zeros(3), torch.tensor([0.0, 3.0, 4.0]))
    assert vector.columns().tolist() == pytest.approx([25.0])
    assert vector.rows().tolist() == pytest.approx([0, 9, 16])
    stack = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    found = Directions.of(stack)
    assert found.effective == pytest.approx(Directions.of(torch.block_diag(*stack)).effective)
    torch.testing.assert_close(found.top(3), stack.double())
    torch.testing.assert_close(found.turned().top(2), torch.stack([Directions.of(one).top(2).T for one in stack]))


def test_saved_ones_come_back_and_bad_input_is_explained(tmp_path):
    model = tiny.bridge("llama")
    found = edit.weight_footprint(model, random_update(model, 1), REQUEST)
    again = edit.load_weight_footprint(found.save(tmp_path / "footprint.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert (again.chance, again.prompt, again.info) == (found.chance, found.prompt, found.info)
    assert again.prompt == FACT.text
    with pytest.raises(locate.LocateError, match="directions: keep at least one, found 0"):
        edit.weight_footprint(model, random_update(model, 1), directions=0)
