"""Directions that are dropped, against weights that are written down by a plain singular value decomposition."""

import numpy as np
import pytest
import torch
import xarray as xr

import edit
import locate
from locate.model.weights import hf_parameters
from tests import tiny
from tests.edit.propagation.updates import FACT, REQUEST, difference, logits_of, random_update
from tests.sampling import slow

KINDS = ["llama", "gptj", *(pytest.param(kind, marks=slow) for kind in ("gpt2", "olmo2", "gpt_neox"))]


def top(matrix, k):
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, :k] * values[:k] @ right[:k]


def literal(model, base, edited, way, k):
    """The logit difference with plain weights in place."""
    parameters = hf_parameters(model)
    with torch.no_grad():
        kept = {name: parameters[name].clone() for name in base}
        for name in base:
            one, other = base[name].double(), edited[name].double()
            new = {"dropped": other - top(other - one, k), "kept": one + top(other - one, k),
                   "blind": other - top(other, k)}[way]  # fmt: skip
            parameters[name].copy_(new)
        found = difference(model, logits_of(model, FACT.text))
        for name, value in kept.items():
            parameters[name].copy_(value)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_directions_are_those_of_a_plain_decomposition(kind):
    model = tiny.bridge(kind)
    update = random_update(model, 1, 2, rank=3)
    found = edit.reversibility(model, update, REQUEST, counts=[1, 2, 3, 8], progress=False)
    base = {name: hf_parameters(model)[name].detach().clone() for name in update.parameters}
    with update.applied(model):
        edited = {name: hf_parameters(model)[name].detach().clone() for name in update.parameters}
    plain = tiny.bridge(kind)
    for way in ("dropped", "kept", "blind"):
        for k in (1, 2, 8):
            own = found.data["value"].sel(probe=0, way=way, k=k, answer="logit_diff")
            assert float(own) == pytest.approx(literal(plain, base, edited, way, k), abs=2e-4), (way, k)
    assert (found.rank, found.reverted) == (3, True)
    share = found.undone().isel(probe=0)
    assert share.sel(way="dropped", k=3).item() == pytest.approx(1, abs=1e-4)
    assert share.sel(way="kept", k=3).item() == pytest.approx(0, abs=1e-4)
    assert abs(share.sel(way="dropped", k=1).item() - 1) > 0.01  # otherwise nothing was told apart


def test_of_rank_one_the_first_direction_is_everything():
    model = tiny.bridge("llama")
    found = edit.reversibility(model, random_update(model, 1), REQUEST, counts=[1, 4], ways=["dropped"], progress=False)
    assert found.rank == 1
    assert found.undone().values == pytest.approx(1, abs=1e-4)
    assert np.array_equal(found.data["value"].sel(k=1), found.data["value"].sel(k=4))
    assert "rank 1: k = 1 is all of it" in found.plot().get_suptitle()


@pytest.mark.parametrize("applied", [False, True])
def test_the_model_is_left_as_it_came(applied):
    model = tiny.bridge("llama")
    update = random_update(model, 1)
    if applied:
        update.apply(model)
    before = {name: one.clone() for name, one in hf_parameters(model).items()}
    edit.reversibility(model, update, REQUEST, counts=[1], progress=False)
    assert update.is_applied(model) is applied
    assert all(torch.equal(one, before[name]) for name, one in hf_parameters(model).items())


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt_neox", marks=slow), pytest.param("gpt2", marks=slow)])
def test_all_directions_of_another_model_lead_back(kind):
    """Norms, embeddings, and queries that are computed with copies or views of a fused matrix."""
    model, other = tiny.bridge(kind), locate.load_model(tiny.hf_model(kind, seed=1), tiny.tokenizer())
    found = edit.reversibility(model, other, REQUEST, counts=[1, 400], ways=["dropped", "kept"], progress=False)
    assert found.reverted is None
    ends = found.data["ends"]
    for way, side in (("dropped", "base"), ("kept", "edited")):
        own = found.data["value"].sel(way=way, k=400, answer="logit_diff")
        assert own.values == pytest.approx(ends.sel(side=side, answer="logit_diff").values, abs=2e-4)


def test_the_old_answer_is_back_where_it_is_ahead_and_as_high():
    values = np.array([[-1.0, -3, 5, -1, 1], [-1.0, -3, 5, -1, 2], [1.0, -1, 1, -2, 1]])
    answers = ["logit_diff", "logprob_new", "rank_new", "logprob_old", "rank_old"]
    data = xr.Dataset(
        {"value": (("probe", "way", "k", "answer"), values[None, None]),
         "ends": (("probe", "side", "answer"), np.array([[[-2.0, -3, 7, -1, 1], [2.0, -1, 1, -3, 9]]]))},
        coords={"k": [1, 2, 4], "way": ["dropped"], "answer": answers, "side": ["base", "edited"]},
    )  # fmt: skip
    found = edit.Reversal(data=data, probes=({},), rank=3, reverted=True, info={})
    assert found.returns().values.tolist() == [[[True, False, False]]]
    assert found.undone().values.tolist() == [[[0.75, 0.75, 0.25]]]


def test_saved_ones_come_back_and_bad_input_is_explained(tmp_path):
    model = tiny.bridge("llama")
    update = random_update(model, 1)
    found = edit.reversibility(model, update, REQUEST, counts=[1], roles="edit", progress=False)
    again = edit.load_reversal(found.save(tmp_path / "reversal.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert (again.probes, again.rank, again.reverted, again.info) == (
        found.probes, found.rank, found.reverted, found.info
    )  # fmt: skip
    assert found.to_dataframe()["role"].unique().tolist() == ["edit"]
    with pytest.raises(locate.LocateError, match=r"counts: give numbers of directions from 1 on, found \[0\]"):
        edit.reversibility(model, update, REQUEST, counts=[0])
    with pytest.raises(locate.LocateError, match="ways: choose among dropped, kept, blind, found 'drop'"):
        edit.reversibility(model, update, REQUEST, ways=["drop"])
    with pytest.raises(locate.FactError, match="no probes of role one-hop or two-hop or consequence among those given"):
        edit.reversibility(model, update, REQUEST, roles="consequence")
