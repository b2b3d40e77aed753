"""Integrated gradients of neurons: against whole passes, completeness, thresholds, storage."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import locate
from locate import FactError, LocateError, ModelError, SiteError
from locate.facts.prompts import encode_target
from locate.neurons.knowledge import attribute_neurons
from tests import tiny
from tests.architectures import table

FACT = locate.Fact(prompt="{} is located in the city of", subject="The Louvre", target="Paris",
                   paraphrases=("{} stands in",))  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "dtype", "apart"),
    [
        ("gemma3_text", torch.float32, 1e-6),
        *((kind, torch.float64, 1e-11) for kind in ("gpt2", "llama", "gpt_neox", "falcon")),
    ],
)
def test_equals_whole_passes(kind, dtype, apart):
    """Up to roundings: in float64 none are seen."""
    model = tiny.bridge(kind, dtype=dtype)
    tokens, answer, steps = locate.encode_fact(model, FACT).tokens, 7, 5
    found = attribute_neurons(model, tokens, answer, steps=steps, rule="right").values
    _, cache = model.run_with_cache(tokens[None])
    for layer in range(4):
        name = f"blocks.{layer}.mlp.hook_post"
        own = cache[name][0, -1].detach()
        total = torch.zeros_like(own)
        for k in range(1, steps + 1):
            scaled = (own * k / steps).requires_grad_()

            def put(value, hook, scaled=scaled):
                return torch.cat([value[:, :-1], scaled[None, None]], dim=1)

            with model.hooks(fwd_hooks=[(name, put)]):
                chance = model(tokens[None])[0, -1].softmax(-1)[answer]
            total += torch.autograd.grad(chance, scaled)[0]
        torch.testing.assert_close(found[layer], own * total / steps, atol=apart, rtol=1e3 * apart)


def test_attributions_add_up_to_what_the_layer_does():
    """The sum over a layer's neurons is the change of probability from none of them to all."""
    model = tiny.bridge("llama", scale=2.0)
    tokens, answer = locate.encode_fact(model, FACT).tokens, 7
    by_rule = {rule: attribute_neurons(model, tokens, answer, steps=steps, rule=rule)
               for rule, steps in (("adaptive", 20), ("right", 400))}  # fmt: skip

    def silence(value, hook):
        return torch.cat([value[:, :-1], torch.zeros_like(value[:, -1:])], dim=1)

    with torch.no_grad():
        whole = model(tokens[None])[0, -1].softmax(-1)[answer]
        with model.hooks(fwd_hooks=[("blocks.2.mlp.hook_post", silence)]):
            none = model(tokens[None])[0, -1].softmax(-1)[answer]
    for found in by_rule.values():
        assert float(found.change[2]) == pytest.approx(float(whole - none), rel=1e-3)
        assert float(found.values[2].sum()) == pytest.approx(float(whole - none), rel=2e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "olmo2"])
def test_the_points_go_where_the_probability_changes(kind):
    """Random weights make it jump, a norm after the MLP near 0: every layer adds up all the same."""
    model = tiny.bridge(kind, scale=8.0)
    tokens = locate.encode_fact(model, FACT).tokens
    with torch.no_grad():
        answer = int(model(tokens[None])[0, -1].argmax())
    found = attribute_neurons(model, tokens, answer)
    missed = (found.values.sum(-1) - found.change).abs()
    assert (missed <= 0.02 * found.change.abs().clamp_min(1e-3)).all()
    right = attribute_neurons(model, tokens, answer, rule="right")
    torch.testing.assert_close(found.change, right.change)
    assert (right.values.sum(-1) - right.change).abs().max() > missed.max()
    exact = attribute_neurons(model, tokens, answer, rule="right", steps=4000)
    torch.testing.assert_close(found.values, exact.values, atol=2e-3, rtol=2e-2)


def test_the_budget_changes_nothing():
    model = tiny.bridge("llama")
    tokens = locate.encode_fact(model, FACT).tokens
    torch.testing.assert_close(
        attribute_neurons(model, tokens, 7).values, attribute_neurons(model, tokens, 7, budget=24).values
    )


def test_prompts_are_averaged_and_thresholded(tmp_path):
    model = tiny.bridge("llama")
    scores = locate.knowledge_neurons(model, [FACT], prefixes=["I am. "], steps=3, threshold=0.4, progress=False)
    texts = [FACT.text, "The Louvre stands in", "I am. " + FACT.text]
    assert scores.info["prompts"] == [texts]
    answer = tiny.tokenizer()(" Paris")["input_ids"][0]
    encoded = [torch.tensor(tiny.tokenizer()(text)["input_ids"]) for text in texts]
    each = torch.stack([attribute_neurons(model, tokens, answer, steps=3).values for tokens in encoded])
    torch.testing.assert_close(torch.from_numpy(scores.scores.values[0]), each.mean(0))
    passing = each > 0.4 * each.flatten(1).amax(1)[:, None, None]
    torch.testing.assert_close(torch.from_numpy(scores.kept.values[0]), passing.float().mean(0))
    refined = {(site.layer, site.neuron) for site in scores.refined(share=0.5)}
    assert refined == {tuple(place) for place in (passing.float().mean(0) > 0.5).nonzero().tolist()}
    best = scores.best()
    assert (best.layer, best.neuron) == (scores.top(1)[0].layer, scores.top(1)[0].neuron)
    again = locate.load_neurons(scores.save(tmp_path / "neurons.nc"))
    assert again.info == scores.info
    assert (again.scores == scores.scores).all()


CITIES = [
    locate.Fact(prompt="{} is located in the city of", subject=subject, target=target, relation=relation,
                paraphrases=("{} stands in",))
    for subject, target, relation in (
        ("The Louvre", "Paris", "city"), ("Big Ben", "London", "city"), ("The Colosseum", "Rome", "city"),
        ("The Eiffel Tower", "Paris", "city"), ("The Louvre", "France", "country"), ("Rome", "Italy", "country"))
]  # fmt: skip


@pytest.mark.parametrize("given", ["relation", "facts"])
def test_neurons_of_negatives_are_left_out(given):
    model = tiny.bridge("llama")
    negatives = "relation" if given == "relation" else [dataclasses.replace(one, paraphrases=()) for one in CITIES]
    options = {"steps": 3, "rule": "right", "threshold": 0.1, "progress": False}
    scores = locate.knowledge_neurons(model, CITIES[:4] if given == "facts" else CITIES, negatives=negatives, **options)
    assert scores.info["negatives"][0] == [CITIES[1].text, CITIES[2].text]
    passing = []
    for place in (1, 2):
        prompt = locate.encode_fact(model, CITIES[place])
        answer = int(encode_target(model, prompt, CITIES[place].target)[0])
        own = attribute_neurons(model, prompt.tokens, answer, steps=3, rule="right").values
        passing.append(own > 0.1 * own.max())
    share = torch.stack(passing).float().mean(0)
    torch.testing.assert_close(torch.from_numpy(scores.data["negative"].values[0]), share)
    plain = locate.knowledge_neurons(model, CITIES[0], **options)
    before = {(site.layer, site.neuron) for site in plain.refined(share=0.4)}
    after = {(site.layer, site.neuron) for site in scores.refined(share=0.4, negative_share=0.4)}
    assert after == {place for place in before if share[place] <= 0.4} < before


def test_the_coarse_set_is_of_the_facts_own_prompt():
    model = tiny.bridge("llama")
    scores = locate.knowledge_neurons(model, FACT, steps=3, rule="right", threshold=0.3, progress=False)
    alone = locate.knowledge_neurons(
        model, dataclasses.replace(FACT, paraphrases=()), steps=3, rule="right", threshold=0.3, progress=False
    )
    assert set(scores.coarse()) == set(alone.coarse()) == set(alone.refined(share=0.0))
    assert [*alone.coarse()] == alone.top(len(alone.coarse()))
    least = np.maximum(abs(alone.data["change"].values), 1e-3)
    np.testing.assert_allclose(alone.missed.values, alone.data["residual"].values / least, rtol=1e-5)


def test_no_neuron_is_an_error_that_says_what_would_let_some_pass():
    model = tiny.bridge("llama")
    scores = locate.knowledge_neurons(model, FACT, steps=2, rule="right", progress=False)
    most = float(scores.kept.max())
    with pytest.raises(SiteError, match=rf"No neuron.*more than 100% of its prompts; the most .* {most:.0%} of the"):
        scores.refined(share=1.0)
    assert scores.refined(share=1.0, least=0) == []
    everywhere = dataclasses.replace(scores, data=scores.data.assign(negative=scores.kept * 0 + 1))
    with pytest.raises(SiteError, match="those of its negatives left out"):
        everywhere.refined()
    nothing = scores.data.assign(scores=-abs(scores.scores), kept=scores.kept * 0)
    with pytest.raises(SiteError, match="no attribution is above 0"):
        dataclasses.replace(scores, data=nothing).refined()
    with pytest.raises(LocateError, match="no 'coarse': it comes with those that knowledge_neurons gives"):
        dataclasses.replace(scores, data=scores.data.drop_vars("coarse")).coarse()


def test_bad_input():
    model = tiny.bridge("llama")
    with pytest.raises(LocateError, match=r"threshold must be at least 0 and below 1, found 1: .* which no neuron exc"):
        locate.knowledge_neurons(model, FACT, threshold=1.0)
    # The second prompt ends in the space that the answer would begin with.
    apart = dataclasses.replace(FACT, paraphrases=("{} stands in the “",))
    with pytest.raises(FactError, match=r"“' does not share the answer of .* begins with 'Par?.*' after the one and"):
        locate.knowledge_neurons(model, apart)
    with pytest.raises(FactError, match=r"has no negative: of 1 other fact none has another answer and the relati"):
        locate.knowledge_neurons(model, CITIES[0], negatives=CITIES[3:4])
    with pytest.raises(FactError, match="has no negative: of 1 other"):
        locate.knowledge_neurons(model, FACT, negatives="relation")
    with pytest.raises(LocateError, match="negatives must be facts, or 'relation'; found 'all'"):
        locate.knowledge_neurons(model, FACT, negatives="all")
    with pytest.raises(locate.FactError, match="no facts to attribute"):
        locate.knowledge_neurons(model, [])
    with pytest.raises(locate.LocateError, match="steps must be 1 or more"):
        locate.knowledge_neurons(model, FACT, steps=0)
    scores = locate.knowledge_neurons(model, FACT, steps=1, progress=False)
    with pytest.raises(locate.SiteError, match=r"There is no fact 3: these scores are of 1 fact"):
        scores.refined(3)
    with pytest.raises(locate.SiteError, match=r"There is no fact 3: these scores are of 1 fact"):
        scores.top(fact=3)


def test_layers_of_experts_among_dense_ones_are_refused_with_those_that_have_neurons():
    with pytest.raises(ModelError, match=r"no single MLP down projection .*mixture of experts"):
        locate.knowledge_neurons(table.bridge("glm4_moe"), FACT, progress=False)


def test_layers_of_other_widths_are_refused_with_what_to_do():
    hf = tiny.hf_model("llama")
    wider = copy.deepcopy(hf.config)
    wider.intermediate_size = 96
    hf.model.layers[2].mlp = type(hf.model.layers[2].mlp)(wider)
    model = locate.load_model(hf, tiny.tokenizer())
    with pytest.raises(ModelError, match=r"differ in width between layers \(80, 80, 96, 80\).*Patch the neurons"):
        locate.knowledge_neurons(model, FACT, progress=False)
    swap = locate.TokenSwap("The Tower")
    patched = locate.patch(model, FACT, swap, sites="mlp_neurons", layers=[2], progress=False)
    assert patched.values.sizes == {"layer": 1, "neuron": 96}
