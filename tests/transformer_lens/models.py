"""Small models and texts for the tests of docs/transformer_lens.md."""

from functools import cache

import torch

import locate
from tests import tiny
from tests.architectures import table

TOKENS = torch.tensor([[5, 6, 7, 8, 9]])
FACT = locate.Fact(prompt="{} is located in the city of", subject="The Louvre", target="Paris")
OTHER = "The Tower"  # one token differs
SWAP = locate.TokenSwap(OTHER)


def hf_model(kind):
    """A Hugging Face model of this kind, with biases and gains that are not what they are before training."""
    small = {**tiny.CONFIGS, **tiny.OTHER_CONFIGS, **tiny.BESIDE_CONFIGS}
    hf = tiny.hf_model(kind) if kind in small else table.hf_model(kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3
    return hf


def fresh(kind):
    """A bridge of its own, which a test may change."""
    return locate.load_model(hf_model(kind), tiny.tokenizer())


@cache
def model(kind):
    """A bridge that several tests use, and none changes."""
    return fresh(kind)


def hooked(bridge, tokens, *hooks):
    """Whole passes under TransformerLens' hooks: the last position's logits."""
    with torch.no_grad():
        return bridge.run_with_hooks(tokens, fwd_hooks=list(hooks))[:, -1]


@torch.no_grad()
def cached(bridge, tokens=TOKENS):
    """All states of a pass, by TransformerLens."""
    return bridge.run_with_cache(tokens)[1]


def pair(bridge):
    """The fact's tokens, those of the swapped one, and the id of its answer."""
    clean = locate.encode_fact(bridge, FACT)
    other = locate.encode_fact(bridge, locate.Fact(prompt=FACT.prompt, subject=OTHER, target=FACT.target))
    return clean.tokens[None], other.tokens[None], bridge.tokenizer(" Paris").input_ids[0]
