"""``locate-edit neurons`` over one fact and over many."""

import json

import numpy as np
import pandas as pd
import pytest

import locate
from locate.errors import counted
from tests.edit.cli.conftest import said

ONE = ["--prompt", "{} is located in the city of", "--subject", "The Louvre", "--target", "Paris"]
QUICK = ["--rule", "right", "--steps", "2"]


@pytest.fixture
def neurons(locate_edit):
    return locate_edit("neurons")


def test_one_fact_gives_scores_a_figure_and_the_test(neurons, model_folder, tmp_path):
    result = neurons(*ONE, *QUICK, "--verify", "--random", "2", "--top", "3", "--out", tmp_path, "--json")
    found = json.loads(result.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("neurons", "effects") for kind in ("nc", "png", "pdf")
    } | {"effects.csv"}  # fmt: skip
    fact = locate.Fact(prompt=ONE[1], subject=ONE[3], target=ONE[5])
    model = locate.load_model(model_folder)
    scores = locate.knowledge_neurons(model, fact, rule="right", steps=2, progress=False)
    np.testing.assert_allclose(locate.load_neurons(tmp_path / "neurons.nc").scores, scores.scores, atol=1e-7)
    assert [(one["layer"], one["neuron"]) for one in found["top"]] == [
        (site.layer, site.neuron) for site in scores.top(3)
    ]
    assert found["refined"] == [[site.layer, site.neuron] for site in scores.refined()]
    assert found["missed"] == pytest.approx(float(scores.missed.max()), rel=1e-3)
    effects = locate.load_neuron_effects(tmp_path / "effects.nc")
    assert effects.data.sizes["set"] == 3
    assert found["effects"][0]["effect"] == pytest.approx(effects.summary()["effect"][0])
    shown = said(neurons(*ONE, *QUICK, "--out", tmp_path / "shown"))
    assert (
        f"refined set: {counted(len(scores.refined()), 'neuron')} above the threshold for more than 50% of 1 prompt"
        in shown
    )


def test_a_file_gives_scores_overlap_and_a_summary_and_goes_on(neurons, facts_file, tmp_path, monkeypatch):
    arguments = ["--facts", facts_file(), "--method", "gradient", "--verify", "--random", "2", "--out", tmp_path]
    summary = json.loads(neurons(*arguments, "--json").stdout)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["done"] == 4
    assert {f"{case['case']}.nc" for case in summary["cases"]} == {one.name for one in (tmp_path / "neurons").iterdir()}
    expected = {"overlap.nc", "overlap.csv", "overlap.png", "effects.nc", "effects.csv", "effects.png", "run.json"}
    assert expected <= {path.name for path in tmp_path.iterdir()}
    overlap = locate.load_neuron_overlap(tmp_path / "overlap.nc")
    table = pd.read_csv(tmp_path / "overlap.csv")
    assert len(table) == 16 == overlap.jaccard.size
    (told,) = summary["overlap"]["by_relation"]
    assert (told["where"], told["pairs"]) == ("within", 6)
    effects = locate.load_neuron_effects(tmp_path / "effects.nc")
    assert effects.data.sizes["fact"] == 4
    assert [row["on"] for row in summary["effects"]] == ["fact", "fact"]
    made = []
    monkeypatch.setattr(locate, "neuron_attribution", lambda *args, **options: made.append(args))
    again = neurons(*arguments, "--json")
    assert made == []
    assert "4 of 4 facts finished" in said(again)
    assert json.loads(again.stdout)["overlap"] == summary["overlap"]


@pytest.mark.parametrize("method", ["relp", "gain"])
def test_other_methods(method, neurons, tmp_path):
    found = json.loads(
        neurons(*ONE, "--method", method, "--verify", "--random", "1", "--out", tmp_path, "--json").stdout
    )
    assert len(found["top"]) == 10
    assert ("heads" in found) == (method == "gain") == (tmp_path / "neurons_heads.png").exists()
    assert ("refined" in found) == (method == "relp")


def test_negatives_are_of_the_same_relation(neurons, facts_file, tmp_path):
    neurons("--facts", facts_file(), "--limit", "1", *QUICK, "--negatives", "2", "--out", tmp_path)
    (path,) = (tmp_path / "neurons").glob("*.nc")
    negatives = locate.load_neurons(path).info["negatives"][0]
    assert negatives == ["Big Ben is located in the city of", "The Colosseum is located in the city of"]


MISTAKES = {
    "unknown method": (["--method", "integral"], "Invalid value for '--method'"),
    "options of another method": (["--method", "gain", "--steps", "3"], "--rule, --steps and --negatives are of integ"),
    "a threshold that leaves none": (["--threshold", "1"], "which no neuron exceeds"),
    "a share that leaves none": (["--share", "1", *QUICK, "--verify"], "--verify: no fact has refined neurons"),
    "no fact of the relation": (["--negatives", "2", *QUICK], "has no negative"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(case, neurons, tmp_path):
    arguments, message = MISTAKES[case]
    result = neurons(*ONE, *arguments, "--out", tmp_path / "out", expect=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
