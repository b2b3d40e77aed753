"""Circuits on disk: both forms give back what was saved, and refuse what is damaged."""

import json

import numpy as np
import pytest
import xarray as xr

from locate import Circuit, DataError, load_circuit
from tests import tiny
from tests.locate.circuits.test_circuit import grid, names


@pytest.fixture
def circuit():
    whole = tiny.made_up_circuit(grid(), pairs=["Zürich ↵", "Rome"], gap=np.float32(0.5), tokens=("a", "b"))
    positions = np.stack([whole.scores.values, 2 * whole.scores.values])
    return Circuit.of(
        grid(), whole.scores, standard_error=whole.standard_error, by_position=positions, model_print="tiny",
        info=whole.info, kept=whole.top(30).kept,
    )  # fmt: skip


def same(one, other):
    assert (one.writers, one.readers) == (other.writers, other.readers)
    assert other.info == {**one.info, "gap": 0.5, "tokens": ["a", "b"]}
    xr.testing.assert_identical(one.kept, other.kept)


def test_safetensors_gives_all_of_it_back(circuit, tmp_path):
    found = load_circuit(circuit.save(tmp_path / "new" / "circuit.safetensors"))
    same(circuit, found)
    for name in ("scores", "standard_error", "by_position"):
        xr.testing.assert_identical(getattr(circuit, name), getattr(found, name))
    bare = Circuit.of(grid(), circuit.scores, model_print="tiny")
    found = load_circuit(bare.save(tmp_path / "bare.safetensors"))
    assert found.standard_error is None
    assert found.by_position is None


def test_json_gives_back_what_is_kept(circuit, tmp_path):
    path = circuit.save(tmp_path / "circuit.json")
    found = load_circuit(path)
    same(circuit, found)
    assert found.edges == circuit.edges
    for name in ("scores", "standard_error"):
        xr.testing.assert_identical(getattr(circuit, name).where(circuit.kept), getattr(found, name))
    read = json.loads(path.read_text())
    assert read["edges"][0][:3] == list(circuit.edges[0])
    assert f'\n  ["{circuit.edges[1][0]}", "{circuit.edges[1][1]}", ' in path.read_text()
    bare = Circuit.of(grid(), circuit.scores, model_print="tiny").top(3)
    assert load_circuit(bare.save(tmp_path / "bare.json")).standard_error is None


def test_scores_that_json_left_out_are_the_others_after_a_union(circuit, tmp_path):
    found = load_circuit(circuit.save(tmp_path / "circuit.json"))
    other = tiny.made_up_circuit(grid(), seed=1)
    both = found | other
    assert names(both) == names(other)
    assert float(both.scores.sel(writer=circuit.edges[0][0], reader=circuit.edges[0][1])) == circuit.edges[0][2]
    assert (found.top(5) & other).n_edges == 5


def test_what_is_no_circuit_is_refused(circuit, tmp_path):
    with pytest.raises(DataError, match=r"ends in .safetensors or .json, found '.nc'"):
        circuit.save(tmp_path / "circuit.nc")
    for name in ("none.json", "none.safetensors"):
        with pytest.raises(DataError, match="There is no circuit file"):
            load_circuit(tmp_path / name)
    tiny_file = tmp_path / "other.json"
    for text, message in {
        "{": "not readable JSON", "[]": "not a circuit of format 1", '{"circuit": 2}': "not a circuit of format 1",
        '{"circuit": 1}': "is not a circuit: KeyError",
    }.items():  # fmt: skip
        tiny_file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_circuit(tiny_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": [["embed", "a9.h0.q", 1.0, 0.1]]}, "is not a circuit: KeyError"),
        ({"edges": [["embed", "m0", "x", 0.1]]}, "is not a circuit: ValueError"),
        ({"edges": [["embed", "m0", None, 0.1]]}, "1 kept edges are without a finite score"),
        ({"edges": [["m1", "m0", 1.0, 0.1]]}, "1 kept edges are impossible"),
        ({"edges": [["embed", "m0"]]}, "is not a circuit: IndexError"),
        ({"writers": [{"name": "embed"}]}, "is not a circuit: TypeError"),
        ({"columns": ["writer", "reader", "cost"]}, "is damaged"),
        ({"columns": 3}, "is not a circuit: TypeError"),
        ({"info": 3}, "is not a circuit: TypeError"),
    ],
)
def test_a_changed_file_is_refused(change, message, circuit, tmp_path):
    path = circuit.save(tmp_path / "circuit.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        load_circuit(path)


def test_a_flipped_bit_is_noticed(circuit, tmp_path):
    path = circuit.save(tmp_path / "circuit.safetensors")
    data = path.read_bytes()
    for place in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DataError):
            load_circuit(path)
