"""Weights that are held, put in place and exchanged, against changing them in place."""

import pytest
import torch
from torch import nn

import locate
from locate import ModelError
from locate.model.held import HeldWeights, exchange
from locate.model.weights import fingerprint, hf_parameters
from tests import tiny

TOKENS = torch.arange(3, 11)[None]


def everything(model):
    """A hash of every parameter that the bridge computes with, views and copies among them."""
    return [fingerprint(parameter) for module in model.modules() for parameter in module._parameters.values()
            if parameter is not None]  # fmt: skip


def others(model, seed=9):
    """New values for all of a model's parameters."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for parameter in hf_parameters(model).values():
        noise = 0.3 * torch.randn(parameter.shape, generator=generator)
        pairs.append((parameter, parameter.data + noise.to(parameter)))
    return pairs


@torch.no_grad()
def logits(model):
    return model(TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_exchanging_is_seen_wherever_a_change_in_place_is(kind, dtype):
    plain, other = tiny.hf_model(kind, dtype=dtype), tiny.hf_model(kind, dtype=dtype)
    model, twin = (locate.load_model(one, tiny.tokenizer()) for one in (plain, other))
    before = logits(model)
    pairs = others(model)
    exchange(model, pairs)
    with torch.no_grad():
        for (_, new), parameter in zip(pairs, hf_parameters(twin).values(), strict=True):
            parameter.copy_(new)
        assert torch.equal(plain(TOKENS).logits, other(TOKENS).logits)
    assert everything(model) == everything(twin)
    assert torch.equal(logits(model), logits(twin))
    assert not torch.equal(logits(model), before)
    block, same = model.blocks[1], twin.blocks[1]
    for component, name in (("mlp", "W_in"), ("mlp", "W_out"), ("attn", "W_Q"), ("attn", "W_O"), ("ln1", "w")):
        found, expected = (getattr(getattr(one, component, None), name, None) for one in (block, same))
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)


def test_exchanging_back_is_bit_for_bit_and_keeps_the_objects():
    model = tiny.bridge("gpt2")
    parameters, before, answer = hf_parameters(model), everything(model), logits(model)
    old = [(parameter, parameter.data) for parameter in parameters.values()]
    exchange(model, others(model))
    assert everything(model) != before
    exchange(model, old)
    assert everything(model) == before
    assert torch.equal(logits(model), answer)
    assert all(hf_parameters(model)[name] is parameter for name, parameter in parameters.items())


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_held_weights_are_put_in_place_and_taken_back(kind):
    model = tiny.bridge(kind)
    answer, values = logits(model), everything(model)
    held = HeldWeights.of(model)
    exchange(model, others(model))
    later, now = logits(model), everything(model)
    assert not torch.equal(later, answer)
    with held.entered():
        assert torch.equal(logits(model), answer)
        assert everything(model) == values
        with HeldWeights.of(model).entered():
            assert torch.equal(logits(model), answer)
    assert everything(model) == now
    with pytest.raises(KeyboardInterrupt), held.entered():
        raise KeyboardInterrupt
    assert everything(model) == now
    assert torch.equal(logits(model), later)


def test_nothing_is_copied():
    model = tiny.bridge("gpt2")
    pointers = {parameter.data_ptr() for parameter in hf_parameters(model).values()}
    held = HeldWeights.of(model)
    exchange(model, others(model))
    with held.entered():
        assert {parameter.data_ptr() for parameter in hf_parameters(model).values()} == pointers


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_gradient_through_held_weights_is_theirs_once_they_are_gone_again(kind):
    model = tiny.bridge(kind)
    embedded = [torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(3)]
    hf = model.original_model

    def loss(states):
        return hf(inputs_embeds=states).logits.logsumexp(-1).sum()

    for requires_grad in (True, False):
        for parameter in hf.parameters():
            parameter.requires_grad_(requires_grad)
        expected, own, wrong = (states.detach().requires_grad_() for states in embedded)
        loss(expected).backward()
        held = HeldWeights.of(model)
        before = [(parameter, parameter.data) for parameter in hf_parameters(model).values()]
        exchange(model, others(model))
        with held.entered(grad=True):
            value = loss(own)
        value.backward()
        torch.testing.assert_close(own.grad, expected.grad)
        loss(wrong).backward()
        assert not torch.allclose(wrong.grad, expected.grad, rtol=0.1)
        exchange(model, before)


def test_a_gradient_through_exchanged_weights_is_refused():
    model = tiny.bridge("gpt2")
    states = torch.randn(1, 5, 32, requires_grad=True)
    value = model.original_model(inputs_embeds=states).logits.sum()
    exchange(model, others(model))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("gpt2", "transformer.h.2.attn.c_attn.weight"),
        ("gemma3_text", "model.norm.weight"),
    ],
)
def test_a_change_in_place_is_noticed_and_named(kind, name, exchanged):
    model = tiny.bridge(kind)
    held = HeldWeights.of(model)
    with torch.no_grad():
        hf_parameters(model)[name].mul_(1.01)
    if exchanged:
        exchange(model, others(model))
    now = everything(model)
    with (
        pytest.raises(ModelError, match=f"{name} was changed in place since this run was frozen.*Freeze it again"),
        held.entered(),
    ):
        pytest.fail("it was entered")
    assert everything(model) == now
    with HeldWeights.of(model).entered():
        pass


def test_a_change_of_a_view_is_noticed_too():
    model = tiny.bridge("gpt2")
    held = HeldWeights.of(model)
    with torch.no_grad():
        model.blocks[1].attn.q.original_component.weight.mul_(2)
    with pytest.raises(ModelError, match=r"transformer.h.1.attn.c_attn.weight was changed"), held.entered():
        pytest.fail("it was entered")


def test_another_parameter_in_a_place_is_noticed():
    model = tiny.bridge("llama")
    held = HeldWeights.of(model)
    down = model.blocks[1].mlp.out.original_component
    down.weight = nn.Parameter(2 * down.weight.detach())
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.down_proj.weight is another parameter"), held.entered():
        pytest.fail("it was entered")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "phi3", "gpt_neox", "llama", "bloom"])
def test_mixed_weights_are_those_of_a_model_between(kind, dtype):
    model, twin = tiny.bridge(kind, dtype=dtype), tiny.bridge(kind, dtype=dtype)
    own, theirs = hf_parameters(model), hf_parameters(twin)
    base, pairs = HeldWeights.of(model), others(model)[3:]
    before = [(parameter, parameter.data) for parameter, _ in pairs]
    exchange(model, pairs)
    held = HeldWeights.of(model)
    exchange(model, before)
    middle = [(theirs[name], torch.lerp(one.data, new, 0.25)) for name, one in own.items()
              for parameter, new in pairs if parameter is one]  # fmt: skip
    exchange(twin, middle)
    mixed = base.mixed(held, 0.25)
    with mixed.entered():
        assert everything(model) == everything(twin)
        assert torch.equal(logits(model), logits(twin))
        with held.entered():
            assert not torch.equal(logits(model), logits(twin))
    # What does not differ is not copied, and what the bridge sees in a matrix lies in what was made of it.
    changed = {id(one) for one in mixed.differing(base)}
    assert changed == {id(one) for one in held.differing(base)}
    assert len(changed) < len({id(one) for one in model.original_model.parameters()})
    made = {one.data.untyped_storage().data_ptr() for one in mixed._held if id(one.parameter) in changed}
    assert len(made) == len(
        {one.data.untyped_storage().data_ptr() for one in held._held if id(one.parameter) in changed}
    )
    assert [base.mixed(held, share).differing(base) != [] for share in (0.0, 1.0)] == [True, True]


def test_weights_of_two_models_are_not_mixed():
    held, other = (HeldWeights.of(tiny.bridge("gpt2")) for _ in range(2))
    with pytest.raises(ModelError, match=r"another parameter in the other weights.*on one model"):
        held.mixed(other, 0.5)
