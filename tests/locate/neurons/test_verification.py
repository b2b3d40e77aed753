"""Suppressed and amplified neurons: against plain hooks, sets that are alike in their layers, pairs and tests."""

import dataclasses
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

import locate
from locate import FactError, LocateError, ModelError, Site, SiteError
from locate.facts.prompts import encode_target
from locate.neurons.sets import random_sets
from tests import tiny
from tests.architectures import table
from tests.figures import check_fits
from tests.sampling import sampled

FACTS = [
    locate.Fact(prompt="{} is located in the city of", subject=subject, target=target, relation=relation,
                paraphrases=paraphrases)
    for subject, target, relation, paraphrases in (
        ("The Louvre", "Paris", "city", ("{} stands in", "To visit {}, go to")), ("Big Ben", "London", "city", ()),
        ("The Colosseum", "Italy", "country", ()))
]  # fmt: skip
SET = [Site("neuron", layer=1, neuron=3), Site("neuron", layer=1, neuron=7), Site("neuron", layer=2, neuron=0)]


def by_hooks(model, text, answer, places, factor, position):
    """The answer's log-probability with neurons multiplied in a plain pass."""
    tokens = torch.tensor(model.tokenizer(text)["input_ids"])[None]

    def scale(layer):
        def hook(value, hook):
            for at, neuron in places:
                if at == layer:
                    value[:, slice(None) if position == "all" else -1, neuron] *= factor
            return value

        return hook

    layers = {layer for layer, _ in places}
    hooks = [(f"blocks.{layer}.mlp.hook_post", scale(layer)) for layer in layers]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return float(model(tokens)[0, -1].float().log_softmax(-1)[answer])


@pytest.mark.parametrize(
    ("kind", "position"),
    [*[(kind, "last") for kind in ("gpt2", "llama", "olmo2", "falcon", "granite", "gemma3_text")], ("llama", "all")],
)
def test_equals_plain_hooks(kind, position):
    model = tiny.bridge(kind, scale=4.0)
    effects = locate.verify_neurons(
        model, FACTS, SET, factors=[0.0, 3.5], random=2, unrelated=1, position=position, progress=False, budget=40
    )
    drawn = np.random.default_rng([0, 0])
    widths = dict.fromkeys((1, 2), model.blocks[1].mlp.out.original_component.weight.numel() // model.cfg.d_model)
    own = [(1, 3), (1, 7), (2, 0)]
    sets = [own, *random_sets(own, widths, 2, drawn)]
    fact = FACTS[0]
    answer, other = (int(encode_target(model, one.text, one.target)[0]) for one in (fact, FACTS[2]))
    asked = {
        "fact": [(fact.text, answer)], "paraphrases": [(fact.fill(one), answer) for one in fact.paraphrases],
        "unrelated": [(FACTS[2].text, other)],
    }  # fmt: skip
    for metric, of in (("log_probability", float), ("probability", np.exp)):
        view = effects.of(metric)
        for on, prompts in asked.items():
            clean = np.mean([of(by_hooks(model, *one, [], 1, position)) for one in prompts])
            assert float(view.data["clean"].sel(metric=metric, on=on)[0]) == pytest.approx(clean, abs=1e-5)
            for factor in (0.0, 3.5):
                expected = [
                    np.mean([of(by_hooks(model, *one, places, factor, position)) for one in prompts]) - clean
                    for places in sets
                ]
                got = [view.effect, view.random]
                got = [float(one.sel(on=on, factor=factor)[0]) for one in got]
                assert got == pytest.approx([expected[0], np.mean(expected[1:])], abs=2e-4)


def test_random_sets_have_as_many_others_in_each_layer():
    own = [(1, 3), (1, 7), (2, 0)]
    for one in random_sets(own, {1: 8, 2: 8}, 20, np.random.default_rng(0)):
        assert Counter(layer for layer, _ in one) == {1: 2, 2: 1}
        assert len({*one, *own}) == 6
    with pytest.raises(LocateError, match=r"Layer 1 has 3 neurons, 2 of which are in the set: .* Give a smaller set"):
        random_sets([(1, 0), (1, 2)], {1: 3}, 1, np.random.default_rng(0))


@pytest.mark.parametrize("kind", sampled(["gpt2", "llama", "gemma2", "cohere", "falcon", "granite", "olmo2", "bloom"]))
def test_a_run_of_whole_passes_gives_the_same(kind, request):
    model = table.bridge(kind)
    effects = locate.verify_neurons(model, FACTS[0], SET, random=1, progress=False)
    request.getfixturevalue("not_resumed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = locate.verify_neurons(table.bridge(kind), FACTS[0], SET, random=1, progress=False)
    np.testing.assert_allclose(whole.data["values"], effects.data["values"], rtol=1e-3, atol=1e-3)


def test_the_refined_sets_of_scores_are_taken():
    model = tiny.bridge("llama")
    scores = locate.knowledge_neurons(model, FACTS, steps=2, rule="right", threshold=0.5, progress=False)
    kept = scores.kept.copy()
    kept[1] = 0
    lacking = dataclasses.replace(scores, data=scores.data.assign(kept=kept))
    with pytest.warns(UserWarning, match=r"Left out 1 of 3 facts, without refined neurons, such as 'Big Ben is"):
        effects = locate.verify_neurons(model, FACTS, lacking, random=1, unrelated=0, progress=False)
    assert effects.data["fact"].values.tolist() == [FACTS[0].text, FACTS[2].text]
    own = sorted((site.layer, site.neuron) for site in scores.refined(2))
    assert [tuple(place) for place in effects.info["neurons"][1]] == own
    assert set(effects.to_dataframe()["on"]) == {"fact", "paraphrases"}
    nothing = dataclasses.replace(scores, data=scores.data.assign(kept=scores.kept * 0))
    with pytest.raises(SiteError, match="No neuron"):
        locate.verify_neurons(model, FACTS, nothing, progress=False)
    with pytest.raises(FactError, match="the neurons given are of other facts"):
        locate.verify_neurons(model, dataclasses.replace(FACTS[0], subject="The Tower"), scores, progress=False)


def test_pairs_are_told_and_tested(tmp_path):
    model = tiny.bridge("llama", scale=4.0)
    facts = [dataclasses.replace(FACTS[0], subject=f"The {name}") for name in "ABCDEFGH"]
    effects = locate.verify_neurons(model, facts, SET, random=3, unrelated=FACTS[1:], progress=False)
    told = effects.summary().set_index(["on", "factor"])
    assert len(told) == 6
    row = told.loc["fact", 0.0]
    pairs = effects.difference.sel(on="fact", factor=0).values
    assert row["difference"] == pytest.approx(pairs.mean())
    assert row["difference_low"] < pairs.mean() < row["difference_high"]
    assert row["wilcoxon"] == pytest.approx(stats.wilcoxon(pairs).pvalue)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(pairs))).reshape(len(pairs), -1)
    permuted = (signs.T * pairs).mean(1)
    assert row["permutation"] == pytest.approx((abs(permuted) >= abs(pairs.mean()) - 1e-9).mean())
    assert row["same_sign"] == (np.sign(pairs) == np.sign(pairs.mean())).mean()
    table = effects.to_dataframe()
    assert len(table) == 6 * len(facts)
    np.testing.assert_allclose(table["difference"], table["effect"] - table["random"], rtol=1e-5, atol=1e-7)
    again = locate.load_neuron_effects(effects.save(tmp_path / "effects.nc"))
    assert again.summary().equals(effects.summary())
    assert again.clean == effects.clean
    for size in ((5.0, 2.7), (3.0, 2.7)):
        check_fits(again.of("probability").plot(figsize=size))


def test_without_random_sets_there_are_effects_alone():
    effects = locate.verify_neurons(tiny.bridge("llama"), FACTS[0], SET, random=0, factors=[0.0], progress=False)
    assert np.isfinite(effects.effect.sel(on="fact")).all()
    told = effects.summary()
    assert told[["random", "difference", "wilcoxon"]].isna().all(axis=None)
    check_fits(effects.plot())


def test_bad_input():
    model = tiny.bridge("llama")
    with pytest.raises(FactError, match="no facts to verify"):
        locate.verify_neurons(model, [], SET)
    with pytest.raises(LocateError, match="factors: give one or more finite numbers, each once"):
        locate.verify_neurons(model, FACTS, SET, factors=[2.0, 2.0])
    with pytest.raises(LocateError, match="position 'last' or 'all'; found 3 and 'first'"):
        locate.verify_neurons(model, FACTS, SET, random=3, position="first")
    with pytest.raises(FactError, match="give one set for each of 3 facts, or one for all; found 2"):
        locate.verify_neurons(model, FACTS, [SET, SET])
    with pytest.raises(SiteError, match=r"the set of 'Big Ben is located in the city of' is empty"):
        locate.verify_neurons(model, FACTS, [SET, [], SET])
    with pytest.raises(SiteError, match=r"is no neuron; give sites such as"):
        locate.verify_neurons(model, FACTS, [Site("mlp", layer=1)])
    with pytest.raises(SiteError, match="the MLP of layer 1 has 80 neurons, 0 to 79"):
        locate.verify_neurons(model, FACTS, [Site("neuron", layer=1, neuron=80)])
    with pytest.raises(ModelError, match="mixture of experts"):
        locate.verify_neurons(table.bridge("mixtral"), FACTS, SET)
