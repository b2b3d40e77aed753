"""``locate-edit stats``: collecting, shards and merging, and what it says to a user's mistake."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from edit.cli import stats
from edit.statistics import KeyStatistics, Part, collect, load_statistics
from tests.edit.statistics.test_statistics import write_text

runner = CliRunner()
app = typer.Typer()
app.command()(stats.run)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(collect, "ROWS", 4)
    monkeypatch.setattr(collect, "LENGTH", 32)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", 500)


@pytest.fixture
def invoke(model_folder):
    def run(*arguments, expect=0):
        result = runner.invoke(app, ["--model", model_folder, *map(str, arguments)])
        assert result.exit_code == expect, result.output
        assert "Traceback" not in result.output
        return result

    return run


def said(result):
    return " ".join(result.stderr.split())


def test_collects_layers_to_a_folder_and_describes_them(invoke, text, tmp_path):
    out = tmp_path / "out"
    result = invoke("--layers", "1-2", "--corpus", text, "--tokens", 500, "--out", out, "--json")
    rows = json.loads(result.stdout)  # and nothing else on stdout
    assert [row["layer"] for row in rows] == [1, 2]
    for row in rows:
        found = load_statistics(row["file"])
        assert row["file"] == str(out / f"layer-{row['layer']}.safetensors")
        assert (row["keys"], row["dimension"], row["dtype"]) == (found.count, 80, "float32") == (512, 80, "float32")
        assert row["shards"] == ["all"]
        values = torch.linalg.eigvalsh(found.second_moment)
        assert row["condition"] == pytest.approx(float(values[-1] / values[0]), rel=1e-4)
        assert row["rank"] == 80
        shares = values / values.sum()
        assert row["effective_rank"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()))
        assert row["share_of_largest_tenth"] == pytest.approx(float(shares[-8:].sum()))
    assert len(list(out.iterdir())) == 2


def test_prints_a_table_and_the_files(invoke, text, tmp_path):
    file = tmp_path / "one.safetensors"
    result = invoke("--layers", "3", "--corpus", text, "--out", file)
    assert result.stdout.split() == [str(file)]
    assert load_statistics(file).layer == 3
    for word in ("layer", "keys", "dimension", "condition", "effective", "1664"):  # 13 batches for 20 × 80 keys
        assert word in result.stderr
    short = invoke("--layers", "3", "--corpus", text, "--no-spectrum")
    assert short.stdout == ""
    assert "condition" not in short.stderr


def test_shards_add_up_to_the_whole(invoke, text, tmp_path):
    options = ["--layers", "0,2", "--corpus", text, "--tokens", 600, "--no-spectrum"]
    invoke(*options, "--out", tmp_path / "whole")
    for index in range(3):
        invoke(*options, "--shard", f"{index}/3", "--out", tmp_path / "shards")
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert names == {f"layer-{layer}-shard-{index}-of-3.safetensors" for layer in (0, 2) for index in range(3)}
    result = invoke("--merge", tmp_path / "shards", "--out", tmp_path / "merged", "--json")
    rows = json.loads(result.stdout)
    assert [(row["layer"], row["keys"], row["shards"]) for row in rows] == [(0, 640, ["all"]), (2, 640, ["all"])]
    for layer in (0, 2):
        name = f"layer-{layer}.safetensors"
        merged, whole = load_statistics(tmp_path / "merged" / name), load_statistics(tmp_path / "whole" / name)
        assert merged.count == whole.count
        torch.testing.assert_close(merged.second_moment, whole.second_moment, rtol=1e-12, atol=1e-14)
    some = [tmp_path / "shards" / f"layer-0-shard-{index}-of-3.safetensors" for index in (2, 0)]
    row = json.loads(invoke("--merge", *some, "--out", tmp_path / "some.safetensors", "--json").stdout)[0]
    assert row["shards"] == ["2/3", "0/3"]


def test_a_singular_matrix_has_no_condition_in_json(invoke, tmp_path):
    known = {"count": 9, "layer": 2, "corpus": "a", "seed": 0, "fingerprint": "abc", "parts": (Part("a", 0, 1),)}
    moment = torch.diag(torch.tensor([0.0, 1, 3], dtype=torch.float64))
    file = KeyStatistics(second_moment=moment, **known).save(tmp_path / "a.safetensors")
    row = json.loads(invoke("--merge", file, "--out", tmp_path / "out", "--json").stdout)[0]
    assert row["condition"] is None
    assert row["rank"] == 2
    assert row["share_of_largest_tenth"] == pytest.approx(0.75)
    assert "inf" in invoke("--merge", file, "--out", tmp_path / "out").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give the layers to collect key statistics of, such as --layers 3-7"),
        (["--layers", "x"], "--layers: expected numbers or ranges"),
        (["--layers", "99"], "Layer 99 is out of range: the model has 4 layers"),
        (["--layers", "1", "--corpus", "./missing.txt"], "There is no text file './missing.txt'"),
        (["--layers", "1", "--shard", "2/2", "--out", "x"], "--shard: expected I/N"),
        (["--layers", "1", "--shard", "one", "--out", "x"], "--shard: expected I/N"),
        (["--layers", "1", "--shard", "0/2"], "--shard needs --out"),
        (["--layers", "1,2", "--out", "one.safetensors"], "is one file, and there are 2 layers. Give a folder"),
        (["file.safetensors", "--layers", "1"], "Files are only read with --merge"),
        (["--merge", "--out", "x"], "--merge needs files"),
        (["--merge", "a.safetensors"], "--merge needs --out"),
        (["--merge", "a.safetensors", "--layers", "1", "--out", "x"], "does not go with --layers"),
        (
            ["--merge", "a.safetensors", "--tokens", "9", "--out", "x"],
            "does not go with --corpus, --tokens or --seed",
        ),
        (["--merge", "sums", "--out", "sums"], "--out sums is among what is merged"),
        (["--merge", "sums", "--out", "sums/all.safetensors"], "is among what is merged"),
        (["--merge", "sums", "--out", "sums/further"], "There is no statistics file"),
        (["--merge", "sums/a.safetensors", "--out", "sums"], "is among what is merged"),
        (["--merge", "a.safetensors", "--out", "x"], "There is no statistics file 'a.safetensors'"),
        (["--layers", "1", "--tokens", "0"], "Invalid value for '--tokens'"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(invoke, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments, expect=2)
    assert message in " ".join(said(result).replace("│", "").split())
    assert result.stdout == ""


def test_merging_names_the_file_that_does_not_fit(invoke, text, tmp_path):
    file = tmp_path / "one.safetensors"
    invoke("--layers", "1", "--corpus", text, "--out", file, "--no-spectrum")
    result = invoke("--merge", file, file, "--out", tmp_path / "sum.safetensors", expect=2)
    assert f"Error: {file}: Shard 0/1 of text" in said(result)
    assert "would count twice" in said(result)
    (tmp_path / "empty").mkdir()
    assert "There are no .safetensors files" in said(invoke("--merge", tmp_path / "empty", "--out", "x", expect=2))
    assert not (tmp_path / "sum.safetensors").exists()


def test_numbers_that_go_wrong_are_exit_code_1(invoke, tmp_path):
    known = {"count": 9, "layer": 2, "corpus": "a", "seed": 0, "fingerprint": "abc"}
    moment = torch.full((3, 3), float("nan"), dtype=torch.float64)
    file = KeyStatistics(second_moment=moment, **known).save(tmp_path / "a.safetensors")
    result = invoke("--merge", file, "--out", tmp_path / "out", expect=1)
    assert "Failed: The key statistics of layer 2 are not finite" in said(result)
