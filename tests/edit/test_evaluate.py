"""Evaluation of an edit: rows against literal scores, state of the model, and an honest summary."""

import importlib

import numpy as np
import pandas as pd
import pytest
import torch

from edit.evaluation import Evaluation, evaluate, evaluate_each
from edit.evaluation.generation import generate_greedily
from edit.evaluation.scoring import Score, next_token_logprobs, score_targets
from edit.methods import ROME
from edit.requests import EditRequest
from edit.updates import LowRank, WeightUpdate
from edit.weights import down_projection, fingerprint, hf_parameters
from locate import Fact, FactError, UpdateError
from tests import tiny

TOWER = Fact(
    prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    paraphrases=("To visit {}, you need a flight to", "{} stands in"),
    neighbours=("The Louvre is located in the city of", "France has its capital in", "The Louvre stands in"),
)  # fmt: skip
BEN = Fact(prompt="{} stands in", subject="Big Ben", target="London", neighbours=("To visit London, you need",))
CASES = [TOWER, EditRequest(BEN, "Rome in Italy")]
module = importlib.import_module("edit.evaluation.evaluate")


@pytest.fixture
def model():
    return tiny.bridge("llama")


def make(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    left, right = torch.randn(32, 2, generator=draw), torch.randn(2, 80, generator=draw)
    return WeightUpdate.make(model, {down_projection(model, 1).name: LowRank(left=left, right=right)}, method="test")


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


def test_rows_are_the_probes_with_their_scores(model):
    update = make(model)
    rows = evaluate(model, update, CASES, max_new_tokens=4).rows
    own = rows[rows["model"] == "edited"]
    assert own["probe"].tolist() == [
        "efficacy",
        *["paraphrase"] * 2,
        *["neighbourhood"] * 3,
        "efficacy",
        "neighbourhood",
    ]
    assert own["case"].tolist() == [0] * 6 + [1] * 2
    assert own["prompt"].tolist()[:3] == [
        "The Eiffel Tower is located in the city of", "To visit The Eiffel Tower, you need a flight to",
        "The Eiffel Tower stands in",
    ]  # fmt: skip
    states = {}
    for state in ("unedited", "edited"):
        own = rows[rows["model"] == state]
        new = score_targets(model, list(zip(own["prompt"], own["target_new"], strict=True)))
        true = score_targets(model, list(zip(own["prompt"], own["target"], strict=True)))
        for name, scores in (("new", new), ("true", true)):
            assert own[f"logprob_{name}"].tolist() == [score.mean_logprob for score in scores]
            assert own[f"rank_{name}"].tolist() == [score.rank for score in scores]
            first = np.exp([score.first_logprob for score in scores])
            assert own[f"probability_{name}"].tolist() == pytest.approx(first)
        assert own["generation"].tolist() == generate_greedily(model, own["prompt"].tolist(), max_new_tokens=4)
        states[state] = (next_token_logprobs(model, own["prompt"].tolist()), own)
        if state == "unedited":
            update.apply(model)
    before, after = states["unedited"][0].double(), states["edited"][0].double()
    kl = (before.exp() * (before - after)).sum(-1)
    edited, unedited = states["edited"][1], states["unedited"][1]
    assert kl.min() > 1e-3
    assert edited["kl"].tolist() == pytest.approx(kl.tolist(), abs=1e-5)
    assert edited["same_answer"].tolist() == (before.argmax(-1) == after.argmax(-1)).tolist()
    assert (unedited["kl"] == 0).all()
    assert unedited["same_answer"].all()


def test_is_the_same_with_the_update_applied_and_leaves_the_model_as_it_came(model):
    update, plain = make(model), prints(model)
    apart = evaluate(model, update, CASES, max_new_tokens=4)
    assert prints(model) == plain
    assert not update.is_applied(model)
    update.apply(model)
    edited = prints(model)
    within = evaluate(model, update, CASES, max_new_tokens=4)
    assert prints(model) == edited
    assert update.is_applied(model)
    pd.testing.assert_frame_equal(apart.rows, within.rows)
    update.revert(model)
    assert prints(model) == plain


def test_leaves_the_model_as_it_came_when_it_fails(model, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    update = make(model)
    update.apply(model)
    edited = prints(model)
    monkeypatch.setattr(module, "next_token_logprobs", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, update, CASES, generate=False)
    assert prints(model) == edited
    assert update.is_applied(model)


def test_drift_is_never_below_zero(model):
    (name,) = make(model).parameters
    tiniest = LowRank(left=torch.full((32, 1), 1e-7), right=torch.ones(1, 80))
    rows = evaluate(model, WeightUpdate.make(model, {name: tiniest}, method="test"), CASES, generate=False).rows
    assert rows["kl"].between(0, 1e-5).all()


@pytest.mark.parametrize(
    ("new", "true", "efficacy", "neighbour"),
    [(-1, -2, True, False), (-2, -1, False, True), (-1, -1, False, False)],
)
def test_success_is_new_over_true_but_for_neighbours_the_reverse(model, monkeypatch, new, true, efficacy, neighbour):
    def score(_model, pairs):
        # The first token says the opposite, because means per token decide.
        return [
            Score(
                mean_logprob=float(new if target == "Rome" else true),
                first_logprob=float(-new if target == "Rome" else -true),
                rank=1,
            )
            for _, target in pairs
        ]

    monkeypatch.setattr(module, "score_targets", score)
    rows = evaluate(model, make(model), [TOWER], generate=False).rows
    wins = rows.groupby("probe")["success"].agg(["min", "max"])
    for probe, expected in (("efficacy", efficacy), ("paraphrase", efficacy), ("neighbourhood", neighbour)):
        assert wins.loc[probe].tolist() == [expected, expected]


def test_generations_match_the_new_object_but_for_neighbours_the_true_one(model, monkeypatch):
    said = {"The Eiffel Tower stands in": " Rome.", "The Louvre stands in": " Paris."}
    monkeypatch.setattr(
        module, "generate_greedily", lambda _m, prompts, **_: [said.get(p, " nothing") for p in prompts]
    )
    rows = evaluate(model, make(model), [TOWER]).rows
    assert set(rows[rows["exact_match"]]["prompt"]) == set(said)


def frame(**columns):
    """Rows of an evaluation in which both model states did equally."""
    table = pd.DataFrame(columns).assign(same_answer=True, rank_new=1, exact_match=True, kl=0.0)
    return Evaluation(rows=pd.concat([table.assign(model=state) for state in ("edited", "unedited")]))


def test_each_case_counts_once_and_the_score_is_the_harmonic_mean():
    summary = frame(
        case=[0, 0, 0, 0, 0, 1, 1, 1],
        probe=[
            "efficacy",
            "paraphrase",
            "paraphrase",
            "paraphrase",
            "neighbourhood",
            "efficacy",
            "paraphrase",
            "neighbourhood",
        ],
        success=[True, True, False, False, True, True, True, False],
    ).summary()
    means = summary["edited"]
    assert means["efficacy"] == 100
    assert means["paraphrase"] == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert means["neighbourhood"] == 50
    assert means["score"] == pytest.approx(3 / (1 / 100 + 3 / 200 + 1 / 50))
    assert means["first answer"] == means["locality"] == means["exact match"] == 100


def test_the_score_is_zero_with_a_zero_and_absent_without_a_kind():
    probes = ["efficacy", "paraphrase", "neighbourhood"]
    assert frame(case=[0] * 3, probe=probes, success=[True, False, True]).summary().loc["score", "edited"] == 0
    summary = frame(case=[0] * 2, probe=probes[:2], success=[True, True]).summary()
    assert "score" not in summary.index
    assert "neighbourhood" not in summary.index


def test_successes_have_the_exact_interval():
    # Clopper-Pearson by hand: with all n of n, the lower bound is (α/2)^(1/n).
    for n in (1, 5, 20):
        row = frame(case=range(n), probe="efficacy", success=True).summary().loc["efficacy"]
        assert row["edited low"] == pytest.approx(100 * 0.025 ** (1 / n))
        assert (row["edited"], row["edited high"]) == (100, 100)
    row = frame(case=range(5), probe="efficacy", success=False).summary(confidence=0.9).loc["efficacy"]
    assert (row["edited low"], row["edited"]) == (0, 0)
    assert row["edited high"] == pytest.approx(100 * (1 - 0.05 ** (1 / 5)))


def test_averages_have_a_bootstrap_interval_around_the_mean():
    draw = np.random.default_rng(0)
    cases = np.repeat(np.arange(30), 4)
    evaluation = frame(case=cases, probe="paraphrase", success=draw.random(120) < 0.8)
    row = evaluation.summary().loc["paraphrase"]
    values = evaluation.rows[evaluation.rows["model"] == "edited"].groupby("case")["success"].mean()
    error = 100 * values.std() / np.sqrt(30)
    assert 0 <= row["edited low"] < row["edited"] < row["edited high"] <= 100
    assert row["edited high"] - row["edited low"] == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert evaluation.summary().equals(evaluation.summary())
    assert len({evaluation.summary(seed=seed).loc["paraphrase", "edited low"] for seed in range(5)}) > 1


def test_one_case_shows_no_spread_of_an_average():
    row = frame(case=[0, 0], probe="paraphrase", success=[True, False]).summary().loc["paraphrase"]
    assert row["edited"] == 50
    assert np.isnan(row["edited low"])
    assert np.isnan(row["edited high"])


def test_summary_of_a_real_evaluation(model):
    evaluation = evaluate(model, make(model), CASES, max_new_tokens=4)
    summary = evaluation.summary()
    assert list(summary.columns) == [
        f"{state}{bound}" for state in ("edited", "unedited") for bound in ("", " low", " high")
    ]
    assert list(summary.index) == [
        "efficacy", "paraphrase", "neighbourhood", "exact match", "paraphrase exact match", "locality",
        "first answer", "score",
    ]  # fmt: skip
    for state in ("edited", "unedited"):
        bounded = summary[summary[f"{state} low"].notna()]
        assert (bounded[f"{state} low"] >= 0).all()
        assert (bounded[f"{state} low"] <= bounded[state]).all()
        assert (bounded[state] <= bounded[f"{state} high"]).all()
        assert (bounded[f"{state} high"] <= 100).all()
    assert summary.loc["locality", "unedited"] == 100
    quiet = evaluate(model, make(model), CASES, generate=False).summary()
    assert set(summary.index) - set(quiet.index) == {"exact match", "paraphrase exact match"}


def test_join_numbers_the_cases_on():
    parts = [frame(case=cases, probe="efficacy", success=True) for cases in ([0, 1], [0], [0, 1, 2])]
    joined = Evaluation.join(parts)
    assert sorted(joined.rows["case"].unique()) == [0, 1, 2, 3, 4, 5]
    assert joined.rows.index.is_unique
    assert len(joined.summary()) == len(parts[0].summary())
    assert [part.rows["case"].max() for part in parts] == [1, 0, 2]


def test_each_case_is_edited_on_the_unedited_model(model):
    before, seen = prints(model), []

    class Method:
        def fit(self, model, requests, *, progress=True):
            seen.append((requests, prints(model) == before))
            return make(model, seed=len(seen))

    joined = evaluate_each(model, Method(), CASES, generate=False, progress=False)
    assert [(len(requests), plain) for requests, plain in seen] == [(1, True), (1, True)]
    assert [requests[0].target_new for requests, _ in seen] == ["Rome", "Rome in Italy"]
    alone = [evaluate(model, make(model, seed=i + 1), [case], generate=False) for i, case in enumerate(CASES)]
    pd.testing.assert_frame_equal(joined.rows, Evaluation.join(alone).rows)
    assert prints(model) == before


def test_saves_the_rows(model, tmp_path):
    evaluation = evaluate(model, make(model), CASES, max_new_tokens=2)
    path = evaluation.save(tmp_path / "new" / "rows.csv")
    loaded = pd.read_csv(path, keep_default_na=False)
    assert list(loaded.columns) == list(evaluation.rows.columns)
    assert loaded["kl"].tolist() == pytest.approx(evaluation.rows["kl"].tolist())


def test_refuses_what_it_cannot_judge(model):
    update = make(model)
    for call in (lambda: evaluate(model, update, []), lambda: evaluate_each(model, ROME(), [])):
        with pytest.raises(FactError, match="There are no cases to evaluate; give at least one fact"):
            call()
    with pytest.raises(FactError, match="'Big Ben stands in' has no new target"):
        evaluate(model, update, [BEN])
    with pytest.raises(UpdateError, match=r"is not what .* was made for"):
        evaluate(tiny.bridge("llama", seed=1), update, CASES, generate=False)
