"""Prediction before editing against its scores written out, and how predictions are judged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.stats import rankdata, spearmanr

import edit
import locate
from edit.propagation.predicted import FEATURES
from edit.propagation.reach import COMBINED, COMBINING
from tests import tiny
from tests.edit.propagation.test_propagation import random_update
from tests.figures import check_fits
from tests.sampling import slow

LAYER = 1
FOLLOWS = (
    locate.Consequence(prompt="I think {} is in the country of", target="Italy", target_before="France"),
    locate.Consequence(prompt="The language at {} is", target="Roman", target_before="French", hops=2),
)
FACT = locate.Fact(
    prompt="I know that {} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    relation="city", consequences=FOLLOWS,
)  # fmt: skip
REQUEST = edit.EditRequest(FACT)
OTHERS = [
    locate.Fact(prompt="{} is in the city of", subject="The Colosseum", target="Rome", relation="city"),
    locate.Fact(prompt="The capital of {} is", subject="Italy", target="Rome"),
    locate.Fact(prompt="The capital of {} is", subject="France", target="Paris"),
]
PROBES = edit.probes_for(REQUEST)[1:]


def subject_last(model, text, subject):
    start = text.index(subject)
    offsets = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (a, b) in enumerate(offsets) if a < start + len(subject) and b > start)


def literal(model, text, new, old, subject, states):
    """Margin, key, gradient and relevance at the site, and margins with donated states: autograd and hooks alone."""
    tokens = torch.tensor(model.tokenizer(text)["input_ids"])[None]
    new, old = (model.tokenizer(" " + one)["input_ids"][0] for one in (new, old))
    at, seen, leaves = subject_last(model, text, subject), {}, {}

    def leaf(value, name):
        leaves[name] = torch.zeros_like(value, requires_grad=True)
        seen[name] = value.detach()
        return value + leaves[name]

    def see(value, hook):
        seen["key"] = value.detach()[0, at]

    names = [
        f"blocks.{layer}.{part}" for part in ("attn.hook_z", "hook_mlp_out") for layer in range(model.cfg.n_layers)
    ]
    hooks = [(name, lambda value, hook, name=name: leaf(value, name)) for name in names]
    with model.hooks(fwd_hooks=[*hooks, (f"blocks.{LAYER}.mlp.out.hook_in", see)]):
        logits = model(tokens)[0, -1]
    margin = logits[new] - logits[old]
    gradients = dict(zip(names, torch.autograd.grad(margin, [leaves[name] for name in names]), strict=True))
    flows = {name: seen[name] * gradients[name] for name in names}
    relevance = [*(flows[name].sum((0, 1, 3)) for name in names if "attn" in name)]
    relevance += [flows[name].sum()[None] for name in names if "mlp" in name]

    def donated(state):
        def give(value, hook):
            value = value.clone()
            value[0, at] = state
            return value

        with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.{LAYER}.hook_resid_post", give)]):
            logits = model(tokens)[0, -1]
        return float(logits[new] - logits[old])

    gradient = gradients[f"blocks.{LAYER}.hook_mlp_out"][0, at]
    return margin.item(), seen["key"], gradient, torch.cat(relevance).numpy(), [donated(state) for state in states]


def state_of(model, fact):
    tokens = torch.tensor(model.tokenizer(fact.text)["input_ids"])[None]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    return cache[f"blocks.{LAYER}.hook_resid_post"][0, subject_last(model, fact.text, fact.subject)]


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", pytest.param("gpt_neox", marks=slow), pytest.param("olmo2", marks=slow)]
)
def test_scores_are_their_definitions(kind):
    model = tiny.bridge(kind)
    found = edit.predict_reach(model, REQUEST, layer=LAYER, others=OTHERS, progress=False)
    states = [state_of(model, one) for one in OTHERS[:2]]
    own = literal(model, FACT.text, "Rome", "Paris", FACT.subject, states)
    for index, probe in enumerate(PROBES):
        margin, key, gradient, relevance, donated = literal(
            model, probe.text, probe.new, probe.old, FACT.subject, states
        )
        fires = float(key @ own[1] / (own[1] @ own[1]))
        wanted = {
            "near": margin, "key": fires,
            "gradient": float(gradient @ own[2] / gradient.norm() / own[2].norm()),
            "first order": fires * float(gradient @ own[2] / (own[2] @ own[2])),
            "donor": np.mean(donated) - margin,
            "mediators": relevance @ own[3] / np.linalg.norm(relevance) / np.linalg.norm(own[3]),
        }  # fmt: skip
        assert set(wanted) == set(FEATURES)
        for name, value in wanted.items():
            assert float(found.score(name)[index]) == pytest.approx(value, rel=2e-3, abs=2e-4), name


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


def test_statistics_weigh_keys(llama):
    draw = torch.randn(400, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = draw.T @ draw / 400
    statistics = edit.KeyStatistics(
        second_moment=moment, count=400, layer=LAYER, corpus="made up", seed=0, fingerprint="tiny"
    )
    found = edit.predict_reach(llama, REQUEST, layer=LAYER, statistics=statistics, others=(), progress=False)
    own, one = (
        literal(llama, text, "Rome", "Paris", FACT.subject, [])[1].double() for text in (FACT.text, PROBES[0].text)
    )
    weighted = torch.linalg.solve(moment, own)
    assert float(found.score("key")[0]) == pytest.approx(float(one @ weighted / (own @ weighted)), rel=1e-4)
    assert found.score("donor").isnull().all()
    assert found.info["statistics"]
    assert found.info["donors"] == 0
    with pytest.raises(locate.SiteError, match="statistics: are of layer 1; give those of layer 2"):
        edit.predict_reach(llama, REQUEST, layer=2, statistics=statistics)


def test_the_site_is_the_edited_layer_and_the_model_is_left_as_it_was(llama):
    before = {name: one.clone() for name, one in locate.model.weights.hf_parameters(llama).items()}
    found = edit.predict_reach(llama, REQUEST, others=OTHERS, progress=False)
    assert found.info["layer"] == edit.ROME().resolve_layer(llama)
    assert all((before[name] == one).all() for name, one in locate.model.weights.hf_parameters(llama).items())


def test_it_is_saved_and_drawn(llama, tmp_path):
    found = edit.predict_reach(llama, REQUEST, layer=LAYER, others=OTHERS, progress=False)
    again = edit.load_reach_prediction(found.save(tmp_path / "foreseen.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert again.table().equals(found.table())
    assert len(again.to_dataframe()) == 2 * len(FEATURES)
    check_fits(again.plot())
    check_fits(again.plot(figsize=(3.4, 3.0)))
    with pytest.raises(locate.LocateError, match="there is no score 'nearness'"):
        found.score("nearness")
    order = np.argsort(-found.score("near").values)
    assert found.ranking("near")["text"].tolist() == found.probes["text"].iloc[order].tolist()


def test_what_cannot_be_predicted_is_told(llama):
    with pytest.raises(locate.FactError, match="has no consequences of 'Europe'"):
        edit.predict_reach(llama, edit.EditRequest(FACT, "Europe"))
    with pytest.raises(locate.FactError, match="The Eiffel Tower"):
        edit.predict_reach(llama, REQUEST, [edit.Probe(role="neighbour", text="The Louvre is in", new="Rome", old="a")])
    with pytest.raises(locate.SiteError, match="9"):
        edit.predict_reach(llama, REQUEST, layer=9)
    with pytest.raises(locate.LocateError, match="There is no method 'rel'"):
        edit.predict_reach(llama, REQUEST, layer=LAYER, method="rel")


def made_up(n, seed=0, probes=2):
    """Predictions and flows in which nearness tells of the margin, and nothing else of anything."""
    draw = np.random.default_rng(seed)
    predictions, flows = [], []
    for fact in range(n):
        near = draw.normal(size=probes)
        scores = draw.normal(size=(probes, len(FEATURES)))
        scores[:, 0] = near
        rows = [{"role": "consequence", "text": f"p{index}", "old": "a", "new": "b"} for index in range(probes)]
        table = pd.DataFrame(rows).assign(base=near)
        data = xr.Dataset({"score": (("probe", "feature"), scores)}, coords={"feature": list(FEATURES)})
        predictions.append(edit.ReachPrediction(data=data, probes=table, info={"model": "tiny"}))
        edited = [5.0, *(near + 0.1 * draw.normal(size=probes))]
        totals = pd.DataFrame([{"role": "edit", "text": f"e{seed}.{fact}", "old": "a", "new": "b"}, *rows]).assign(
            edited=edited
        )
        totals["total_effect"] = totals["edited"] + 1
        flows.append(
            edit.Propagation(
                data=xr.Dataset(), totals=totals, tokens=(), layers=(1,), info={"method": "made up", "kinds": []}
            )
        )
    return predictions, flows


def test_judged_scores_are_correlated_with_what_became_of_the_probes():
    predictions, flows = made_up(20)
    found = edit.judge_reach(predictions, flows, towards="margin")
    table = found.correlations(resamples=50).set_index(["score", "outcome"])
    near = np.concatenate([one.score("near").values for one in predictions])
    margin = np.concatenate([one.totals["edited"][1:] for one in flows])
    share = np.concatenate([one.totals["total_effect"][1:] / one.totals["total_effect"][0] for one in flows])
    for what, own in {"margin": margin, "answered": margin > 0, "share": share}.items():
        assert table.loc[("near", what), "value"] == pytest.approx(spearmanr(near, own).statistic)
    assert table.loc[(COMBINED, "margin"), "value"] > 0.8
    assert abs(table.loc[("donor", "margin"), "value"]) < 0.5
    assert table["probes"].unique().tolist() == [40]
    assert table["facts"].unique().tolist() == [20]
    assert max(found.info["coefficients"], key=found.info["coefficients"].get) == "near"
    assert found.table().loc["consequence", "probes"] == 40
    assert found.table().loc["consequence", "answered"] == pytest.approx((margin > 0).mean())


def test_the_combined_score_has_not_seen_the_fact_that_it_is_judged_on():
    predictions, flows = made_up(10)
    found = edit.judge_reach(predictions, flows, towards="margin", folds=5)
    # What became of the first fact's probes (0 and 5 are of one fold) has no part in its score.
    other = flows[0].totals.assign(edited=[5.0, 90.0, -90.0])
    again = edit.judge_reach(predictions, [replace(flows[0], totals=other), *flows[1:]], towards="margin", folds=5)
    score, changed = (one.data["score"].sel(name=COMBINED) for one in (found, again))
    np.testing.assert_allclose(score.sel(fact=[0, 5]), changed.sel(fact=[0, 5]))
    assert not np.allclose(score.sel(fact=1), changed.sel(fact=1))


def test_edits_of_one_fact_are_never_apart():
    """What one method's edit did says much of what another's does: neither fold nor bootstrap may take them apart."""
    predictions, flows = made_up(6)
    found = edit.judge_reach(predictions, flows, towards="margin", folds=3)
    twice = edit.judge_reach(predictions * 2, flows * 2, towards="margin", folds=3)
    assert twice.data.sizes["fact"] == 6
    score, again = (one.data["score"].sel(name="near").values for one in (found, twice))
    np.testing.assert_array_equal(again, np.hstack([score, score]))
    correlations = twice.correlations(["near"], resamples=50)
    pd.testing.assert_frame_equal(
        correlations.drop(columns="probes"), found.correlations(["near"], resamples=50).drop(columns="probes"),
        atol=0.02,
    )  # fmt: skip
    other = flows[0].totals.assign(edited=[5.0, 90.0, -90.0])
    changed = edit.judge_reach(
        predictions * 2, [*flows, replace(flows[0], totals=other), *flows[1:]], towards="margin", folds=3
    )
    held = [one.data["score"].sel(name=COMBINED, fact=0).values for one in (twice, changed)]
    np.testing.assert_allclose(*held)


def test_an_edit_without_effect_has_no_shares():
    predictions, flows = made_up(4)
    still = flows[0].totals.assign(total_effect=[0.0, 1.0, -1.0])
    found = edit.judge_reach(predictions, [replace(flows[0], totals=still), *flows[1:]])
    share = found.data["outcome"].sel(what="share").values
    assert np.isnan(share[0]).all()
    assert np.isfinite(share[1:]).all()


def test_the_ridge_is_its_closed_form():
    predictions, flows = made_up(6)
    found = edit.judge_reach(predictions, flows, towards="margin", folds=2)

    def ranks(values):
        return (rankdata(values) - 0.5) / len(values) - 0.5

    places = [list(FEATURES).index(name) for name in COMBINING]
    scores = np.concatenate([one.data["score"].values for one in predictions])[:, places]
    x = np.stack([ranks(column) for column in scores.T], 1)
    margin = np.concatenate([one.totals["edited"].to_numpy()[1:] for one in flows])
    assert list(found.info["coefficients"]) == list(COMBINING)
    held = np.repeat(np.arange(6) % 2 == 0, 2)
    wanted = ranks(margin[~held])
    mean = x[~held].mean(0)
    centred = x[~held] - mean
    weights = np.linalg.solve(centred.T @ centred + 3 * np.eye(x.shape[1]), centred.T @ (wanted - wanted.mean()))
    own = (x[held] - mean) @ weights + wanted.mean()
    np.testing.assert_allclose(found.data["score"].sel(name=COMBINED)[::2].values.ravel(), own)


def test_a_study_of_reuse_and_one_of_predictions_are_saved_and_drawn(llama, tmp_path):
    update = random_update(llama)
    reuse = edit.mediator_reuse(llama, update, REQUEST, top=3, samples=2, progress=False)
    other = replace(reuse, totals=reuse.totals.replace({"text": {FACT.text: "another"}}))
    found = edit.reuse_study([reuse, other, reuse])
    own = reuse.table()
    assert found.data["score"].notnull().sum("probe").sel(name="cosine").values.tolist() == [4, 2]
    assert found.data["score"].sel(name="cosine", fact=1).values[:2].tolist() == own["cosine"].tolist()[1:]
    assert found.data["outcome"].sel(what="share", fact=1).values[:2] == pytest.approx(
        (own["total_effect"] / own["total_effect"][0]).tolist()[1:]
    )
    for one in (found, edit.judge_reach(*made_up(8))):
        again = edit.load_reach_study(one.save(tmp_path / "study.nc"))
        xr.testing.assert_equal(again.data, one.data)
        assert again.info == one.info
        check_fits(again.plot())
        check_fits(again.plot(figsize=(7.0, 3.0)))


def test_facts_of_other_sizes_are_put_together():
    few, many = made_up(3, probes=1), made_up(3, seed=1, probes=3)
    found = edit.judge_reach(few[0] + many[0], few[1] + many[1])
    assert found.data["score"].notnull().sum(("fact", "probe")).values.tolist() == [12] * (len(FEATURES) + 1)
    assert found.correlations(resamples=20)["probes"].unique().tolist() == [12]


def test_bad_input_to_studies():
    predictions, flows = made_up(2)
    with pytest.raises(locate.FactError, match="There is no re-use of mediators"):
        edit.reuse_study([])
    with pytest.raises(locate.FactError, match="found 2 predictions and 1"):
        edit.judge_reach(predictions, flows[:1])
    with pytest.raises(locate.LocateError, match="folds: must be 2 or more"):
        edit.judge_reach(predictions, flows, folds=1)
    with pytest.raises(locate.LocateError, match=r"towards: .*'shares'.*share"):
        edit.judge_reach(predictions, flows, towards="shares")
    short = replace(flows[1], totals=flows[1].totals.iloc[:2])
    with pytest.raises(locate.FactError, match="A flow has not 'p1'"):
        edit.judge_reach(predictions, [flows[0], short])
    bare = replace(flows[1], totals=flows[1].totals.iloc[1:])
    with pytest.raises(locate.FactError, match="A flow has not the edit's own prompt"):
        edit.judge_reach(predictions, [flows[0], bare])
