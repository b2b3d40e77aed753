"""Edits at every layer are those of the method there, and what locating says of layers is what each way says alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import edit
import locate
from edit.location import layer_choice as rooms
from edit.location.layer_scores import gradient_layers, neuron_layers, relevance_layers
from edit.location.layer_study import LayerStudy
from edit.requests.requests import EditRequest
from locate import DataError, Fact, FactError, NumericsError, SiteError
from locate.facts.prompts import encode_fact, encode_target
from locate.model.weights import down_projection
from tests import tiny
from tests.figures import check_fits
from tests.sampling import sampled

NOISE = locate.GaussianNoise(samples=2)
SHARED = {"prompt": "{} is located in the city of", "target": "Paris", "target_new": "Rome"}
FACTS = [
    Fact(subject=name, paraphrases=("{} stands in",), neighbours=("Big Ben is in",), **SHARED)
    for name in ("The Louvre", "The Eiffel Tower")
]
QUIET = {"corruption": NOISE, "steps": 4, "progress": False}
MEANS_LITTLE = pytest.mark.filterwarnings("ignore:.*traces mean little")


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


@pytest.fixture
def method(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:04d}" for number in range(2500)))
    objective = edit.ValueObjective(steps=2, stop="loss", loss_threshold=-1.0)
    return edit.ROME(objective=objective, prefixes=("I am. ",), corpus=str(text), statistics_tokens=1000)


@MEANS_LITTLE
def test_every_layer_is_edited_and_what_locating_says_stands_beside(llama, method, tmp_path):
    requests = [edit.EditRequest(fact) for fact in FACTS]
    study = edit.layer_choice(llama, FACTS, method=method, layers=[0, 2], **QUIET)
    assert study.layers == [0, 2]
    before = edit.baseline(llama, FACTS, generate=False, progress=False).answers.rows
    for layer in (0, 2):
        for index, fact in enumerate(FACTS):
            update = method.fit(llama, fact, layer=layer, progress=False)
            rows = edit.evaluate(llama, update, [fact], generate=False, progress=False).rows.query("model == 'edited'")
            own = study.data["outcome"].sel(layer=layer).isel(fact=index)
            own_before = before[before["case"] == index]
            for name, probe in (("rewrite", "efficacy"), ("paraphrase rewrite", "paraphrase")):
                after = float(rows[rows["probe"] == probe]["probability_new"].iloc[0])
                was = float(own_before[own_before["probe"] == probe]["probability_new"].iloc[0])
                assert float(own.sel(name=name)) == pytest.approx((after - was) / (1 - was), abs=1e-5)
            for name in ("efficacy", "paraphrase", "neighbourhood"):
                assert float(own.sel(name=name)) == float(rows.query("probe == @name")["success"].mean())
    assert np.isnan(study.data["outcome"].sel(layer=[1, 3])).all()
    scores = study.data["score"]
    np.testing.assert_allclose(scores.sel(way="gradient"), gradient_layers(llama, requests), rtol=1e-5)
    wanted = relevance_layers(llama, FACTS, corruption=NOISE, progress=False)
    np.testing.assert_allclose(scores.sel(way="RelP"), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        scores.sel(way="knowledge neurons"), neuron_layers(llama, FACTS, steps=4, progress=False), rtol=1e-5
    )
    again = edit.load_layer_study(study.save(tmp_path / "study.nc"))
    assert again.best() == study.best()
    assert again.table().equals(study.table())
    assert len(again.to_dataframe()) == 2 * 2
    for figure in (again.plot(), again.plot(figsize=(3.2, 5.6)), again.plot_correlations(resamples=20)):
        check_fits(figure)
    assert method.fit(llama, FACTS[0], layer=study, progress=False).info["layer"] == study.best().layer
    assert study.pointed().loc["measured", "layer"] == study.best().layer


@MEANS_LITTLE
def test_what_was_finished_is_not_done_again(llama, method, tmp_path, monkeypatch):
    options = {"method": method, "folder": tmp_path / "run", **QUIET}
    first = edit.layer_choice(llama, FACTS, layers=[0], **options)
    done = []
    monkeypatch.setattr(rooms, "traced_layers", lambda *_, **__: done.append("traced"))
    monkeypatch.setattr(rooms, "gradient_layers", lambda *_, **__: done.append("gradient"))
    real = rooms.edited_rows
    monkeypatch.setattr(rooms, "edited_rows", lambda *given: done.append(given[3]) or real(*given))
    both = edit.layer_choice(llama, FACTS, layers=[0, 1], **options)
    assert done == [1]
    np.testing.assert_allclose(both.data["score"], first.data["score"])
    np.testing.assert_allclose(both.data["outcome"].sel(layer=0), first.data["outcome"].sel(layer=0))
    edit.layer_choice(llama, FACTS, layers=[0, 1], **options)
    assert done == [1]
    with pytest.raises(DataError, match="belongs to another run: facts"):
        edit.layer_choice(llama, FACTS[:1], layers=[0], **options)


@pytest.mark.parametrize("kind", sampled([kind for kind in tiny.CONFIGS if kind not in ("mistral", "qwen3")]))
def test_gradients_are_those_of_the_matrices(kind):
    model = tiny.bridge(kind)
    request = EditRequest(replace(FACTS[1], paraphrases=()), "London in France")
    found = gradient_layers(model, [request], progress=False)[0]
    prompt = encode_fact(model, request.fact)
    target = encode_target(model, prompt, request.target_new)
    logits = model.original_model(torch.cat([prompt.tokens, target])[None]).logits[0, len(prompt.tokens) - 1 : -1]
    weights = [down_projection(model, layer).parameter.requires_grad_(True) for layer in range(4)]
    logits = model.original_model(torch.cat([prompt.tokens, target])[None]).logits[0, len(prompt.tokens) - 1 : -1]
    gradients = torch.autograd.grad(F.cross_entropy(logits, target), weights)
    np.testing.assert_allclose(found, [float(one.norm()) for one in gradients], rtol=1e-3)


@MEANS_LITTLE
def test_facts_that_cannot_be_edited_at_a_layer_do_not_cost_the_others(llama, method):
    with pytest.warns(UserWarning, match="Layer 3 has no score: .* reaches no answer"):
        study = edit.layer_choice(llama, FACTS, method=method, layers=[1, 3], **QUIET)
    assert study.layers == [1]
    assert list(study.info["left_out"]) == ["layer 3"]
    with pytest.warns(UserWarning, match="Layer 3"), pytest.raises(NumericsError, match="reaches no answer"):
        edit.layer_choice(llama, FACTS, method=method, layers=[3], **QUIET)


@MEANS_LITTLE
def test_one_layer_and_bare_requests_are_told(llama, method):
    bare = [replace(fact, paraphrases=(), neighbours=()) for fact in FACTS]
    study = edit.layer_choice(llama, bare, method=method, layers=[1], **QUIET)
    assert study.info["left_out"] == {
        "paraphrase": "no request has paraphrases", "neighbourhood": "no request has neighbours",
    }  # fmt: skip
    assert study.best().layer == 1
    table = study.correlations(resamples=10)
    assert table.query("over == 'across layers, by fact'")["rho"].isna().all()
    assert study.table()["score"].isna().all()
    check_fits(study.plot())


@pytest.mark.filterwarnings("ignore:.*left out")
def test_ways_that_an_architecture_has_not_are_left_out(llama, method, monkeypatch):
    def refused(*_, **__):
        raise locate.ModelError("Not in this architecture.")

    monkeypatch.setattr(rooms, "relevance_layers", refused)
    monkeypatch.setattr(rooms, "traced_layers", refused)
    study = edit.layer_choice(llama, FACTS[:1], method=method, layers=[1], **QUIET)
    assert study.info["left_out"] == dict.fromkeys(
        ["tracing, MLP", "tracing, state", "RelP"], "Not in this architecture."
    )
    assert set(study.pointed().index) == {"gradient", "knowledge neurons", "measured"}
    check_fits(study.plot())


def study_of(outcome, score):
    """A study of one way of locating, with success wherever more than half was gained."""
    names = ["rewrite", "paraphrase rewrite", "efficacy", "paraphrase", "neighbourhood"]
    success = (outcome > 0.5).astype(float)
    data = {
        "outcome": (("name", "fact", "layer"), np.stack([outcome, outcome, success, success, 1 - success / 2])),
        "score": (("way", "fact", "layer"), score[None]),
    }
    coords = {"name": names, "way": ["gradient"], "fact": ["a", "b"], "layer": range(outcome.shape[1])}
    return LayerStudy(data=xr.Dataset(data, coords=coords), info={"model": "tiny", "method": "ROME", "left_out": {}})


def test_the_best_layer_is_measured_and_not_where_locating_points():
    outcome = np.array([[0.9, 0.8, 0.1], [0.6, 0.9, 0.2]])
    study = study_of(outcome, -outcome)
    assert study.best() == locate.Site("mlp", layer=1)  # both succeed at 0 and 1; 1 gains more
    assert study.pointed()["layer"].to_dict() == {"gradient": 2, "measured": 1}
    table = study.correlations(["rewrite"]).set_index("over")
    assert table.loc["pooled", "rho"] == pytest.approx(-1)
    assert isinstance(study.table(), pd.DataFrame)


def test_bad_input(llama):
    with pytest.raises(FactError, match="There is nothing to edit"):
        edit.layer_choice(llama, [])
    with pytest.raises(SiteError, match="Layer 9 is out of range"):
        edit.layer_choice(llama, FACTS, layers=[9])
    with pytest.raises(SiteError, match="layers: give at least one"):
        edit.layer_choice(llama, FACTS, layers=[])
    with pytest.raises(locate.LocateError, match="There is no outcome 'speed'; there are rewrite"):
        study_of(np.ones((2, 2)), np.ones((2, 2))).correlations(["speed"])
