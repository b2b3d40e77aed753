"""What neurons write and read in the vocabulary, against the plain model's matrices."""

import numpy as np
import pytest
import torch

import locate
from locate import LocateError, ModelError, Site, SiteError
from locate.model.anatomy import norm_after
from locate.sites.contributions import down_weight
from locate.sites.inputs import mlp_input
from tests import tiny
from tests.architectures import table
from tests.sampling import sampled
from tests.transformer_lens import models

KINDS = ["gpt2", "llama", "gemma2", "cohere", "granite", "olmo2", "phi3", "gpt_neox", "falcon", "bloom", "mpt", "opt"]
SITES = [Site("neuron", layer=1, neuron=3), Site("neuron", layer=2, neuron=7)]
PARTS = {True: ["writes", "reads (gate)", "reads (up)"], False: ["writes", "reads"]}


def norm_gain(norm):
    """Of a norm's module, with what is added to it."""
    return norm.weight + (1.0 if "Gemma" in type(norm).__name__ else 0.0)


def centre(vector):
    return vector - vector.mean(-1, keepdim=True)


@torch.no_grad()
def by_hand(kind, site):
    """Every token's score of each part."""
    hf, layer, neuron = models.hf_model(kind), site.layer, site.neuron
    if kind == "gpt2":
        block, final, embed = hf.transformer.h[layer], hf.transformer.ln_f, hf.transformer.wte.weight
        embed = embed + hf.transformer.wpe.weight[0]
        down, up = block.mlp.c_proj.weight[neuron], {"reads": block.mlp.c_fc.weight[:, neuron]}
        before = centre(norm_gain(block.ln_2) * up["reads"])
        return {"writes": hf.lm_head.weight @ (centre(down) * norm_gain(final)), "reads": embed @ before}
    block, final = hf.model.layers[layer], hf.model.norm
    down = block.mlp.down_proj.weight[:, neuron]
    if kind in ("gemma2", "olmo2"):
        down = down * norm_gain(block.post_feedforward_layernorm)
    before = {"gemma2": "pre_feedforward_layernorm", "llama": "post_attention_layernorm", "cohere": "input_layernorm",
              "granite": "post_attention_layernorm"}.get(kind)  # fmt: skip
    gain = 1.0 if before is None else norm_gain(getattr(block, before))
    scale = {"gemma2": 32**0.5, "granite": 3.0}.get(kind, 1.0)
    embed, centred = hf.model.embed_tokens.weight * scale, kind == "cohere"
    columns = {"reads (gate)": block.mlp.gate_proj.weight[neuron], "reads (up)": block.mlp.up_proj.weight[neuron]}
    columns = {name: gain * one for name, one in columns.items()}
    down, columns = (centre(down), {name: centre(one) for name, one in columns.items()}) if centred else (down, columns)
    return {
        "writes": hf.lm_head.weight @ (down * norm_gain(final)),
        **{name: embed @ one for name, one in columns.items()},
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "olmo2", "cohere", "granite"])
def test_scores_are_products_of_the_plain_matrices(kind):
    k, found = 6, locate.neuron_vocabulary(models.model(kind), SITES, k=6)
    for site in SITES:
        own = found[(found["layer"] == site.layer) & (found["neuron"] == site.neuron)]
        expected = by_hand(kind, site)
        assert list(own["part"].unique()) == list(expected)
        for part, scores in expected.items():
            for end, largest in (("top", True), ("bottom", False)):
                rows = own[(own["part"] == part) & (own["end"] == end)]
                np.testing.assert_allclose(rows["score"], scores.topk(k, largest=largest).values, rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(rows["score"], scores[rows["token_id"].tolist()], rtol=1e-3, atol=1e-4)
                assert list(rows["token"]) == [tiny.tokenizer().decode([token]) for token in rows["token_id"]]
                assert list(rows["rank"]) == [1, 2, 3, 4, 5, 6]


def change(module, vectors):
    """What a module makes of vectors, beyond what it makes of none."""
    vectors = vectors[None] if vectors.ndim == 2 else vectors
    return (module(vectors) - module(torch.zeros_like(vectors)))[0]


@pytest.mark.parametrize("kind", sampled(KINDS))
def test_scores_are_what_the_models_own_modules_compute(kind):
    """Up to the scales of norms, which are those of the states that they are given."""
    bridge, neuron = models.model(kind), SITES[0].neuron
    if kind == "llama4_text":
        pytest.skip("a mixture of experts")
    found = locate.neuron_vocabulary(bridge, SITES[0], k=bridge.cfg.d_vocab)
    block, gated = bridge.blocks[1], "gate" in bridge.blocks[1].mlp.submodules
    assert list(found["part"].unique()) == PARTS[gated]
    tokens, norm = torch.arange(bridge.cfg.d_vocab), mlp_input(bridge, 1).norm

    def score(part):
        rows = found[(found["part"] == part) & (found["end"] == "top")].sort_values("token_id")
        return torch.tensor(rows["score"].to_numpy(), dtype=torch.float32)

    with torch.no_grad():
        entering = bridge.run_with_cache(tokens[:, None])[1]["blocks.0.hook_resid_pre"][:, 0]
        scale = torch.ones(len(tokens))
        if norm is not None:
            centred = torch.allclose(norm(entering[None] + 1), norm(entering[None]), rtol=1e-2, atol=1e-3)
            scale = (centre(entering) if centred else entering).pow(2).mean(-1).clamp_min(1e-9).rsqrt()
        for part, name in zip(PARTS[gated][1:], ["gate", "in"] if gated else ["in"], strict=True):
            made = entering if norm is None else norm(entering[None])[0]
            none = torch.zeros_like(made) if norm is None else norm(torch.zeros_like(entering[None]))[0]
            module = getattr(block.mlp, name).original_component
            read = (module(made[None]) - module(none[None]))[0, :, neuron]
            torch.testing.assert_close(read, score(part) * scale, rtol=1e-2, atol=1e-2 * float(read.std()))
        one = torch.zeros(1, len(down_weight(bridge, 1)))
        one[0, neuron] = 1
        vector = change(block.mlp.out.original_component, one)
        for module in (norm_after(block, "mlp"), bridge.ln_final, bridge.unembed):
            vector = vector if module is None else change(module, vector)
    written = score("writes")
    torch.testing.assert_close(vector[0] / vector.norm(), written / written.norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("neurons", "options", "error", "message"), [
    ([], {}, SiteError, "no neurons; give at least one"),
    (Site("mlp", layer=1), {}, SiteError, r"A neuron is a Site\('neuron', layer=…, neuron=…\), found Site"),
    (Site("neuron", layer=1), {}, SiteError, "A neuron is a Site"),
    (Site("neuron", layer=1, neuron=80), {}, SiteError, "Neuron 80 is out of range: layer 1 has 80 neurons, 0 to 79"),
    (Site("neuron", layer=9, neuron=0), {}, SiteError, "Layer 9 is out of range"),
    (SITES[0], {"k": 0}, LocateError, "k must be from 1 to the 400 tokens"),
])  # fmt: skip
def test_neurons_that_there_are_not_are_refused(neurons, options, error, message):
    with pytest.raises(error, match=message):
        locate.neuron_vocabulary(models.model("llama"), neurons, **options)


def test_models_without_neurons_are_refused():
    with pytest.raises(ModelError, match=r"no single MLP down projection .*mixture of experts"):
        locate.neuron_vocabulary(tiny.bridge("mixtral"), SITES)
    with pytest.raises(ModelError, match="What mlp reads in layer 1 of FalconH1ForCausalLM is not the"):
        locate.neuron_vocabulary(table.bridge("falcon_h1"), SITES[0])
