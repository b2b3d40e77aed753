"""The report of knowledge location says what its numbers say, and goes on where it was stopped."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import edit
import locate
from edit.location.layer_study import LayerStudy
from edit.report import location
from edit.report.findings import concentration_finding, layer_finding, readout_finding, similarity_finding
from locate import Consequence, DataError, Fact, FactError
from tests import tiny

FACTS = [
    Fact(prompt="{} is located in the city of", subject="The Louvre", target="Paris", target_new="Rome", id="louvre",
         paraphrases=("{} stands in",), neighbours=("Big Ben is in",), relation="city",
         consequences=(Consequence(prompt="{} is in", target="Italy", target_before="France"),)),
    Fact(prompt="The capital of {} is", subject="Italy", target="Rome", target_new="London", relation="capital",
         paraphrases=("{} has the capital",), neighbours=("The capital of France is",), id="italy"),
]  # fmt: skip
ONLY_TELLING = pytest.mark.filterwarnings("ignore:.*(traces mean little|has not brought|did not reach)")


@pytest.fixture
def methods(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:04d}" for number in range(2500)))
    objective = edit.ValueObjective(steps=2, stop="loss", loss_threshold=-1.0)
    how = {"objective": objective, "prefixes": ("I am. ",), "corpus": str(text), "statistics_tokens": 1000}
    return {"ROME": edit.ROME(layer=1, **how), "fine-tuning": edit.FineTuning(layer=1, steps=3)}


@ONLY_TELLING
def test_a_report_is_written_and_goes_on(methods, tmp_path, monkeypatch):
    model, out = tiny.bridge("llama"), tmp_path / "out"
    options = {"methods": methods, "layers": [0, 1], "most": 3, "steps": 4, "only_known": False, "progress": False}
    options["corruption"] = locate.GaussianNoise(samples=2)
    made = edit.location_report(model, FACTS, out, **options)
    for name in ("concentration", "hits", "layers", "correlations", "rsim"):
        assert (out / f"{name}.png").stat().st_size > 5_000
        assert (out / f"{name}.pdf").exists()
        assert len(pd.read_csv(out / f"{name}.csv"))
    assert made.spread.groupby("method").size().to_dict() == {"ROME": 2, "fine-tuning": 2}
    rome = methods["ROME"].fit(model, FACTS[1], progress=False)
    own = edit.concentration(rome, model)
    row = made.spread.query("method == 'ROME' and fact == 'italy'").iloc[0]
    assert row["effective"] == pytest.approx(float(own.effective()[0]) / 80, rel=1e-3)
    ranks = edit.column_readout(model, rome, FACTS[1]).data["rank"][0]
    np.testing.assert_array_equal(made.readouts["ROME"].data["rank"][1], ranks)
    page, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    for finding in made.findings:
        assert finding.paragraph in page
        assert finding.verdict in html
    assert json.loads((out / "summary.json").read_text())["best"] == made.study.best().layer
    assert made.study.layers == [0, 1]

    def never(*_, **__):
        raise AssertionError("This was done before.")

    monkeypatch.setattr(location, "_write", lambda *_: None)  # pages take seconds
    for name in ("concentration", "localisation_similarity"):
        monkeypatch.setattr(location, name, never)
    again = edit.location_report(model, FACTS, out, **options)
    assert [one.text for one in again.findings] == [one.text for one in made.findings]
    with pytest.raises(DataError, match="belongs to another run: most was 3 and is 2 now"):
        edit.location_report(model, FACTS, out, **{**options, "most": 2})


@ONLY_TELLING
def test_parts_without_facts_are_left_out_with_the_reason(methods, tmp_path):
    model = tiny.bridge("llama")
    bare = [replace(fact, paraphrases=(), consequences=(), neighbours=()) for fact in FACTS[:1]]
    made = edit.location_report(
        model, bare, tmp_path / "out", methods={"fine-tuning": methods["fine-tuning"]}, layers=[1], most=3, steps=4,
        corruption=locate.GaussianNoise(samples=2), only_known=False, progress=False,
    )  # fmt: skip
    assert made.similarity is None
    assert "no fact has paraphrases besides its own prompt" in made.left_out["RSim"]
    assert made.left_out["paraphrase"] == "no request has paraphrases"
    assert [one.reappears for one in made.findings] == [None, None, None]
    assert "RSim: Nothing to compare" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(FactError, match="methods: give at least one"):
        edit.location_report(model, bare, tmp_path / "none", methods={})


def spread(**effective):
    rows = [{"method": name, "effective": one, "top": 0.3} for name, values in effective.items() for one in values]
    return pd.DataFrame(rows)


def test_whether_changes_concentrate():
    few, many = [0.05, 0.06, 0.04, 0.05], [0.6, 0.62, 0.58, 0.61]
    found = concentration_finding(spread(rome=few, tuned=many), "tuned")
    assert found.reappears
    assert "rome is as if spread evenly over 5% [4, 6] of the columns" in found.text
    assert concentration_finding(spread(rome=many, tuned=few), "tuned").reappears is False
    assert concentration_finding(spread(rome=[0.1, 0.9], tuned=[0.2, 0.8]), "tuned").reappears is None
    assert concentration_finding(spread(rome=few), "tuned").reappears is None


def readout(method, before, after):
    ranks = np.stack([np.full((len(before), 2), 400), np.full((len(after), 2), 400)], 1)
    ranks[:, 0, 1], ranks[:, 1, 1] = before, after
    data = {"rank": (("fact", "state", "column"), ranks)}
    coords = {"state": ["before", "after"], "column": [0, 1]}
    return edit.ColumnReadout(data=xr.Dataset(data, coords=coords), info={"method": method, "model": "tiny"})


def test_whether_what_columns_say_changes():
    still, rises = readout("ROME", [9] * 6, [9] * 6), readout("MEMIT", [99] * 6, [9] * 6)
    found = readout_finding({"ROME": still, "MEMIT": rises, "other": readout("KN", [9] * 6, [99] * 6)})
    assert found.reappears
    assert "MEMIT: Hit@50 goes from 0% to 100%, a change of +100 points [+100, +100]" in found.text
    assert readout_finding({"ROME": readout("ROME", [99] * 6, [9] * 6), "MEMIT": rises}).reappears is False
    assert readout_finding({"MEMIT": readout("MEMIT", [9] * 6, [9] * 6)}).reappears is False
    assert readout_finding({"KN": readout("KN", [9] * 6, [9] * 6)}).reappears is None


def similarity(rsim, width=0.05):
    k = np.arange(1, 9)
    table = {"rsim": rsim, "rsim_low": rsim - width, "rsim_high": rsim + width}
    data = {name: (("group", "k"), np.tile(values, (2, 8))) for name, values in table.items()}
    info = {"facts": {"paraphrases": 5, "hops": 0}, "left_out": {"hops": "no fact has hops"}, "model": "tiny"}
    found = edit.LocalisationSimilarity(
        data=xr.Dataset(data, coords={"group": ["paraphrases", "hops"], "k": k}), info=info
    )
    found.data["rsim"].loc[{"group": "hops"}] = np.nan
    return found


def test_whether_tracing_finds_the_entity():
    found = similarity_finding(similarity(0.3))
    assert found.reappears
    assert "at most 0.30 [0.25, 0.35] past 5 layers (at 6; 5 facts)" in found.text
    assert "hops of its chain: left out, no fact has hops" in found.text
    assert similarity_finding(similarity(0.8)).reappears is False
    assert similarity_finding(similarity(0.58)).reappears is None


def test_whether_tracing_says_where_to_edit():
    draw = np.random.default_rng(0)
    outcome, chance = draw.random((12, 6)), draw.random((12, 6))

    def study(score):
        names = ["rewrite", "paraphrase rewrite", "efficacy", "paraphrase", "neighbourhood"]
        data = {
            "outcome": (("name", "fact", "layer"), np.stack([outcome] * 5)),
            "score": (("way", "fact", "layer"), score[None]),
        }
        coords = {"name": names, "way": ["tracing, MLP"], "layer": range(6)}
        return LayerStudy(data=xr.Dataset(data, coords=coords), info={"method": "ROME", "model": "tiny"})

    found = layer_finding(study(chance))
    assert found.reappears
    assert f"Edits work best at layer {study(chance).best().layer}" in found.text
    assert layer_finding(study(outcome)).reappears is False
