"""Many edits in one call: each at its own layer, kept on disk, with what failed as rows."""

import json

import numpy as np
import pandas as pd
import pytest

import edit
import locate
from edit.studies.placing import places_of
from locate.sites.site import Site
from tests import tiny

CITY = "{} is located in the city of"
FACTS = [
    locate.Fact(
        prompt=CITY, subject="The Louvre", target="Paris", target_new="Rome", paraphrases=("Go to {} in",), id="a"
    ),
    locate.Fact(prompt=CITY, subject="Big Ben", target="London", target_new="Rome", id="b"),
]
# Longer than the model reads.
BAD = locate.Fact(prompt=CITY, subject="Big " * 200, target="London", target_new="Paris", id="too-long")
HOW = {
    "trace": {"corruption": locate.GaussianNoise(samples=2), "window": 1}, "evaluate": {"generate": False},
    "propagate": {"kinds": ["mlp"]}, "progress": False,
}  # fmt: skip


def method():
    return edit.FineTuning(steps=2)


@pytest.mark.filterwarnings("ignore")
def test_the_study_is_what_the_steps_give_one_by_one(tmp_path):
    model = tiny.bridge("llama")
    found = edit.study(model, FACTS, method(), layer=["traced", "average", 2], folder=tmp_path, **HOW)
    traces = [locate.causal_trace(model, one, kinds=["mlp"], positions="subject_last", progress=False, **HOW["trace"])
              for one in FACTS]  # fmt: skip
    assert found.best() == Site("mlp", layer=locate.average_traces(traces).best("mlp").layer)
    for name, places in {"traced": traces, "average": [found.best()] * 2, "layer 2": [2, 2]}.items():
        for fact, place, key in zip(FACTS, places, found.data["fact"].values, strict=True):
            update = method().fit(model, fact, layer=place, progress=False)
            own = found.data["value"].sel(by=name, fact=key)
            assert int(found.data["layer"].sel(by=name, fact=key)) == update.info["layer"]
            told = edit.evaluate(model, update, fact, generate=False, progress=False).summary()
            assert float(own.sel(measure="efficacy magnitude")) == pytest.approx(
                told.loc["efficacy magnitude", "edited"], rel=1e-4
            )
            flow = edit.propagate(model, update, fact, parts=(), mediate="edit", kinds=["mlp"], progress=False)
            assert float(own.sel(measure="flow: edit")) == pytest.approx(flow.summary()["flow: edit"], rel=1e-3)
    frame = found.to_dataframe()
    assert len(frame) == 6
    assert frame["error"].isna().all()
    assert frame["traced: layer"].tolist()[:2] == [one.best("mlp").layer for one in traces]
    assert found.difference("traced", "layer 2").loc["efficacy", "n"] == 2
    again = edit.load_edit_study(found.save(tmp_path / "study.nc"))
    pd.testing.assert_frame_equal(again.to_dataframe(), frame)
    assert again.plot(measures=["efficacy"]).axes


@pytest.mark.filterwarnings("ignore")
def test_a_study_goes_on_and_keeps_what_failed_as_rows(tmp_path, monkeypatch):
    model = tiny.bridge("llama")
    how = {**HOW, "parts": None, "layer": ["traced", "random"], "folder": tmp_path}
    found = edit.study(model, [*FACTS, BAD], method(), **how)
    failed = found.failed
    assert failed[["by", "fact"]].to_numpy().tolist() == [["traced", "too-long"], ["random", "too-long"]]
    assert "There is no trace" in failed["error"].iloc[0]
    assert found.table().loc["efficacy", ("traced", "n")] == 2
    lines = (tmp_path / "cases.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["case"] != "random: b"]
    (tmp_path / "cases.jsonl").write_text("\n".join(kept) + "\n")
    fitted = []
    fit = edit.FineTuning.fit
    monkeypatch.setattr(edit.FineTuning, "fit", lambda *a, **k: fitted.append(a[2]) or fit(*a, **k))
    again = edit.study(model, [*FACTS, BAD], method(), **how)
    assert len(fitted) == 1
    np.testing.assert_allclose(again.data["value"], found.data["value"], rtol=1e-4, equal_nan=True)
    with pytest.raises(locate.DataError, match="belongs to another run"):
        edit.study(model, FACTS, method(), **how)


def test_controls_take_other_layers():
    model = tiny.bridge("llama")
    keys = list("abcd")
    random = places_of(model, "random", keys, {}, seed=1)
    assert random == places_of(model, "random", keys, {}, seed=1) != places_of(model, "random", keys, {}, seed=2)
    with pytest.raises(locate.SiteError, match="Did you mean traced"):
        edit.study(model, FACTS, method(), layer="trace")
