"""A run that shares what lies below a change of weights, against a fresh one."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from locate import ModelError
from locate.engine import Branch, freeze, refreeze
from locate.engine.calls import BlockCall
from locate.model.held import exchange
from locate.model.weights import down_projection, hf_parameters
from tests import tiny

LENGTH, POSITION = 9, 3
# In a mixture of experts there is no single down-projection to change.
KINDS = [*tiny.CONFIGS, *(kind for kind in tiny.BESIDE_CONFIGS if kind != "qwen3_next")]
TOKENS = torch.randint(1, tiny.VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
KEEP = [f"blocks.{layer}.{hook}" for layer in (1, 3) for hook in ("hook_mlp_out", "hook_attn_out", "attn.hook_pattern")]


def padding():
    mask = torch.ones_like(TOKENS)
    mask[1, :4] = mask[2, :1] = 0
    return mask


def shift(value, hook):
    return value + 0.1 * torch.arange(value.shape[1])[None, :, None]


FORMS = {
    "plain": lambda: {},
    "kept": lambda: {"keep": KEEP},
    "padded": lambda: {"attention_mask": padding(), "keep": KEEP},
    "readouts": lambda: {"at": (torch.tensor([2, 0, 2]), torch.tensor([8, 3, 5]))},
    "hooked": lambda: {"hooks": [("embed.hook_out", shift)], "keep": KEEP},
    "hooked block": lambda: {"hooks": [("blocks.2.hook_in", shift)], "keep": KEEP},
}


@cache
def bridge(kind, dtype=torch.float32):
    return tiny.bridge(kind, dtype=dtype)


def changed(model, names):
    """New values for some parameters, and their old ones."""
    parameters = [hf_parameters(model)[name] for name in names]
    generator = torch.Generator().manual_seed(2)
    new = [p.data + torch.randn(p.shape, generator=generator).to(p) * p.data.std() for p in parameters]
    return list(zip(parameters, new, strict=True)), [(p, p.data) for p in parameters]


def same(found, expected):
    for name in ("_keys", "_values"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours), name
    for name in ("residuals",):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), name
    assert list(found.kept) == list(expected.kept)
    assert all(torch.equal(found.kept[name], value) for name, value in expected.kept.items())
    assert torch.equal(found.logits, expected.logits)
    states = torch.randn(2, LENGTH - POSITION, 32, generator=torch.Generator().manual_seed(3)).to(found.residuals[0])
    branches = [Branch(layer=layer, rows=torch.tensor([2, 1]), states=states) for layer in (0, 2)]
    assert torch.equal(found.resume(POSITION, branches), expected.resume(POSITION, branches))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exactly_a_fresh_run(kind, form):
    model, options = bridge(kind), FORMS[form]()
    base = freeze(model, TOKENS, **options)
    new, old = changed(model, [down_projection(model, layer).name for layer in (2, 3)])
    exchange(model, new)
    try:
        found, expected = refreeze(base), freeze(model, TOKENS, **options)
    finally:
        exchange(model, old)
    same(found, expected)
    assert not torch.equal(found.logits, base.logits)
    assert found.resumable


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_half_precision_is_exact_too(kind):
    model = bridge(kind, torch.bfloat16)
    base = freeze(model, TOKENS, keep=KEEP)
    new, old = changed(model, [down_projection(model, 1).name])
    exchange(model, new)
    try:
        same(refreeze(base), freeze(model, TOKENS, keep=KEEP))
    finally:
        exchange(model, old)


@pytest.mark.parametrize(
    ("names", "called"),
    [
        (["transformer.h.1.mlp.c_proj.weight"], 3),
        (["transformer.h.3.attn.c_attn.weight", "transformer.h.2.ln_1.bias"], 2),
        (["transformer.h.0.attn.c_proj.weight"], 4),
        ([], 0),
    ],
)
def test_only_what_a_change_can_reach_is_run(names, called, monkeypatch):
    model = bridge("gpt2")
    base = freeze(model, TOKENS, keep=KEEP)
    new, old = changed(model, names)
    exchange(model, new)
    calls, replay = [], BlockCall.replay
    monkeypatch.setattr(BlockCall, "replay", lambda *args: calls.append(1) or replay(*args))
    try:
        found = refreeze(base)
        assert len(calls) == called
        shared = 4 - called
        assert [a is b for a, b in zip(found.residuals, base.residuals, strict=True)] == [
            layer <= shared for layer in range(5)
        ]
        assert [found._keys[layer] is base._keys[layer] for layer in range(4)] == [layer < shared for layer in range(4)]
        same(found, freeze(model, TOKENS, keep=KEEP))
    finally:
        exchange(model, old)


@pytest.mark.parametrize("names", [["transformer.wte.weight"], ["transformer.wpe.weight", "transformer.ln_f.weight"]])
def test_a_change_below_all_blocks_is_run_afresh(names):
    model = bridge("gpt2")
    base = freeze(model, TOKENS, keep=KEEP)
    new, old = changed(model, names)
    exchange(model, new)
    try:
        found = refreeze(base)
        assert not torch.equal(found.logits, base.logits)
        same(found, freeze(model, TOKENS, keep=KEEP))
    finally:
        exchange(model, old)


def test_a_run_that_cannot_be_resumed_is_run_afresh():
    model = bridge("llama")
    base = replace(freeze(model, TOKENS, keep=KEEP), resumable=False)
    new, old = changed(model, [down_projection(model, 2).name])
    exchange(model, new)
    try:
        found, expected = refreeze(base), freeze(model, TOKENS, keep=KEEP)
    finally:
        exchange(model, old)
    assert not found.resumable
    same(replace(found, resumable=True), expected)
    assert not any(a is b for a, b in zip(found.residuals, base.residuals, strict=True))


def test_what_is_shared_must_be_known():
    model = tiny.bridge("llama")
    base = freeze(model, TOKENS)
    with torch.no_grad():
        down_projection(model, 2).parameter.mul_(2)
    with pytest.raises(ModelError, match="was changed in place since this run was frozen"):
        refreeze(base)


def test_nothing_is_left_on_the_model():
    model = tiny.bridge("llama")
    base = freeze(model, TOKENS, keep=KEEP)
    before = [name for name, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks]
    new, _ = changed(model, [down_projection(model, 2).name])
    exchange(model, new)
    refreeze(base)
    assert before == [name for name, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks]
