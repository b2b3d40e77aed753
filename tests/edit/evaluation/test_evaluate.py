"""Evaluation of an edit: rows against literal scores, state of the model, and an honest summary."""

import dataclasses
import importlib
import inspect
import math
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.evaluation import Evaluation, ReferenceTexts, baseline, evaluate, evaluate_each
from edit.evaluation.asking import Asking, Settings
from edit.evaluation.fluency import ngram_entropy
from edit.evaluation.fluency import sample_texts as published_texts
from edit.evaluation.generation import exact_match, generate_greedily
from edit.evaluation.scoring import Score
from edit.methods import KN, ROME
from edit.methods.base import EditingMethod, Fitted
from edit.requests.requests import EditRequest, Unrelated
from edit.values.objective import ValueObjective
from locate import Fact, FactError, UpdateError
from locate.engine import rows as grouping
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny

TOWER = Fact(
    prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    paraphrases=("To visit {}, you need a flight to", "{} stands in"),
    neighbours=("The Louvre is located in the city of", "France has its capital in", "The Louvre stands in"),
)  # fmt: skip
BEN = Fact(prompt="{} stands in", subject="Big Ben", target="London", neighbours=("To visit London, you need",))
CASES = [TOWER, EditRequest(BEN, "Rome in Italy")]
# Everything that a request may bring beside its fact.
ASKED = EditRequest(
    BEN, "Rome in Italy", aliases=("the Eternal City",), aliases_before=("Londinium",),
    paraphrase_texts=("The bell stands in", "The clock is in"),
    unrelated=(
        Unrelated(prompt="nq question: who built the tower?", target="The engineer Eiffel"),
        Unrelated(prompt="The capital of Norway is", target="Oslo", aliases=("Christiania",)),
    ),
    generation_prompts=("Big Ben is", "Big Ben is", "Near Big Ben"),
)  # fmt: skip
asking = importlib.import_module("edit.evaluation.asking")
evaluating = importlib.import_module("edit.evaluation.evaluate")
locate_then_edit = importlib.import_module("edit.methods.rewriting.locate_then_edit")


@pytest.fixture
def model():
    return tiny.bridge("llama")


def make(model, seed=0, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    left, right = size * torch.randn(32, 2, generator=draw), torch.randn(2, 80, generator=draw)
    return WeightUpdate.make(model, {down_projection(model, 1).name: LowRank(left=left, right=right)}, method="test")


def finding(find):
    """A method that takes everything and fits what a function of the model and the requests gives."""

    class Own(EditingMethod):
        def fit_with(self, job):
            return Fitted(update=find(job.model, job.requests))

        def check(self, model, requests):
            pass

    return Own()


def always(update):
    return finding(lambda *_: update)


def test_a_method_of_ones_own_needs_no_more_than_fit(model):
    update = make(model)

    class Own:
        def fit(self, model, requests, *, progress=True):
            assert len(requests) == 1
            return update

    plain, method = (evaluate_each(model, one, CASES, progress=False).rows for one in (Own(), always(update)))
    pd.testing.assert_frame_equal(plain, method)


def sample_texts(model, prompts, seeds, **how):
    """Shorter than the published ones, to save time."""
    return published_texts(model, prompts, seeds, tokens=24, **how)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    monkeypatch.setattr(asking, "sample_texts", sample_texts)


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


@torch.no_grad()
def literal(model, prompt, target):
    """Log-probability of each of the target's tokens, its tokens, and the first choice in place of each."""
    start = len(tiny.tokenizer()(prompt)["input_ids"])
    tokens = tiny.tokenizer()(f"{prompt} {target}")["input_ids"]
    logprobs = model(torch.tensor([tokens]))[0].double().log_softmax(-1)[start - 1 : -1]
    own = [float(row[token]) for row, token in zip(logprobs, tokens[start:], strict=True)]
    return own, tokens[start:], logprobs.argmax(-1).tolist(), logprobs[0]


def favouring(model, *words):
    """Hooks that make the tokens of these words likelier everywhere, so that some are predicted."""
    tokens = sorted({token for word in words for token in tiny.tokenizer()(word)["input_ids"]})

    def favour(logits, hook):
        logits = logits.clone()
        logits[..., tokens] += 2.0
        return logits

    return model.hooks(fwd_hooks=[("unembed.hook_out", favour)])


@pytest.fixture
def knowing(model):
    with favouring(model, " Rome in", " The engineer", " Oslo", " London"):
        yield model


def test_rows_are_the_probes_with_their_scores(knowing):
    model, update = knowing, make(knowing, size=0.1)
    rows = evaluate(model, update, [TOWER, ASKED], max_new_tokens=4).rows
    own = rows[rows["model"] == "edited"]
    assert own["probe"].tolist() == [
        "efficacy", *["paraphrase"] * 2, *["neighbourhood"] * 3,
        "efficacy", *["paraphrase"] * 2, "neighbourhood", *["unrelated"] * 2,
    ]  # fmt: skip
    assert own["case"].tolist() == [0] * 6 + [1] * 6
    assert own["prompt"].tolist()[:3] == [
        "The Eiffel Tower is located in the city of", "To visit The Eiffel Tower, you need a flight to",
        "The Eiffel Tower stands in",
    ]  # fmt: skip
    assert own["prompt"].tolist()[7:9] == list(ASKED.paraphrase_texts)
    assert own["target"].tolist() == ["Paris"] * 6 + ["London"] * 4 + ["The engineer Eiffel", "Oslo"]
    assert own["target_new"].tolist() == ["Rome"] * 6 + ["Rome in Italy"] * 6
    states = {}
    for state in ("unedited", "edited"):
        own = rows[rows["model"] == state]
        states[state] = []
        for _, row in own.iterrows():
            wanted = "new" if row["probe"] in ("efficacy", "paraphrase") else "true"
            for name, target in (("new", row["target_new"]), ("true", row["target"])):
                logprobs, tokens, chosen, following = literal(model, row["prompt"], target)
                assert row[f"logprob_{name}"] == pytest.approx(np.mean(logprobs), abs=1e-5)
                assert row[f"probability_{name}"] == pytest.approx(math.exp(logprobs[0]), abs=1e-5)
                assert row[f"rank_{name}"] == int((following > following[tokens[0]]).sum()) + 1
                if name == wanted:
                    assert row["token_accuracy"] == np.mean([a == b for a, b in zip(tokens, chosen, strict=True)])
                    states[state].append((chosen, following))
        assert own["generation"].tolist() == generate_greedily(model, own["prompt"].tolist(), max_new_tokens=4)
        if state == "unedited":
            assert (own["kl"] == 0).all()
            assert own["same_answer"].all()
            assert (own["same_tokens"] == 1).all()
            update.apply(model)
    own = rows[rows["model"] == "edited"]
    drifts = []
    for (_, row), (chosen, before), (others, after) in zip(
        own.iterrows(), states["unedited"], states["edited"], strict=True
    ):
        drifts.append(float((before.exp() * (before - after)).sum()))
        assert row["kl"] == pytest.approx(drifts[-1], abs=1e-5)
        assert row["same_answer"] == (before.argmax() == after.argmax())
        assert row["same_tokens"] == np.mean([a == b for a, b in zip(chosen, others, strict=True)])
    assert min(drifts) > 1e-3
    for measure in ("token_accuracy", "same_tokens"):  # some, none and all of the tokens
        assert rows[measure].nunique() > 2


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


def test_drift_is_right_where_the_readout_is_edited_too(model):
    factors = LowRank(left=torch.linspace(-1, 1, tiny.VOCAB)[:, None], right=torch.arange(32.0)[None] / 32)
    update = WeightUpdate.make(model, {"lm_head.weight": factors}, method="test")
    apart = evaluate(model, update, [TOWER], generate=False)
    with update.applied(model):
        within = evaluate(model, update, [TOWER], generate=False)
    pd.testing.assert_frame_equal(apart.rows, within.rows)
    edited = apart.rows[apart.rows["model"] == "edited"]
    before = [literal(model, prompt, "Rome")[-1] for prompt in edited["prompt"]]
    with update.applied(model):
        after = [literal(model, prompt, "Rome")[-1] for prompt in edited["prompt"]]
    kl = [float((one.exp() * (one - other)).sum()) for one, other in zip(before, after, strict=True)]
    assert edited["kl"].tolist() == pytest.approx(kl, abs=1e-5)
    assert min(kl) > 1e-4


def test_leaves_the_model_as_it_came_when_it_fails(model, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    update = make(model)
    update.apply(model)
    edited = prints(model)
    before = baseline(model, CASES, generate=False)
    monkeypatch.setattr(asking, "score_targets", fail)
    for given in (None, before):
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, update, CASES, generate=False, baseline=given)
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
    real = asking.score_targets

    def score(model, pairs, **how):
        real(model, pairs, **how)
        # The first token says the opposite, because means per token decide.
        return [
            Score(
                mean_logprob=float(new if target == "Rome" else true),
                first_logprob=float(new if target != "Rome" else true), rank=1, tokens=(1,), predicted=(1,),
            )
            for _, target in pairs
        ]  # fmt: skip

    monkeypatch.setattr(asking, "score_targets", score)
    rows = evaluate(model, make(model), [TOWER], generate=False).rows
    wins = rows.groupby("probe")["success"].agg(["min", "max"])
    for probe, expected in (("efficacy", efficacy), ("paraphrase", efficacy), ("neighbourhood", neighbour)):
        assert wins.loc[probe].tolist() == [expected, expected]


def test_generations_match_the_new_object_but_for_neighbours_the_true_one(model, monkeypatch):
    said = {"The Eiffel Tower stands in": " Rome.", "The Louvre stands in": " Paris."}
    monkeypatch.setattr(
        asking, "generate_greedily", lambda _m, prompts, **_: [said.get(p, " nothing") for p in prompts]
    )
    rows = evaluate(model, make(model), [TOWER]).rows
    assert set(rows[rows["exact_match"]]["prompt"]) == set(said)


def test_generations_may_give_another_name_of_what_is_wanted(model, monkeypatch):
    said = {
        "Big Ben stands in": " the Eternal City.", "The bell stands in": " Londinium",
        "The clock is in": " Rome in Italy",
        "To visit London, you need": " Londinium!", "The capital of Norway is": " Christiania, or",
        "nq question: who built the tower?": " Rome in Italy",
    }  # fmt: skip
    monkeypatch.setattr(asking, "generate_greedily", lambda _m, prompts, **_: [said[prompt] for prompt in prompts])
    rows = evaluate(model, make(model), [ASKED]).rows.query("model == 'edited'").set_index("prompt")
    expected = {prompt: True for prompt in said} | {"The bell stands in": False}
    expected["nq question: who built the tower?"] = False
    assert rows["exact_match"].to_dict() == expected
    assert exact_match(said["To visit London, you need"], ["Londinium"])


def test_each_prompt_speaks_once(model, monkeypatch):
    asked, real = [], asking.generate_greedily
    monkeypatch.setattr(
        asking, "generate_greedily", lambda m, prompts, **how: asked.append(prompts) or real(m, prompts, **how)
    )
    rows = evaluate(model, make(model), [TOWER, TOWER], max_new_tokens=2).rows
    assert [len(prompts) for prompts in asked] == [6, 6]
    edited = rows[rows["model"] == "edited"]
    assert edited["generation"].tolist()[:6] == edited["generation"].tolist()[6:]


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
    assert (summary["meaning"].str.len() > 0).all()


def test_the_score_has_an_interval_over_cases():
    draw = np.random.default_rng(0)
    success = draw.random((40, 3)) < [0.9, 0.7, 0.5]
    rows = [(case, probe) for case in range(40) for probe in ("efficacy", "paraphrase", "neighbourhood")]
    summary = frame(
        case=[case for case, _ in rows], probe=[probe for _, probe in rows], success=success.ravel().tolist()
    ).summary()
    line = summary.loc["score"]
    assert line["edited low"] < line["edited"] < line["edited high"]
    # By hand: the spread of the harmonic mean over many resamples of the cases.
    means = np.stack([success[draw.integers(40, size=40)].mean(0) for _ in range(4000)])
    low, high = np.percentile(300 / (1 / means).sum(1), [2.5, 97.5])
    assert line["edited low"] == pytest.approx(low, abs=1.5)
    assert line["edited high"] == pytest.approx(high, abs=1.5)


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


def test_magnitudes_are_mean_differences_of_probabilities():
    new, true = [0.5, 0.25, 0.125, 0.0625], [0.25, 0.125, 0.5, 0.75]
    evaluation = frame(
        case=[0, 0, 0, 0], probe=["efficacy", "paraphrase", "paraphrase", "neighbourhood"], success=True,
        logprob_new=np.log(new), logprob_true=np.log(true),
    )  # fmt: skip
    means = evaluation.summary()["edited"]
    assert means["efficacy magnitude"] == pytest.approx(25)
    assert means["paraphrase magnitude"] == pytest.approx(100 * (0.125 - 0.375) / 2)
    assert means["neighbourhood magnitude"] == pytest.approx(100 * (0.75 - 0.0625))
    # A difference of exactly one is no success of a proportion: a single case has no interval.
    sure = frame(case=[0], probe="efficacy", success=True, logprob_new=[0.0], logprob_true=[-np.inf])
    assert sure.summary().loc["efficacy magnitude", "edited"] == 100
    assert np.isnan(sure.summary().loc["efficacy magnitude", "edited low"])


def test_token_measures_average_the_cases():
    table = frame(
        case=[0, 0, 0, 1, 1, 1, 1], success=True,
        probe=["efficacy", "paraphrase", "unrelated", "efficacy", "paraphrase", "paraphrase", "unrelated"],
        token_accuracy=[1.0, 0.5, 0.25, 0.5, 0.0, 1.0, 0.75], same_tokens=[0.0, 0, 1.0, 0, 0, 0, 0.5],
    )  # fmt: skip
    means = table.summary()["edited"]
    assert means["efficacy tokens"] == 75
    assert means["paraphrase tokens"] == 50
    assert means["specificity tokens"] == 50
    assert means["specificity own tokens"] == 75
    assert means["unrelated locality"] == 100
    assert "locality" not in means


def test_summary_of_a_real_evaluation(model):
    evaluation = evaluate(model, make(model), [TOWER, ASKED], max_new_tokens=4)
    summary = evaluation.summary()
    assert list(summary.columns) == [
        *(f"{state}{bound}" for state in ("edited", "unedited") for bound in ("", " low", " high")), "meaning",
    ]  # fmt: skip
    assert list(summary.index) == [
        "exact match", "paraphrase exact match", "locality", "unrelated locality", "first answer",
        "efficacy", "paraphrase", "neighbourhood", "score",
        "efficacy magnitude", "paraphrase magnitude", "neighbourhood magnitude",
        "efficacy tokens", "paraphrase tokens", "specificity tokens", "specificity own tokens",
    ]  # fmt: skip
    assert all(dtype.kind == "f" for dtype in summary.dtypes[:-1])
    shares = summary[~summary.index.str.endswith("magnitude")]
    for state in ("edited", "unedited"):
        bounded = shares[shares[f"{state} low"].notna()]
        assert (bounded[f"{state} low"] >= 0).all()
        assert (bounded[f"{state} low"] <= bounded[state]).all()
        assert (bounded[state] <= bounded[f"{state} high"]).all()
        assert (bounded[f"{state} high"] <= 100).all()
    assert summary["meaning"].map(bool).all()
    assert (summary.loc[["locality", "unrelated locality", "specificity own tokens"], "unedited"] == 100).all()
    quiet = evaluate(model, make(model), [TOWER, ASKED], generate=False).summary()
    assert set(summary.index) - set(quiet.index) == {"exact match", "paraphrase exact match"}


def test_fluency_is_the_entropy_of_each_models_texts(model):
    update, how = make(model), {"generate": False, "fluency": True, "seed": 3}
    evaluation = evaluate(model, update, [TOWER, ASKED], **how)
    texts = evaluation.texts
    # Repeated prompts have different texts; a case without prompts for texts continues its own.
    prompts = [TOWER.text, *ASKED.generation_prompts]
    assert texts["prompt"].tolist() == prompts * 2
    assert texts["case"].tolist() == [0, 1, 1, 1] * 2
    assert texts.loc[1, "text"] != texts.loc[2, "text"]
    for state in ("unedited", "edited"):
        own = texts[texts["model"] == state]
        assert own["text"].tolist() == sample_texts(model, prompts, [3, 3, 4, 5])
        entropies = [ngram_entropy(text) for text in own["text"]]
        assert own["entropy"].tolist() == entropies
        row = evaluation.summary().loc["fluency"]
        assert row[state] == pytest.approx(100 * (entropies[0] + np.mean(entropies[1:])) / 2)
        # Whatever two cases are drawn, their mean lies between them.
        both = sorted([100 * entropies[0], 100 * np.mean(entropies[1:])])
        assert [row[f"{state} low"], row[f"{state} high"]] == pytest.approx(both)
        if state == "unedited":
            update.apply(model)
    assert "fluency" not in evaluate(model, update, [TOWER], generate=False).summary().index


def literal_similarity(text, references, all_texts):
    """The cosine of TF-IDF vectors, from its definition: inverse document frequencies as if one more text had all."""
    words = [re.findall(r"\b\w\w+\b", one.lower()) for one in all_texts]
    known = {word for one in words for word in one}
    idf = {word: math.log((1 + len(words)) / (1 + sum(word in one for one in words))) + 1 for word in known}
    counts = (Counter(re.findall(r"\b\w\w+\b", each.lower())) for each in (text, " ".join(references)))
    one, other = ({word: count * idf[word] for word, count in own.items() if word in idf} for own in counts)
    dot = sum(value * other.get(word, 0) for word, value in one.items())
    sizes = [math.sqrt(sum(value**2 for value in each.values())) for each in (one, other)]
    return dot / math.prod(sizes) if all(sizes) else 0.0


def test_texts_are_compared_with_those_on_things_that_have_the_new_object(model):
    vocabulary = tiny.tokenizer().get_vocab()
    words = sorted(word.strip("Ġ") for word in vocabulary if re.fullmatch(r"Ġ?[A-Za-z]{2,}", word))
    texts = {
        "tower": (" ".join(words[1::2]), "Nothing in common"),
        "ben": (" ".join(words[::3]), " ".join(words[::5])),
    }
    references = ReferenceTexts(texts=texts)
    tower = EditRequest(dataclasses.replace(TOWER, id="tower"))
    ben = dataclasses.replace(ASKED, fact=dataclasses.replace(BEN, id="ben"))
    update, how = make(model), {"generate": False, "fluency": True, "seed": 3, "references": references}
    evaluation = evaluate(model, update, [tower, ben, ASKED], **how)
    everything = [text for own in texts.values() for text in own]
    for state in ("edited", "unedited"):
        own = evaluation.texts[evaluation.texts["model"] == state]
        wanted = [
            literal_similarity(" ".join(own.loc[own["case"] == case, "text"]), texts[fact], everything)
            for case, fact in ((0, "tower"), (1, "ben"))
        ]
        assert min(wanted) > 0
        found = own.groupby("case")["reference"].agg(["min", "max"])
        assert found.loc[[0, 1], "min"].tolist() == pytest.approx(wanted)
        assert found.loc[[0, 1], "max"].tolist() == pytest.approx(wanted)
        # A case without references has no score, and counts in none.
        assert found.loc[2].isna().all()
        assert evaluation.summary().loc["reference score", state] == pytest.approx(100 * np.mean(wanted))
    assert references.similarity("zzz qqq", texts["ben"]) == 0
    assert references.similarity(texts["ben"][0], texts["ben"][:1]) == pytest.approx(1)
    # As published, an accent splits a word of the model's, and none of the references'.
    accented = ReferenceTexts(texts={"piaf": ("Édith Piaf",)})
    assert accented.similarity("Édith Piaf", ("Édith Piaf",)) == pytest.approx(0.5**0.5)
    each = evaluate_each(model, always(update), [tower, ben, ASKED], **how, progress=False)
    pd.testing.assert_frame_equal(each.summary(), evaluation.summary(), atol=1e-4)


def test_references_for_nothing_are_refused(model):
    references = ReferenceTexts(texts={"other": ("A text.",)})
    with pytest.raises(FactError, match="are compared with long texts, which fluency=True lets"):
        evaluate(model, make(model), [TOWER], references=references)
    with pytest.raises(FactError, match=r"ReferenceTexts\(1 facts, 1 texts\) have no text for any of 1 cases"):
        evaluate(model, make(model), [TOWER], references=references, fluency=True)
    with pytest.raises(FactError, match="none of 2 texts has a word to compare"):
        ReferenceTexts(texts={"other": ("", "a b")})


def test_large_evaluations_compare_in_parts(model, monkeypatch):
    update = make(model)
    whole = evaluate(model, update, [TOWER, ASKED], max_new_tokens=2)
    parts, real = [], evaluating._judge
    monkeypatch.setattr(grouping, "_TABLE", 5 * tiny.VOCAB)
    monkeypatch.setattr(evaluating, "_judge", lambda *args: parts.append(args[3]) or real(*args))
    apart = evaluate(model, update, [TOWER, ASKED], max_new_tokens=2)
    assert len(parts) == 3
    pd.testing.assert_frame_equal(whole.rows, apart.rows, atol=1e-5)


def passes(model, call):
    """How many texts the model reads whole, at a time, while this is called."""
    rows = []
    with model.hooks(fwd_hooks=[("embed.hook_out", lambda states, hook: rows.append(len(states)))]):
        call()
    return sum(rows)


def test_a_baseline_serves_many_edits(model):
    cases, updates = [TOWER, ASKED], [make(model, seed) for seed in (1, 2)]
    how = {"max_new_tokens": 3, "fluency": True, "seed": 1}
    plain = prints(model)
    before = baseline(model, cases, **how)
    assert prints(model) == plain
    for update in updates:
        with_it = evaluate(model, update, cases, baseline=before, **how)
        alone = evaluate(model, update, cases, **how)
        pd.testing.assert_frame_equal(with_it.rows, alone.rows)
        pd.testing.assert_frame_equal(with_it.texts, alone.texts)
    quiet = baseline(model, cases, generate=False)
    once = passes(model, lambda: baseline(model, cases, generate=False))
    asked = [
        passes(model, lambda given=given: evaluate(model, updates[0], cases, generate=False, baseline=given))
        for given in (None, quiet)
    ]
    assert asked == [2 * once, once]
    # Targets and distributions are read in one pass over each prompt.
    assert once <= 2 * len(before.questions)


def test_a_baseline_of_something_else_is_refused(model):
    before, update = baseline(model, CASES, generate=False), make(model)
    with pytest.raises(FactError, match="was measured on 2 cases, which are not the 1 to evaluate"):
        evaluate(model, update, [TOWER], generate=False, baseline=before)
    for name, value in (("generate", True), ("max_new_tokens", 3), ("fluency", True), ("seed", 1)):
        how = {"generate": False, name: value}
        with pytest.raises(FactError, match=f"measured with {name}=.*, but {name}={value} is asked for now"):
            evaluate(model, update, CASES, baseline=before, **how)
        with pytest.raises(FactError, match=f"measured with {name}=.*, but {name}={value} is asked for now"):
            evaluate_each(model, ROME(), CASES, baseline=before, **how)
    tower = EditRequest(dataclasses.replace(TOWER, id="tower"))
    one, same, other = (ReferenceTexts(texts={"tower": (text,)}) for text in ("A text.", "A text.", "Another."))
    how = {"generate": False, "fluency": True}
    spoken = baseline(model, [tower], references=one, **how)
    assert "reference" in evaluate(model, update, [tower], references=same, baseline=spoken, **how).texts
    with pytest.raises(FactError, match="measured with references="):
        evaluate(model, update, [tower], references=other, baseline=spoken, **how)


def test_join_numbers_the_cases_on():
    parts = [frame(case=cases, probe="efficacy", success=True) for cases in ([0, 1], [0], [0, 1, 2])]
    joined = Evaluation.join(parts)
    assert sorted(joined.rows["case"].unique()) == [0, 1, 2, 3, 4, 5]
    assert joined.rows.index.is_unique
    assert len(joined.summary()) == len(parts[0].summary())
    assert [part.rows["case"].max() for part in parts] == [1, 0, 2]
    assert joined.texts is None
    spoken = [
        Evaluation(rows=part.rows, texts=pd.DataFrame({"case": part.rows["case"].unique(), "entropy": 1.0}))
        for part in parts
    ]
    assert Evaluation.join(spoken).texts["case"].tolist() == [0, 1, 2, 3, 4, 5]


def test_each_case_is_edited_on_the_unedited_model(model):
    before, seen = prints(model), []

    def find(model, requests):
        seen.append((requests, prints(model) == before))
        return make(model, seed=len(seen))

    method = finding(find)
    joined = evaluate_each(model, method, CASES, generate=False, progress=False)
    assert [(len(requests), plain) for requests, plain in seen] == [(1, True), (1, True)]
    assert [requests[0].target_new for requests, _ in seen] == ["Rome", "Rome in Italy"]
    alone = [evaluate(model, make(model, seed=i + 1), [case], generate=False) for i, case in enumerate(CASES)]
    pd.testing.assert_frame_equal(joined.rows, Evaluation.join(alone).rows, atol=1e-5)
    assert prints(model) == before
    seen.clear()
    given = baseline(model, CASES, generate=False)
    again = evaluate_each(model, method, CASES, generate=False, progress=False, baseline=given)
    pd.testing.assert_frame_equal(joined.rows, again.rows)


def test_values_of_all_cases_are_found_together_and_edits_are_the_same(model, tmp_path, monkeypatch):
    found, real = [], locate_then_edit.optimise_values
    monkeypatch.setattr(
        locate_then_edit, "optimise_values", lambda m, own, *a, **how: found.append(len(own)) or real(m, own, *a, **how)
    )
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:04d}" for number in range(2500)))
    method = ROME(objective=ValueObjective(steps=3), prefixes=("I am. ",), corpus=str(text), statistics_tokens=1000)

    together = evaluate_each(model, method, CASES, generate=False, progress=False)
    alone = evaluate_each(
        model, finding(lambda *asked: method.fit(*asked, progress=False)), CASES, generate=False, progress=False
    )
    assert found == [2, 1, 1]
    assert (together.rows["kl"] > 0).any()
    pd.testing.assert_frame_equal(together.rows, alone.rows, atol=1e-4)


def test_the_unedited_model_is_asked_once_for_all_cases(model, monkeypatch):
    asked, real = [], asking.score_targets
    monkeypatch.setattr(
        asking, "score_targets", lambda m, pairs, **how: asked.append(len(pairs)) or real(m, pairs, **how)
    )
    joined = evaluate_each(model, always(make(model)), CASES, max_new_tokens=2, fluency=True, seed=2, progress=False)
    assert asked == [16, 12, 4]
    assert joined.texts["case"].tolist() == [0, 0, 1, 1]
    assert joined.texts["model"].tolist() == ["edited", "unedited"] * 2


def test_saves_the_rows(model, tmp_path):
    evaluation = evaluate(model, make(model), CASES, max_new_tokens=2)
    path = evaluation.save(tmp_path / "new" / "rows.csv")
    loaded = pd.read_csv(path, keep_default_na=False)
    assert list(loaded.columns) == list(evaluation.rows.columns)
    assert loaded["kl"].tolist() == pytest.approx(evaluation.rows["kl"].tolist())
    assert [path.name for path in path.parent.iterdir()] == ["rows.csv"]
    spoken = evaluate(model, make(model), [TOWER], generate=False, fluency=True)
    spoken.save(path)
    texts = pd.read_csv(path.with_name("rows.texts.csv"), keep_default_na=False)
    assert texts["text"].tolist() == spoken.texts["text"].tolist()


def test_refuses_what_it_cannot_judge(model):
    update = make(model)
    for call in (lambda: evaluate(model, update, []), lambda: evaluate_each(model, ROME(), [])):
        with pytest.raises(FactError, match="There is nothing to edit; give at least one EditRequest"):
            call()
    with pytest.raises(FactError, match="'Big Ben stands in' has no new target"):
        evaluate(model, update, [BEN])
    with pytest.raises(UpdateError, match=r"is not what .* was made for"):
        evaluate(tiny.bridge("llama", seed=1), update, CASES, generate=False)


def test_what_cannot_be_edited_or_asked_is_told_before_much_is_asked(model, monkeypatch):
    monkeypatch.setattr(evaluating, "measure", lambda *_, **__: pytest.fail("it began"))

    def refuse(*_):
        raise FactError("no such edit")

    with pytest.raises(FactError, match="no such edit"):
        evaluate_each(model, finding(refuse), CASES)
    wrong = dataclasses.replace(TOWER, neighbours=("Big Ben is in ",))
    with pytest.raises(FactError, match=r"1 prompt cannot be asked(.|\n)*Rome, neighbourhood: The target"):
        evaluate_each(model, finding(refuse), [wrong])
    # The last of many, by a method that fits one after the other.
    alike = dataclasses.replace(TOWER, target="London", target_new="London in France")
    monkeypatch.setattr(KN, "fit_with", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(FactError, match=r"both targets of 1 request begin with one"):
        evaluate_each(model, KN(), [*CASES, alike])


def test_a_method_that_fits_one_at_a_time_needs_nothing_else(model):
    update = make(model)

    class Own(EditingMethod):
        def fit_with(self, job):
            return Fitted(update=update)

    own, same = (
        evaluate_each(model, one, CASES, generate=False, progress=False).rows for one in (Own(), always(update))
    )
    pd.testing.assert_frame_equal(own, same)


def test_many_cases_are_fitted_in_parts(model, monkeypatch):
    update, seen = make(model), []

    class Together(EditingMethod):
        def fit_each(self, model, requests, *, layer=None, progress=True):
            seen.append(len(requests))
            return iter([update] * len(requests))

        def check(self, model, requests):
            pass

    monkeypatch.setattr(evaluating, "_TOGETHER", 2)
    rows = evaluate_each(model, Together(), [TOWER] * 5, generate=False, progress=False).rows
    assert seen == [2, 2, 1]
    assert rows["case"].nunique() == 5


def test_one_case_may_be_given_plainly(model):
    update = make(model)
    plain, listed = (evaluate(model, update, cases, generate=False).rows for cases in (TOWER, [TOWER]))
    pd.testing.assert_frame_equal(plain, listed)


@pytest.mark.parametrize("function", [evaluate, evaluate_each, baseline])
def test_settings_are_spelled_out_where_notebooks_read_them(function):
    parameters = inspect.signature(function).parameters
    for field in dataclasses.fields(Asking):
        assert parameters[field.name].default == field.default
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert not [one for one in parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
    assert set(Settings.__annotations__) == {field.name for field in dataclasses.fields(Asking)}


def test_a_setting_that_there_is_not_is_refused(model):
    with pytest.raises(TypeError, match="generat"):
        evaluate(model, make(model), CASES, generat=False)


def test_an_answer_without_a_space_is_scored_where_it_begins(model):
    """By literal whole passes: 上海 right after the prompt, and after a space only where the fact says so."""
    fact = Fact(prompt="{}的首都是", subject="中国", target="北京", neighbours=("The city of",))
    joined = Fact(prompt="{} sank in 19", subject="The Titanic", target="12", joined=True)
    cases = [EditRequest(fact, "上海"), EditRequest(fact, " 上海"), EditRequest(joined, "85")]
    rows = baseline(model, cases, generate=False).answers.rows.query("probe == 'efficacy'")
    for row, prompt, text in zip(
        rows.itertuples(), ["中国的首都是"] * 2 + ["The Titanic sank in 19"], ["上海", " 上海", "85"], strict=True
    ):
        before, answer = (tiny.tokenizer()(one)["input_ids"] for one in (prompt, text))
        logprobs = model(torch.tensor([[*before, *answer]]))[0].log_softmax(-1)
        own = [float(logprobs[len(before) - 1 + place, token].detach()) for place, token in enumerate(answer)]
        assert row.logprob_new == pytest.approx(sum(own) / len(own), abs=1e-4)
        assert row.tokens_new == "|".join(tiny.tokenizer().decode([one]) for one in answer)


def test_answers_that_begin_alike_are_judged_where_they_part(model):
    """By literal whole passes, after what both begin with: neither is the first answer for that alone."""
    fact = Fact(
        prompt="{} sank in the year", subject="The Titanic", target="Paris too", target_new="Paris, France",
        neighbours=("The Louvre sank in the year",),
    )  # fmt: skip
    rows = baseline(model, [fact], generate=False).answers.rows
    for row in rows.itertuples():
        before = tiny.tokenizer()(f"{row.prompt} Paris")["input_ids"]
        logits = model(torch.tensor([before]))[0, -1].detach()
        for name, text in (("new", ", France"), ("true", " too")):
            token = tiny.tokenizer()(text)["input_ids"][0]
            assert getattr(row, f"rank_{name}") == int((logits > logits[token]).sum()) + 1
            expected = pytest.approx(float(logits.softmax(-1)[token]), rel=1e-3)
            assert getattr(row, f"probability_{name}") == expected
    answers = baseline(model, [fact], generate=False).answers
    assert answers.first[0] == int(model(torch.tensor([before]))[0, -1].argmax()) or rows["prompt"][0] != row.prompt
    # Where one begins with all of the other, the last token that they share decides nothing, and the whole does.
    longer = baseline(model, [dataclasses.replace(fact, target_new="Paris too, in")], generate=False).answers.rows
    assert longer["rank_new"].equals(longer["rank_true"])
    assert not longer["logprob_new"].equals(longer["logprob_true"])
