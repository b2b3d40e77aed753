"""Gradient × activation: against gradients of plain passes, and against estimates of patches."""

import dataclasses

import numpy as np
import pytest
import torch

import locate
from locate import FactError, LocateError, ModelError, SiteError
from locate.facts.prompts import encode_target
from tests.architectures import table
from tests.figures import check_fits
from tests.sampling import sampled

FACT = locate.Fact(prompt="{} is located in the city of", subject="The Louvre", target="Paris", target_new="Rome",
                   paraphrases=("{} stands in",))  # fmt: skip
ALONE = dataclasses.replace(FACT, paraphrases=())
KINDS = sampled(["gpt2", "llama", "gemma2", "cohere", "falcon", "granite", "olmo2", "gpt_neox"])


def by_hand(model, text, answer, log):
    """What the measure gains where each activation is scaled up, from one plain pass."""
    tokens = torch.tensor(model.tokenizer(text)["input_ids"])[None]
    factors = {}

    def hook(value, hook):
        factors[hook.name] = torch.ones_like(value, requires_grad=True)
        return value * factors[hook.name]

    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, hook) for name in names]):
        chance = model(tokens)[0, -1].softmax(-1)[answer]
    gradients = torch.autograd.grad(chance.log() if log else chance, list(factors.values()))
    return torch.stack([one[0] for one in gradients], dim=1)  # position layer neuron


@pytest.mark.parametrize("kind", KINDS)
def test_equals_gradients_of_plain_passes(kind):
    model = table.bridge(kind)
    answer = int(encode_target(model, FACT.text, FACT.target)[0])
    found = locate.neuron_attribution(model, FACT, positions="all", metric="log_probability", progress=False)
    own, other = (by_hand(model, text, answer, True) for text in (FACT.text, "The Louvre stands in"))
    np.testing.assert_allclose(found.data["by_position"][0], own, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(found.scores[0], (own.sum(0) + other.sum(0)) / 2, rtol=2e-3, atol=1e-4)
    last = locate.neuron_attribution(model, ALONE, progress=False)
    np.testing.assert_allclose(last.scores[0], by_hand(model, FACT.text, answer, False)[-1], rtol=2e-3, atol=1e-6)
    assert "by_position" not in last.data


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_relevance_is_what_estimates_of_patches_have(kind):
    """(n′ − n) · g of a patch, divided by n′ − n and multiplied by n."""
    model = table.bridge(kind)
    swap = locate.TokenSwap("The Tower")
    asked = {"sites": "mlp_neurons", "positions": "last", "direction": "break", "metric": "logit_diff"}
    estimated = locate.attribute(model, ALONE, swap, method="relp", progress=False, **asked)
    found = locate.neuron_attribution(model, ALONE, method="relp", metric="logit_diff", progress=False)
    for layer in range(3):
        name = f"blocks.{layer}.mlp.hook_post"
        texts = [FACT.text, FACT.text.replace("Louvre", "Tower")]
        with torch.no_grad():
            clean, corrupt = (model.run_with_cache(text)[1][name][0, -1].numpy() for text in texts)
        effect = estimated.effect.sel(layer=layer).values.ravel()
        moved = abs(corrupt - clean) > 1e-2
        expected = (effect / np.where(moved, corrupt - clean, 1.0) * clean)[moved]
        np.testing.assert_allclose(found.scores[0, layer].values[moved], expected, rtol=5e-2, atol=1e-3)


def test_positions_are_told_and_files_read(tmp_path):
    model = table.bridge("llama")
    facts = [FACT, locate.Fact(prompt="See {} in", subject="Big Ben", target="London")]
    found = locate.neuron_attribution(model, facts, positions="subject", progress=False)
    places = [locate.encode_fact(model, fact).subject_span for fact in facts]
    for at, (start, end) in enumerate(places):
        table_ = found.data["by_position"][at].dropna("position")
        assert table_["position"].values.tolist() == list(range(start, end))
        best = found.top(1, fact=at)[0]
        own = table_.sel(layer=best.layer, neuron=best.neuron)
        assert best.position == int(own["position"][abs(own).argmax()])
    again = locate.load_neurons(found.save(tmp_path / "neurons.nc"))
    assert again.top(3) == found.top(3)
    assert "by_position" not in again.to_dataframe()
    assert len(again.refined(share=0.5)) >= 1
    check_fits(again.plot())
    check_fits(again.plot(figsize=(2.4, 3.0), n=10))


def test_bad_input():
    model = table.bridge("llama")
    with pytest.raises(FactError, match="no facts to attribute"):
        locate.neuron_attribution(model, [])
    with pytest.raises(LocateError, match=r"no method 'gradient' of neuron attribution. Did you mean gradient_x"):
        locate.neuron_attribution(model, FACT, method="gradient")
    with pytest.raises(LocateError, match="needs a metric with a gradient"):
        locate.neuron_attribution(model, FACT, metric="rank", progress=False)
    with pytest.raises(LocateError, match="which no neuron exceeds"):
        locate.neuron_attribution(model, FACT, threshold=1.0)
    with pytest.raises(SiteError, match="positions must be one of"):
        locate.neuron_attribution(model, FACT, positions="first")
    with pytest.raises(ModelError, match="mixture of experts"):
        locate.neuron_attribution(table.bridge("mixtral"), FACT)
