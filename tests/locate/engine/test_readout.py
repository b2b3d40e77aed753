"""Logits read from the last residual state, against the model's own."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from locate.engine import freeze
from locate.engine.readout import read_logits
from tests import tiny

TOKENS = torch.randint(1, tiny.VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
# What is done to logits after the unembedding: multiplied, divided, capped, or several of these.
AFTER = {
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "gemma2": {
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
        "head_dim": 8,
    },
    "gemma3_text": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "head_dim": 8},
}


def agrees(model, plain):
    run = freeze(model, TOKENS)
    with torch.no_grad():
        expected = plain(TOKENS).logits
        found = torch.stack([read_logits(model, row) for row in run.residuals[-1]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    return expected


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_logits_are_the_models_own(kind):
    plain = tiny.hf_model(kind)
    agrees(locate.load_model(tiny.hf_model(kind), tiny.tokenizer()), plain)


@pytest.mark.parametrize("kind", AFTER)
def test_what_the_architecture_does_to_logits_is_done(kind):
    config = AutoConfig.for_model(kind, **{**tiny.CONFIGS["llama"], **AFTER[kind]})

    def made():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(20)
        return model

    model = locate.load_model(made(), tiny.tokenizer())
    expected = agrees(model, made())
    with torch.no_grad():
        bare = model.unembed(model.ln_final(freeze(model, TOKENS).residuals[-1]))
    assert not torch.allclose(bare, expected, rtol=0.1)  # otherwise nothing was tried
