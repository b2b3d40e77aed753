"""Log-probability gain: against adding each vector by hand, screening against all, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

import locate
from locate import FactError, LocateError, ModelError, SiteError
from locate.facts.prompts import encode_target
from tests import tiny
from tests.architectures import table
from tests.figures import check_fits
from tests.sampling import sampled

FACTS = [
    locate.Fact(prompt="{} is located in the city of", subject=subject, target=target)
    for subject, target in (("The Louvre", "Paris"), ("Big Ben", "London"))
]
# By type: whether norms take the mean away, what is added to their weights, the residual multiplier.
BY_HAND = {
    "gpt2": (True, 0, 1), "llama": (False, 0, 1), "gemma2": (False, 1, 1), "olmo2": (False, 0, 1),
    "cohere": (True, 0, 1), "granite": (False, 0, 0.3), "falcon": (True, 0, 1),
}  # fmt: skip


def scale_of(state, centred, eps):
    state = state - state.mean() if centred else state
    return (state.square().mean() + eps).sqrt()


class ByHand:
    """A model's own modules, with the norms written out."""

    def __init__(self, kind, fact):
        self.model = table.bridge(kind)
        self.centred, self.more, self.multiplier = BY_HAND[kind]
        self.tokens = locate.encode_fact(self.model, fact).tokens[None]
        self.answer = int(encode_target(self.model, fact.text, fact.target)[0])
        with torch.no_grad():
            _, self.cache = self.model.run_with_cache(self.tokens)
        self.final = self.cache["ln_final.hook_in"][0, -1]

    def scaled(self, norm, state, like):
        """What a norm makes of a state, with the scale that it has at another."""
        module = norm.original_component
        eps = getattr(module, "eps", None) or module.variance_epsilon
        given = state - state.mean() if self.centred else state
        made = (module.weight + self.more) * given / scale_of(like, self.centred, eps)
        return made if getattr(module, "bias", None) is None else made + module.bias

    def said(self, stream):
        normed = self.scaled(self.model.ln_final, stream, self.final)
        raw = self.model.unembed.original_component(normed)
        return float(self.model.adapter.apply_output_logits_transform(raw[None])[0].log_softmax(-1)[self.answer])

    def through(self, name, layer, vector, projected):
        post = getattr(self.model.blocks[layer], name, None)
        if post is None:
            return vector * self.multiplier
        return self.scaled(post, vector, projected)

    def neuron(self, layer, neuron):
        module = self.model.blocks[layer].mlp.out.original_component
        weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
        written = self.cache[f"blocks.{layer}.mlp.hook_post"][0, -1, neuron] * weight[neuron]
        projected = self.cache[f"blocks.{layer}.mlp.out.hook_out"][0, -1]
        added = self.through("ln2_post", layer, written, projected)
        stream = self.cache[f"blocks.{layer}.hook_in"][0, -1] + self.cache[f"blocks.{layer}.hook_attn_out"][0, -1]
        return self.said(stream + added) - self.said(stream)

    def head(self, layer, head, source):
        attention = self.model.blocks[layer].attn
        pattern = self.cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1, source]
        values = self.cache[f"blocks.{layer}.attn.hook_v"][0, source]
        n_heads = self.cache[f"blocks.{layer}.attn.hook_pattern"].shape[1]
        own = values[head * len(values) // n_heads]
        weight = attention.o.original_component.weight
        weight = weight if type(attention.o.original_component).__name__ == "Conv1D" else weight.T
        written = pattern * own @ weight[head * len(own) : (head + 1) * len(own)]
        added = self.through("ln1_post", layer, written, self.cache[f"blocks.{layer}.attn.o.hook_out"][0, -1])
        stream = self.cache[f"blocks.{layer}.hook_in"][0, -1]
        return self.said(stream + added) - self.said(stream)


@pytest.mark.parametrize("kind", sampled(BY_HAND))
def test_equals_adding_each_vector_by_hand(kind):
    gain = locate.neuron_logprob_gain(table.bridge(kind), FACTS, progress=False)
    for at, fact in enumerate(FACTS):  # the second takes over what was made for the first
        hand = ByHand(kind, fact)
        with torch.no_grad():
            for layer in range(3):
                for neuron in range(0, gain.scores.sizes["neuron"], 7):
                    found = float(gain.scores[at, layer, neuron])
                    assert found == pytest.approx(hand.neuron(layer, neuron), abs=2e-4, rel=1e-3)
                for head, source in ((0, 0), (3, 4), (2, hand.tokens.shape[1] - 1)):
                    found = float(gain.heads[at, layer, head, source])
                    assert found == pytest.approx(hand.head(layer, head, source), abs=2e-4, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "olmo2", "granite"])
def test_the_best_of_a_screen_are_exact_and_none_is_larger(kind, monkeypatch):
    model = table.bridge(kind)
    every = locate.neuron_logprob_gain(model, FACTS[0], heads=False, progress=False)
    monkeypatch.setattr("locate.engine.rows._TABLE", 10 * model.cfg.d_vocab)
    screened = locate.neuron_logprob_gain(model, FACTS[0], screen=8, heads=False, progress=False)
    exact = screened.data["exact"].values
    assert screened.top(8) == every.top(8)
    assert 8 <= exact.sum() < exact.size
    np.testing.assert_allclose(screened.scores.values[exact], every.scores.values[exact], atol=1e-4)
    assert (screened.scores.values >= every.scores.values - 1e-4).all()


def test_parts_of_the_vocabulary_change_nothing(monkeypatch):
    model = tiny.bridge("gpt2", scale=4.0)
    whole = locate.neuron_logprob_gain(model, FACTS, progress=False)
    monkeypatch.setattr("locate.engine.rows._TABLE", 7 * model.cfg.d_vocab)
    parts = locate.neuron_logprob_gain(model, FACTS, progress=False)
    for name in ("scores", "heads"):
        np.testing.assert_allclose(parts.data[name], whole.data[name], atol=1e-5)
    some = locate.neuron_logprob_gain(model, FACTS, layers=[-1, 1], progress=False)
    np.testing.assert_allclose(some.scores, whole.scores.sel(layer=[1, 3]), atol=1e-5)
    assert some.best().layer in (1, 3)


def test_heads_are_told_with_their_tokens(tmp_path):
    gain = locate.neuron_logprob_gain(tiny.bridge("llama", scale=4.0), FACTS, progress=False)
    lengths = [len(tokens) for tokens in gain.info["tokens"]]
    assert np.isfinite(gain.heads.values[0, :, :, : lengths[0]]).all()
    assert np.isnan(gain.heads.values[1, :, :, lengths[1] :]).all()
    best = gain.top_heads(fact=1)
    values = gain.heads.values[1]
    assert best["score"].tolist() == pytest.approx(np.sort(values[~np.isnan(values)])[::-1][:10].tolist())
    row = best.iloc[0]
    assert values[row["layer"], row["head"], row["position"]] == pytest.approx(row["score"])
    assert row["token"] == gain.info["tokens"][1][row["position"]]
    again = locate.load_logprob_gain(gain.save(tmp_path / "gain.nc"))
    assert again.top_heads().equals(gain.top_heads())
    assert "heads" not in again.to_dataframe()
    for size in ((4.0, 2.6), (2.4, 2.6)):
        check_fits(gain.plot_heads(fact=1, figsize=size))
        check_fits(gain.plot(fact=1, figsize=size))


def test_bad_input():
    model = tiny.bridge("llama")
    with pytest.raises(FactError, match="no facts to attribute"):
        locate.neuron_logprob_gain(model, [])
    with pytest.raises(LocateError, match="screen must be 1 or more"):
        locate.neuron_logprob_gain(model, FACTS, screen=0)
    with pytest.raises(LocateError, match="layers: give at least one"):
        locate.neuron_logprob_gain(model, FACTS, layers=[])
    with pytest.raises(SiteError, match="Layer 9 is out of range"):
        locate.neuron_logprob_gain(model, FACTS, layers=[9])
    with pytest.raises(ModelError, match="caps its logits"):
        locate.neuron_logprob_gain(table.bridge("gemma2"), FACTS, screen=3)
    with pytest.raises(ModelError, match="mixture of experts"):
        locate.neuron_logprob_gain(table.bridge("mixtral"), FACTS)
    with pytest.raises(ModelError, match=r"What layer 0 of Gemma4ForCausalLM adds .* is not the sum of what neurons"):
        locate.neuron_logprob_gain(table.bridge("gemma4_text"), FACTS, progress=False)
    gain = locate.neuron_logprob_gain(model, FACTS, heads=False, layers=[0], progress=False)
    with pytest.raises(LocateError, match=r"gains are of neurons alone. Make them with heads=True"):
        gain.top_heads()
    with pytest.raises(LocateError, match=r"no 'kept': it comes with those that knowledge_neurons gives"):
        gain.refined()
    with pytest.raises(SiteError, match="There is no fact 2"):
        dataclasses.replace(gain).plot(fact=2)
