"""RSim against its definition written out, on effects that are known."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

import edit
import locate
from edit.location import similarity
from edit.location.layer_scores import traced_layers
from locate import Consequence, Fact, FactError, LocateError
from tests import tiny
from tests.figures import check_fits

N_LAYERS = 4
FACTS = [
    Fact(prompt=prompt, subject=subject, target=target, relation=relation, paraphrases=paraphrases,
         consequences=consequences)
    for prompt, subject, target, relation, paraphrases, consequences in [
        ("{} is located in the city of", "The Louvre", "Paris", "city", ("{} stands in", "See {} in"), ()),
        ("The capital of {} is", "Italy", "Rome", "capital", ("{} has the capital",),
         (Consequence(prompt="{} is on the continent of", target="Asia", target_before="Europe"),
          Consequence(prompt="In {} they say", target="no", target_before="a", hops=2))),
        ("{} is a tower in", "Big Ben", "London", "tower", (),
         (Consequence(prompt="{} is in", target="a", target_before="b"),)),
    ]
]  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


class Known:
    """Effects that are drawn for each prompt, which may be looked up again."""

    def __init__(self, seed=0):
        self.draw, self.by_text = np.random.default_rng(seed), {}

    def __call__(self, model, facts):
        return np.array([self.by_text.setdefault(one.text, self.draw.permutation(N_LAYERS) * 1.0) for one in facts])


def sim(one, other, k):
    tops = [set(sorted(range(N_LAYERS), key=lambda layer: -effects[layer])[:k]) for effects in (one, other)]
    return len(tops[0] & tops[1]) / k


def by_hand(facts, effects, group, k):
    def texts(fact):
        templates = fact.paraphrases if group == "paraphrases" else [one.prompt for one in fact.consequences]
        return [fact.text, *(fact.fill(one) for one in templates)]

    candidates = [
        np.mean([sim(effects[a], effects[b], k) for a, b in combinations(texts(fact), 2)])
        for fact in facts if len(texts(fact)) > 1
    ]  # fmt: skip
    apart = [
        sim(effects[a.text], effects[b.text], k) for a, b in combinations(facts, 2)
        if a.relation != b.relation and a.subject != b.subject and a.target != b.target
    ]  # fmt: skip
    cand, every = np.mean(candidates), np.mean(apart)
    return cand, every, max((cand - every) / (1 - every), 0)


def test_rsim_is_its_definition(llama):
    known = Known(3)
    facts = [*FACTS, replace(FACTS[0], subject="The Tower", target="Rome")]  # related to the first, by relation
    found = edit.localisation_similarity(llama, facts, locator=known, most=3, only_known=False)
    for group in ("paraphrases", "hops"):
        for k in (1, 2, 3):
            cand, every, rsim = by_hand(facts, known.by_text, group, k)
            own = found.data.sel(group=group, k=k)
            assert float(own["similarity"]) == pytest.approx(cand)
            assert float(own["unrelated"]) == pytest.approx(every)
            assert float(own["rsim"]) == pytest.approx(rsim)
            assert own["rsim_low"] <= own["rsim"] <= own["rsim_high"]
    assert found.info["facts"] == {"paraphrases": 3, "hops": 2}
    assert not found.info["left_out"]


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_intervals_draw_facts_with_their_pairs(llama):
    known = Known(1)
    found = edit.localisation_similarity(llama, FACTS, locator=known, most=2, only_known=False, resamples=64, seed=5)
    draws = np.random.default_rng(5).multinomial(3, np.full(3, 1 / 3), size=64)
    drawn = []
    for counts in draws:
        sample = [fact for fact, count in zip(FACTS, counts, strict=True) for _ in range(count)]
        try:
            with np.errstate(invalid="ignore"):
                drawn.append(by_hand(sample, known.by_text, "paraphrases", 2)[2] if len({*counts}) else np.nan)
        except (ZeroDivisionError, ValueError):
            drawn.append(np.nan)
    own = found.data.sel(group="paraphrases", k=2)
    np.testing.assert_allclose([own["rsim_low"], own["rsim_high"]], np.nanpercentile(drawn, [2.5, 97.5]))


def test_tracing_is_the_default_and_what_is_the_same_is_alike(llama, tmp_path):
    facts = [replace(fact, paraphrases=(fact.prompt,)) for fact in FACTS[:2]]  # the same again
    with pytest.warns(UserWarning, match=r"4 traces mean little|of 6 traces mean little"):
        found = edit.localisation_similarity(
            llama, facts, most=3, only_known=False, corruption=locate.GaussianNoise(samples=2), progress=False
        )
    own = found.data.sel(group="paraphrases")
    assert own["similarity"].values.tolist() == [1, 1, 1]
    assert (found.rsim.sel(group="paraphrases").dropna("k") == 1).all()
    again = edit.load_localisation_similarity(found.save(tmp_path / "rsim.nc"))
    assert again.info == found.info
    assert len(again.to_dataframe()) == 2 * 3
    check_fits(again.plot())
    check_fits(again.plot(figsize=(2.8, 3.2)))


def test_effects_by_layer_are_those_of_the_trace(llama):
    noise = locate.GaussianNoise(samples=2)
    with pytest.warns(UserWarning, match="traces mean little"):
        found = traced_layers(llama, FACTS[:1], ["mlp", "resid"], window=1, corruption=noise, progress=False)
    with pytest.warns(UserWarning, match="does not answer"):
        trace = locate.causal_trace(llama, FACTS[0], kinds=["mlp", "resid"], window=1, corruption=noise, progress=False)
    last = trace.subject_span[1] - 1
    sign = 1 if trace.total_effect >= 0 else -1
    for kind in ("mlp", "resid"):
        wanted = sign * trace.indirect_effect.sel(kind=kind, position=last).values
        np.testing.assert_allclose(found[kind][0], wanted, atol=1e-6)


def test_what_the_model_does_not_answer_is_left_out_and_told(llama, monkeypatch):
    score = similarity.score_targets

    def rank_by_answer(model, pairs):
        known = ("Paris", "Rome", "b")
        return [
            replace(one, rank=1 + (pair[1] not in known)) for one, pair in zip(score(model, pairs), pairs, strict=True)
        ]

    monkeypatch.setattr(similarity, "score_targets", rank_by_answer)
    known = Known()
    found = edit.localisation_similarity(llama, FACTS, locator=known, most=2)
    assert found.info["left_out"] == {
        "Big Ben is a tower in": "the model does not answer it",
        "hops": "no fact has hops besides its own prompt that the model answers",
    }
    assert found.info["facts"] == {"paraphrases": 2, "hops": 0}
    assert len(known.by_text) == 2 + 3
    with pytest.raises(FactError, match=r"Nothing to compare: no fact has paraphrases .* that the model answers; no "):
        edit.localisation_similarity(llama, FACTS[2:], locator=Known(), most=2)


def test_a_part_without_prompts_is_left_out_with_the_reason(llama):
    facts = [replace(fact, consequences=()) for fact in FACTS]
    found = edit.localisation_similarity(llama, facts, locator=Known(), most=2, only_known=False)
    assert found.info["left_out"] == {"hops": "no fact has hops besides its own prompt"}
    assert np.isnan(found.rsim.sel(group="hops")).all()
    check_fits(found.plot())


def test_bad_input(llama):
    with pytest.raises(LocateError, match="most: must be from 1 to 3"):
        edit.localisation_similarity(llama, FACTS, most=4)
    with pytest.raises(FactError, match="There are no facts"):
        edit.localisation_similarity(llama, [], most=2)
    with pytest.raises(LocateError, match=r"locator: gave effects of shape \(1, 2\); expected \(9, 4\)"):
        edit.localisation_similarity(
            llama, FACTS, locator=lambda model, facts: np.zeros((1, 2)), most=2, only_known=False
        )
    alike = [replace(FACTS[0], subject=name) for name in ("The Louvre", "The Tower")]
    with pytest.raises(FactError, match="No two of these 2 facts are unrelated"):
        edit.localisation_similarity(llama, alike, locator=Known(), most=2, only_known=False)
    odd = replace(FACTS[0], paraphrases=("“{}: “",))  # no space stands after a quotation mark
    with pytest.raises(FactError, match="does not share the answer"):
        edit.localisation_similarity(llama, [odd, FACTS[1]], locator=Known(), most=2, only_known=False)
