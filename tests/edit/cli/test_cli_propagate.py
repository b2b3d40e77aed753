"""``locate-edit propagate`` on an edit, another model, and a file of facts."""

import json

import pandas as pd
import pytest

import edit
import locate
from tests import tiny
from tests.edit.cli.conftest import said

ONE = [
    "--prompt",
    "{} is located in the city of",
    "--subject",
    "The Louvre",
    "--target",
    "Paris",
    "--target-new",
    "Rome",
]
QUICK = ["--method", "ft", "--layer", "1"]


@pytest.fixture
def propagate(locate_edit):
    return locate_edit("propagate")


def test_an_update_gives_a_report_with_its_page(propagate, model_folder, tmp_path):
    model = locate.load_model(model_folder)
    fact = locate.Fact(prompt=ONE[1], subject=ONE[3], target=ONE[5], target_new=ONE[7])
    update = edit.FineTuning(layer=1).fit(model, [edit.EditRequest(fact)], progress=False)
    update.save(tmp_path / "update.safetensors")
    probes = tmp_path / "probes.json"
    probes.write_text(json.dumps([{"role": "edit", "text": fact.text}, {"role": "neighbour", "text": "Big Ben is in"}]))
    out = tmp_path / "out"
    arguments = [
        "--update",
        tmp_path / "update.safetensors",
        "--probes",
        probes,
        "--parts",
        "map,footprint",
        "--out",
        out,
    ]
    found = json.loads(propagate(*ONE, *arguments, "--json").stdout)
    written = {path.name for path in out.iterdir()}
    assert {"report", "report.html", "totals.csv", "flow.png", "map.pdf", "footprint.csv"} <= written
    again = edit.load_propagation_report(out / "report")
    assert list(again.parts) == ["map", "footprint"]
    assert [row["role"] for row in found["probes"]] == ["edit", "neighbour"]
    assert found["layers"] == [1]
    assert found["best_mlp"]["layer"] == again.best("mlp").layer
    page = (out / "report.html").read_text()
    assert 'class="flow-view"' in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_another_model_is_followed(propagate, tmp_path):
    tiny.hf_model("llama", seed=1).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    shown = propagate(*ONE, "--edited", tmp_path / "other", "--parts", "none", "--out", tmp_path / "out")
    assert "another model at layer 0, 1, 2, 3" in said(shown)
    assert len(pd.read_csv(tmp_path / "out" / "totals.csv")) == 1


def test_a_file_is_averaged_and_goes_on(propagate, facts_file, tmp_path):
    facts = [
        {"prompt": "{} is located in the city of", "subject": name, "target": "Paris", "target_new": "Rome"}
        for name in ("The Louvre", "The Eiffel Tower")
    ]
    arguments = ["--facts", facts_file(facts), *QUICK, "--parts", "none", "--out", tmp_path / "out"]
    summary = json.loads(propagate(*arguments, "--json").stdout)
    assert summary["done"] == 2
    comparison = edit.load_propagation_comparison(tmp_path / "out" / "comparison.nc")
    own = [case["summary"]["flow: edit"] for case in summary["cases"]]
    assert summary["measures"]["flow: edit"]["mean"] == pytest.approx(sum(own) / 2)
    assert comparison.data.sizes["fact"] == 2
    assert "2 of 2 facts finished" in said(propagate(*arguments, "--json"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([*ONE, "--update", "a", "--edited", "b"], "--update and --edited exclude each other"),
        (["--shipped", "--edited", "b"], "--update, --edited and --probes go with a single fact"),
        ([*ONE, "--parts", "circuts"], "there is no 'circuts'"),
        (ONE[:-2], "needs a new object to edit to"),
        ([*ONE, "--update", "none.safetensors"], "There is no update file"),
    ],
)
def test_what_does_not_go_together_is_refused(propagate, arguments, problem):
    assert problem in said(propagate(*arguments, expect=2))
