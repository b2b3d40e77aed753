"""``locate-edit circuit``: from pairs of prompts to a circuit, its figure and its test."""

import json

import numpy as np
import pandas as pd
import pytest

import locate
from tests.edit.cli.conftest import said

CAPITALS = [
    {"prompt": "The capital of {} is", "subject": subject, "target": target}
    for subject, target in (("France", "Paris"), ("Italy", "Rome"))
]
FEW = ["--pairs", "3", "--method", "eap", "--top", "20"]


@pytest.fixture
def circuit(locate_edit, stand_in, cache_apart):
    return locate_edit("circuit", model=stand_in)


@pytest.fixture
def pairs_file(tmp_path):
    """Four pairs about cities."""
    cities = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
    names = list(cities)
    clean, corrupt = ([f"The capital of {name} is" for name in some] for some in (names, names[1:] + names[:1]))
    answers = [(cities[one], cities[other]) for one, other in zip(names, names[1:] + names[:1], strict=True)]
    pairs = locate.tasks.PairedPrompts.of(clean, corrupt, answers=answers, name="capitals")
    return pairs.save(tmp_path / "capitals.json")


def test_a_task_gives_a_circuit_and_its_figure(circuit, stand_in, tmp_path):
    result = circuit("--task", "ioi", *FEW, "--seed", "5", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "circuit.safetensors", "circuit.json", "edges.csv", "circuit.png", "circuit.pdf"
    }  # fmt: skip
    assert result.stdout.split() == [
        str(tmp_path / name)
        for name in ("circuit.safetensors", "circuit.json", "edges.csv", "circuit.png", "circuit.pdf")
    ]
    whole, kept = (locate.load_circuit(tmp_path / f"circuit.{kind}") for kind in ("safetensors", "json"))
    model = locate.load_model(str(stand_in))
    again = locate.find_circuit(model, locate.tasks.ioi(model, 3, seed=5), method="eap", progress=False)
    np.testing.assert_allclose(whole.scores, again.scores, rtol=1e-4, atol=1e-7)
    assert whole.n_edges == whole.n_possible
    assert [edge[:2] for edge in kept.edges] == [edge[:2] for edge in whole.top(20).edges]
    table = pd.read_csv(tmp_path / "edges.csv")
    assert [*zip(table["writer"], table["reader"], strict=True)] == [edge[:2] for edge in kept.edges]
    assert "ioi, 3 pairs: logit_diff" in said(result)
    assert f"20 of {whole.n_possible} edges" in said(result)
    assert " ".join(kept.edges[0][:2]) in said(result).replace("│ ", "")


def test_faithfulness_is_told_saved_and_drawn(circuit, tmp_path):
    test = ["--faithfulness", "--random", "2", "--held-out", "2", "--ablation", "zero"]
    result = circuit(*FEW, "--how", "threshold", *test, "--out", tmp_path, "--json")
    found = json.loads(result.stdout)
    curve = locate.load_faithfulness(tmp_path / "faithfulness.nc")
    assert {"faithfulness.csv", "faithfulness.png", "faithfulness.pdf"} < {path.name for path in tmp_path.iterdir()}
    assert (curve.info["how"], curve.info["ablation"]) == ("threshold", "zero")
    assert (found["pairs"], found["tested_on"], curve.data.sizes["pair"]) == (3, 2, 2)
    assert found["faithfulness"]["cmd"] == pytest.approx(curve.cmd)
    assert found["faithfulness"]["random_cmd"] == pytest.approx(curve.random_cmd.mean())
    rows = {row["size"]: row for row in found["faithfulness"]["sizes"]}
    assert {20, found["of"]} < set(rows)
    assert rows[20]["faithfulness"] == pytest.approx(float(curve.curve.sel(size=20)))
    shown = said(circuit(*FEW, "--faithfulness", "--out", tmp_path / "shown"))
    assert "tested on 3 pairs: CMD" in shown
    assert "100.00% │ 1.000" in shown.replace("  ", " ")


def test_pairs_of_a_file_are_taken_and_held_out(circuit, pairs_file, tmp_path):
    pairs = ["--prompts", pairs_file, "--method", "eap", "--top", "0.1"]
    found = json.loads(circuit(*pairs, "--out", tmp_path / "all", "--json").stdout)
    assert (found["task"], found["pairs"]) == ("capitals", 4)
    assert found["edges"] == round(0.1 * found["of"])
    test = ["--held-out", "1", "--faithfulness"]
    found = json.loads(circuit(*pairs, *test, "--out", tmp_path / "some", "--json").stdout)
    assert (found["pairs"], found["tested_on"]) == (3, 1)
    message = said(circuit(*pairs, *test, "--pairs", "4", "--out", tmp_path, expect=2))
    assert "capitals.json has 4 pairs, and --pairs 4 and --held-out 1 were asked for" in message


def test_a_facts_file_is_asked_by_factual_recall(circuit, facts_file, tmp_path):
    facts = ["--facts", facts_file(CAPITALS), "--pairs", "1", "--method", "eap-relp", "--top", "5"]
    found = json.loads(circuit(*facts, "--no-known", "--metric", "probability", "--out", tmp_path, "--json").stdout)
    assert (found["task"], found["method"], found["metric"]) == ("factual_recall", "eap-relp", "probability")
    message = said(circuit(*facts, "--out", tmp_path, expect=2))
    assert "found 0 of the 1 pairs asked for" in message
    message = said(circuit(*facts, "--no-known", "--pairs", "3", "--out", tmp_path, expect=2))
    assert "found 2 of the 3 pairs asked for" in message


MISTAKES = {
    "unknown task": (["--task", "iou"], "Invalid value for '--task'"),
    "no pairs": (["--pairs", "0"], "Invalid value for '--pairs'"),
    "too many edges": (["--top", "100000"], "100000 edges were asked for, and the circuit has"),
    "broken top": (["--top", "2.5"], "--top: give a whole number of edges or a share between 0 and 1, found 2.5"),
    "too small a share": (["--top", "0.00001"], "edges is none. Keep more"),
    "unknown method": (["--method", "eaps"], "There is no method 'eaps' to score edges. Did you mean eap"),
    "unknown metric": (["--metric", "loss"], "There is no metric 'loss'"),
    "no gradient": (["--metric", "rank"], "rank"),
    "test without one": (["--random", "3"], "--random, --ablation and --held-out are of the test; give --faithfulness"),
    "two sources": (["--prompts", "x.json", "--task", "ioi"], "--prompts brings its own pairs"),
    "no such file": (["--prompts", "nowhere.json"], "nowhere.json"),
    "facts of another task": (["--task", "ioi", "--facts", "x.json"], "--facts and --no-known go with --task factual"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(case, circuit, tmp_path):
    arguments, message = MISTAKES[case]
    own = [] if "--pairs" in arguments else ["--pairs", "2"]
    if "--method" not in arguments:
        own += ["--method", "eap"]
    result = circuit(*own, *arguments, "--out", tmp_path / "out", expect=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
