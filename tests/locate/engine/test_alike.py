"""Rows that begin as those of another run do, against the same rows run whole."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from locate.engine import Branch, freeze, freeze_alike, freeze_together, refreeze
from locate.model.held import exchange
from locate.model.weights import down_projection
from tests import tiny
from tests.counting import counted

LENGTH, FIRST = 12, 7  # beyond a sliding window of 6
CLEAN = torch.randint(1, tiny.VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
OWNERS = torch.tensor([1, 0, 1])
OTHERS = CLEAN[OWNERS].clone()
OTHERS[:, FIRST] = torch.tensor([5, 6, 7])
OTHERS[2, -1] = 8
AT = torch.arange(3).repeat_interleave(2), torch.tensor([2, LENGTH - 2] * 3)
ENDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
OTHER = {
    "mamba": {
        "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4, **ENDS,
    },
    "falcon with alibi": {**tiny.CONFIGS["falcon"], "alibi": True},
}  # fmt: skip
KINDS = [*tiny.CONFIGS, *tiny.BESIDE_CONFIGS, "mixtral", *OTHER]


@cache
def bridge(kind):
    """In double precision, in which a wrong state cannot pass for rounding; products of experts have none."""
    if kind not in OTHER:
        return tiny.bridge(kind, dtype=torch.float32 if kind in ("mixtral", "qwen3_next") else torch.float64)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.split()[0], **OTHER[kind])
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager")
    return locate.load_model(tiny.enlarged(made, 2.0), tiny.tokenizer())


def kept(model):
    blocks = [model.blocks[layer] for layer in (1, 3)]
    own = [f"blocks.{layer}.hook_mlp_out" for layer in (1, 3)] if hasattr(blocks[0], "mlp") else []
    own += ["embed.hook_out", "ln_final.hook_in", "blocks.0.hook_in"]
    return [*own, *(["blocks.3.attn.hook_z", "blocks.3.attn.hook_pattern"] if hasattr(blocks[1], "attn") else [])]


def noise(value, hook=None):
    """Noise on one position, other in each row."""
    value = value.clone()
    value[:, FIRST] += torch.randn(value[:, FIRST].shape, generator=torch.Generator().manual_seed(2)).to(value)
    return value


def close(found, expected):
    # Some models read their logits in single precision whatever they are in.
    tolerance = 1e-8 if found.dtype == expected.dtype == torch.float64 else 1e-6
    assert found.shape == expected.shape
    far, size = float((found - expected).abs().max()), float(expected.abs().max())
    assert far <= tolerance * size


def same(found, expected):
    for name in ("residuals", "kept", "_keys", "_values"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert len(ours) == len(theirs), name
        for key in range(len(theirs)) if name == "residuals" else theirs:
            close(ours[key], theirs[key])
    close(found.logits, expected.logits)
    assert torch.equal(found.tokens, expected.tokens)
    assert (found.resumable, found.entire) == (expected.resumable, expected.entire)
    # Both go on alike from before and behind the place where their rows part, and by whole passes.
    for position in (4, FIRST, 9):
        states = torch.randn(4, LENGTH - position, 32, generator=torch.Generator().manual_seed(3)).to(
            found.residuals[0]
        )
        branches = [Branch(layer=layer, rows=torch.tensor([2, 0, 0, 1]), states=states) for layer in (0, 2)]
        at = (torch.arange(8), torch.full((8,), LENGTH - 1))
        resumed = expected.resume(position, branches, at=at)
        close(found.resume(position, branches, at=at), resumed)
        close(replace(found, resumable=False).resume(position, branches, at=at), resumed)


@pytest.mark.parametrize("form", ["tokens", "noise"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_whole_run_of_all_rows(kind, form):
    model = bridge(kind)
    tokens, hooks = (OTHERS, []) if form == "tokens" else (CLEAN[OWNERS], [("embed.hook_out", noise)])
    clean = freeze(model, CLEAN, keep=kept(model))
    found, counts = counted(
        model, lambda: freeze_alike(clean, OWNERS, tokens, hooks=hooks, keep=kept(model)[1:], at=AT)
    )
    expected = freeze(model, tokens, hooks=hooks, keep=kept(model)[1:], at=AT)
    same(found, expected)
    whole = kind == "gemma4_text" or bool(clean.entire)
    assert counts == [len(OWNERS) * (LENGTH if whole else LENGTH - FIRST)] * 4
    if not whole:
        for layer in range(4):
            assert torch.equal(found.residuals[layer][:, :FIRST], clean.residuals[layer][OWNERS, :FIRST])


@pytest.mark.parametrize("kind", ["llama", "bloom", "gemma3_text"])
def test_rows_may_go_on_from_rows_that_went_on_from_others(kind):
    model, later = bridge(kind), FIRST + 2
    clean = freeze(model, CLEAN, keep=kept(model))
    between = freeze_alike(clean, OWNERS, OTHERS, keep=kept(model))
    rows, tokens = torch.tensor([2, 2, 0]), OTHERS[[2, 2, 0]].clone()
    tokens[:, later] = torch.tensor([9, 10, 11])
    found, counts = counted(model, lambda: freeze_alike(between, rows, tokens, keep=kept(model), at=AT))
    same(found, freeze(model, tokens, keep=kept(model), at=AT))
    assert counts == [len(rows) * (LENGTH - later)] * 4


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_it_is_run_again_with_other_weights(kind):
    model = bridge(kind)
    found = freeze_alike(freeze(model, CLEAN, keep=kept(model)), OWNERS, OTHERS, keep=kept(model), at=AT)
    parameter = down_projection(model, 2).parameter
    old = parameter.data
    exchange(model, [(parameter, old * 1.5)])
    try:
        again, expected = refreeze(found), freeze(model, OTHERS, keep=kept(model), at=AT)
    finally:
        exchange(model, [(parameter, old)])
    same(again, expected)
    assert float((again.logits - found.logits).abs().max()) > 1e-3


def test_it_has_the_weights_of_the_run_that_it_begins_with():
    model = bridge("llama")
    clean, expected = freeze(model, CLEAN), freeze(model, OTHERS)
    parameter = down_projection(model, 1).parameter
    old = parameter.data
    exchange(model, [(parameter, old * 1.5)])
    try:
        same(freeze_alike(clean, OWNERS, OTHERS), expected)
        swapped = OTHERS.clone()
        swapped[:, 0] = 3  # nothing is shared
        found = freeze_alike(clean, OWNERS, swapped)
    finally:
        exchange(model, [(parameter, old)])
    same(found, freeze(model, swapped))


def test_what_the_other_run_did_not_keep_is_found_all_the_same():
    model = bridge("gpt2")
    found = freeze_alike(freeze(model, CLEAN, keep=kept(model)[1:]), OWNERS, OTHERS, keep=kept(model))
    same(found, freeze(model, OTHERS, keep=kept(model)))


def test_nothing_is_left_on_the_model():
    model = bridge("llama")
    clean = freeze(model, CLEAN, keep=kept(model))
    before = [name for name, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks]
    freeze_alike(clean, OWNERS, OTHERS, hooks=[("embed.hook_out", noise)], keep=kept(model))
    assert before == [name for name, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks]


def test_what_all_rows_begin_with_is_run_once_where_it_is_worth_it():
    model = bridge("llama")
    freeze(model, CLEAN[:1])  # checks itself, once
    tokens = CLEAN[:1].repeat(5, 1)
    tokens[:, -2] = torch.arange(5) + 20
    found, counts = counted(model, lambda: freeze_together(model, tokens, keep=kept(model)))
    same(found, freeze(model, tokens, keep=kept(model)))
    assert counts == [LENGTH + 5 * 2] * 4
    tokens[:, 4] = torch.arange(5) + 20
    found, counts = counted(model, lambda: freeze_together(model, tokens))
    same(found, freeze(model, tokens))
    assert counts == [5 * LENGTH] * 4


def test_the_beginning_is_kept_once():
    model = bridge("llama")
    clean = freeze(model, CLEAN, keep=kept(model))
    found = freeze_alike(clean, OWNERS, OTHERS, keep=kept(model))
    held = [vars(one)["_own"] for one in (found.residuals, found.kept, found._keys, found._values)]
    for states in (held[0], *(by_name.values() for by_name in held[1:])):
        for one in states:
            assert one.untyped_storage().nbytes() == one.nbytes
            assert LENGTH - FIRST in one.shape[1:3]
