"""How a change is spread: shares against sums written out, whichever way round a matrix is stored."""

import numpy as np
import pytest
import torch

import edit
from edit.location.concentration import load_concentration
from locate import DataError, LocateError, UpdateError
from locate.model.weights import down_projection, stored_transposed
from tests import tiny
from tests.figures import check_fits
from tests.sampling import sampled


def update_of(model, matrices, method="made up"):
    """A change that adds these d_model × d_mlp matrices to down-projections, by layer."""
    deltas = {}
    for layer, matrix in matrices.items():
        down = down_projection(model, layer)
        deltas[down.name] = edit.LowRank.exactly(matrix.T.contiguous() if down.transposed else matrix)
    return edit.WeightUpdate.make(model, deltas, method=method)


def random_matrix(model, layer, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.cfg.d_model, down_projection(model, layer).key_size, generator=generator)


@pytest.mark.parametrize("kind", sampled([kind for kind in tiny.CONFIGS if kind not in ("mistral", "qwen3")]))
def test_shares_are_sums_over_what_neurons_write(kind):
    model = tiny.bridge(kind)
    matrices = {2: random_matrix(model, 2, 0), 0: random_matrix(model, 0, 1) * 3}
    matrices[2][:, 5] *= 20
    found = edit.concentration(update_of(model, matrices), model)
    assert found.layers == [0, 2]
    total = sum(float(one.square().sum()) for one in matrices.values())
    for index, layer in enumerate((0, 2)):
        own = matrices[layer].double()
        energy = own.square().sum(0) / own.square().sum()
        np.testing.assert_allclose(found.shares()[index], energy)
        np.testing.assert_allclose(found.shares("row", "size")[index], own.abs().sum(1) / own.abs().sum())
        assert float(found.layer_shares()[index]) == pytest.approx(float(own.square().sum()) / total)
        assert float(found.top_share(3)[index]) == pytest.approx(float(energy.sort(descending=True).values[:3].sum()))
        assert float(found.effective()[index]) == pytest.approx(float(1 / energy.square().sum()))
        values = torch.linalg.svdvals(own).square()
        effective = float(values.sum() ** 2 / values.square().sum())
        assert float(found.data["effective_rank"][index]) == pytest.approx(effective)
        np.testing.assert_allclose(found.curve()[index], energy.sort(descending=True).values.cumsum(0))
    assert int(found.shares()[1].argmax("column")) == 5
    table = found.to_dataframe()
    assert table["layer"].tolist() == [0, 2]
    assert table["norm"].tolist() == pytest.approx([float(matrices[layer].norm()) for layer in (0, 2)])


def test_a_thin_change_has_the_rank_of_its_dense_form():
    model = tiny.bridge("gpt2")
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(32, 3, generator=draw), torch.randn(3, 128, generator=draw)
    down = down_projection(model, 1)
    thin = edit.WeightUpdate.make(
        model, {down.name: edit.LowRank(left=right.T, right=left.T)}, method="thin"
    )  # Conv1D: in × out
    dense = update_of(model, {1: left @ right})
    one, other = edit.concentration(thin, model), edit.concentration(dense, model)
    np.testing.assert_allclose(one.data["effective_rank"], other.data["effective_rank"], rtol=1e-4)
    np.testing.assert_allclose(one.shares(), other.shares(), rtol=1e-4)
    assert one.data["effective_rank"] < 3


def test_other_matrices_of_other_sizes_stand_beside():
    model = tiny.bridge("gpt2")
    fused = "transformer.h.1.attn.c_attn.weight"  # 32 × 96, in × out
    assert stored_transposed(model, fused)
    delta = torch.zeros(32, 96)
    delta[:, 7] = 1
    down = down_projection(model, 0)
    deltas = {fused: edit.LowRank.exactly(delta), down.name: edit.LowRank.exactly(torch.ones(128, 32))}
    found = edit.concentration(edit.WeightUpdate.make(model, deltas, method="both"), model)
    assert found.layers == [0, 1]
    table = found.to_dataframe()
    assert table[["columns", "rows"]].values.tolist() == [[128, 32], [32, 96]]
    assert table["effective_columns"].tolist() == pytest.approx([128, 32])
    assert table["effective_rows"].tolist() == pytest.approx([32, 1])
    check_fits(found.plot())


def test_it_is_saved_and_drawn(tmp_path):
    model = tiny.bridge("llama")
    found = edit.concentration(update_of(model, {1: random_matrix(model, 1, 0)}), model)
    again = load_concentration(found.save(tmp_path / "c.nc"))
    np.testing.assert_array_equal(again.shares(), found.shares())
    assert again.info == found.info
    check_fits(again.plot())
    check_fits(again.plot(figsize=(3.4, 4.0)))
    figure = edit.plot_concentration({"one_$x$": found, "other": again}, bins=10)
    check_fits(figure)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [r"one_\$x\$, layer 1", "other, layer 1"]
    heat = figure.axes[0].collections[0].get_array()
    binned = found.shares().values[0].reshape(10, 8).sum(1) * 10
    np.testing.assert_allclose(np.ma.getdata(heat)[0], binned)
    with pytest.raises(DataError, match="There is no concentration file"):
        load_concentration(tmp_path / "none.nc")


def test_bad_input():
    model = tiny.bridge("llama")
    found = edit.concentration(update_of(model, {1: random_matrix(model, 1, 0)}), model)
    with pytest.raises(LocateError, match="n: must be 1 or more, found 0"):
        found.top_share(0)
    with pytest.raises(UpdateError, match="is zero everywhere"):
        edit.concentration(update_of(model, {1: torch.zeros(32, 80)}), model)
    with pytest.raises(LocateError, match="bins: must be 1 or more"):
        found.plot(bins=0)
    with pytest.raises(LocateError, match="give 1 to 7 changes, found 0"):
        edit.plot_concentration({})
