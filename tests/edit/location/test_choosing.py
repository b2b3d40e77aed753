"""The choice of a layer is what edits there score."""

import pytest

import edit
from edit.location.choosing import LayerChoice
from locate import Fact, FactError, NumericsError, SiteError
from tests import tiny


@pytest.fixture
def facts():
    shared = {"prompt": "{} is located in the city of", "target": "Paris", "target_new": "Rome"}
    return [
        Fact(subject=name, paraphrases=("{} stands in",), neighbours=("Big Ben is in",), **shared)
        for name in ("The Louvre", "The Eiffel Tower")
    ]


@pytest.fixture
def method(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:04d}" for number in range(2500)))
    objective = edit.ValueObjective(steps=2, stop="loss", loss_threshold=-1.0)
    return edit.ROME(objective=objective, prefixes=("I am. ",), corpus=str(text), statistics_tokens=1000)


def test_every_layer_is_edited_and_scored(facts, method):
    model = tiny.bridge("llama")
    choice = edit.choose_layer(model, method, facts, layers=[0, 2], progress=False)
    assert list(choice.table.index) == [0, 2]
    for layer in (0, 2):
        at = edit.ROME(**{**vars(method), "layer": layer})
        summary = edit.evaluate_each(model, at, facts, generate=False, progress=False).summary()["edited"]
        assert choice.table.loc[layer, "efficacy"] == pytest.approx(summary["efficacy"])
        assert choice.table.loc[layer, "score"] == pytest.approx(summary["score"])
    assert choice.layer in (0, 2)


def test_the_best_score_wins_and_ties_go_by_probability():
    import pandas as pd

    table = pd.DataFrame({"score": [80.0, 90.0, 90.0], "P(new)": [0.9, 0.5, 0.6]}, index=[1, 2, 3])
    assert LayerChoice(table=table).layer == 3


def test_bad_input(facts, method):
    model = tiny.bridge("llama")
    with pytest.raises(SiteError, match="Layer 9 is out of range"):
        edit.choose_layer(model, method, facts, layers=[9])
    bare = Fact(prompt="{} is in", subject="Rome", target="Italy", target_new="France")
    with pytest.raises(FactError, match="some cases need paraphrases and some neighbours"):
        edit.choose_layer(model, method, [bare])


def test_a_layer_that_cannot_be_edited_does_not_cost_the_others(facts, method):
    model = tiny.bridge("llama")
    with pytest.warns(UserWarning, match="Layer 3 has no score: .* reaches no answer"):
        choice = edit.choose_layer(model, method, facts, layers=[3, 1], progress=False)
    assert choice.table["score"].isna().to_dict() == {3: True, 1: False}
    assert choice.layer == 1
    with pytest.warns(UserWarning, match="Layer 3"), pytest.raises(NumericsError, match="reaches no answer"):
        edit.choose_layer(model, method, facts, layers=[3], progress=False)
