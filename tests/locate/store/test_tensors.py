"""The one format of tensors on disk: what is written is read, and nothing else is."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from locate import DataError
from locate.store.tensors import Kind, read_tensors, tensor_hash, tensor_sum, write_tensors

KINDS = [
    Kind(name="things", noun="a thing", version=3, remedy="make it again", digest=digest)
    for digest in (tensor_hash, tensor_sum)
]
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.ones(2, 2).T.double()}
DESCRIBED = {"name": "Zürich", "ids": (1, 2), 12: {"norm": 0.1}, 3: None}


@pytest.fixture(params=KINDS, ids=["sha", "crc"])
def kind(request):
    return request.param


def test_what_is_written_is_read(kind, tmp_path):
    path = write_tensors(tmp_path / "new" / "file.safetensors", kind, TENSORS, DESCRIBED)
    tensors, described = read_tensors(path, kind)
    assert described == {"name": "Zürich", "ids": [1, 2], "12": {"norm": 0.1}, "3": None}
    assert all(torch.equal(tensors[name], own) and tensors[name].dtype == own.dtype for name, own in TENSORS.items())
    assert set(tensors) == set(TENSORS)
    assert [one.name for one in path.parent.iterdir()] == ["file.safetensors"]


def test_a_flipped_bit_is_noticed_wherever_it_is(kind, tmp_path):
    path = write_tensors(tmp_path / "file.safetensors", kind, TENSORS, DESCRIBED)
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged|is a safetensors file but not a thing of format 3"):
            read_tensors(path, kind)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file_is_refused(kind, share, tmp_path):
    path = write_tensors(tmp_path / "file.safetensors", kind, TENSORS, DESCRIBED)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"damaged thing \(it is not a readable safetensors file.*\); delete the file"):
        read_tensors(path, kind)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"not a thing of format 3 \(found something else\); make it again"),
        ({"format": "3"}, r"\(found something else\)"),
        ({"locate_edit_others": '{"version": 3}'}, r"\(found something else\)"),
        ({"locate_edit_things": '{"version": 2}'}, r"\(found format 2\); make it again"),
        ({"locate_edit_things": "{}"}, r"\(found format None\)"),
        ({"locate_edit_things": '{"version": 3}'}, r"\(damaged thing: it has no checksum\); delete the file"),
        ({"locate_edit_things": '{"version": 3, "checksum": null}'}, "it has no checksum"),
        ({"locate_edit_things": '{"version": 3, "checksum": "0"}'}, "is damaged: its checksum does not match"),
        ({"locate_edit_things": "nonsense"}, r"\(damaged thing: .*\); delete the file, and make it again"),
        ({"locate_edit_things": "[1]"}, r"\(damaged thing: the description is a list\)"),
        ({"things": "{}"}, r"\(found format 0\)"),
        ({"format": "2", "things": "{}"}, r"\(found format 2\)"),
        ({"format": "new", "things": "{}"}, r"\(damaged thing: "),
    ],
)  # fmt: skip
def test_other_files_are_refused(kind, metadata, message, tmp_path):
    save_file(TENSORS | {"c": torch.ones(2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(DataError, match=message):
        read_tensors(tmp_path / "other.safetensors", kind)
    with pytest.raises(DataError, match=r"There is no things file '.*missing.safetensors'"):
        read_tensors(tmp_path / "missing.safetensors", kind)


def test_files_from_before_there_was_a_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"format": "3", "things": '{"of": "two"}'})
    assert read_tensors(tmp_path / "old.safetensors", KINDS[0])[1] == {"of": "two"}
    save_file({"a": torch.ones(2)}, tmp_path / "bare.safetensors", metadata={"locate_edit_things": '{"of": "two"}'})
    with pytest.raises(DataError, match="found format None"):
        read_tensors(tmp_path / "bare.safetensors", KINDS[0])
    trusting = Kind(name="things", noun="a thing", version=3, remedy="make it again", unmarked=True)
    assert read_tensors(tmp_path / "bare.safetensors", trusting)[1] == {"of": "two"}


@given(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text() | st.integers() | st.lists(st.booleans())))
def test_the_checksum_is_of_what_will_be_read(described):
    kind = KINDS[1]
    again = json.loads(json.dumps(described))
    assert kind.checksum(TENSORS, described) == kind.checksum(TENSORS, again)
    assert kind.checksum(TENSORS, described) != kind.checksum({"a": TENSORS["a"]}, described)
    assert kind.checksum(TENSORS, {**described, "?": math.pi}) != kind.checksum(TENSORS, described)


def test_the_checksum_stands_beside_the_description(kind, tmp_path):
    path = write_tensors(tmp_path / "file.safetensors", kind, TENSORS, {"of": "two"})
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["locate_edit_things"])
    assert header == {"version": 3, "of": "two", "checksum": kind.checksum(TENSORS, {"of": "two"})}
