"""What holds of any updates: exact reverts, merges in any order, files that give back what was saved."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edit
from edit.changes.lowrank import LowRank
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny

quickly = settings(max_examples=25)


@cache
def model():
    return tiny.bridge("llama")


def prints():
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model()).items()}


@st.composite
def updates(draw):
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = 10.0 ** draw(st.integers(-6, 3))
    deltas = {}
    for layer in draw(st.sets(st.integers(0, 3), min_size=1)):
        down, rank = down_projection(model(), layer), draw(st.integers(1, 3))
        rows, columns = down.parameter.shape
        left, right = (torch.randn(shape, generator=made) for shape in ((rows, rank), (rank, columns)))
        deltas[down.name] = LowRank(left=scale * left, right=right)
    return edit.WeightUpdate.make(model(), deltas, method="any")


@quickly
@given(update=updates())
def test_a_revert_is_bit_for_bit(update):
    before = prints()
    with update.applied(model()):
        assert {name for name, one in prints().items() if one != before[name]} == set(update.parameters)
    assert prints() == before


@quickly
@given(one=updates(), other=updates())
def test_merging_adds_up_in_either_order(one, other):
    both, turned = one.merge(other), other.merge(one)
    assert set(both.parameters) == set(turned.parameters) == {*one.parameters, *other.parameters}
    for name in both.parameters:
        total = sum(update.delta(name).double() for update in (one, other) if name in update.parameters)
        scale = float(total.abs().max())
        for merged in (both, turned):
            torch.testing.assert_close(merged.delta(name).double(), total, rtol=0, atol=1e-5 * scale)


@quickly
@given(update=updates())
def test_a_saved_update_is_the_same(update):
    with tempfile.TemporaryDirectory() as folder:
        again = edit.load_update(update.save(Path(folder) / "update.safetensors"))
    assert again.parameters == update.parameters
    for name in update.parameters:
        assert torch.equal(again.delta(name), update.delta(name))
