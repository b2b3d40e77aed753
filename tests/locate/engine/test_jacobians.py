"""Jacobians against derivatives and differences of whole passes, on each type of architecture."""

import pytest
import torch

from locate.engine import freeze
from locate.engine.jacobians import jacobians
from locate.errors import ModelError, SiteError
from tests import tiny
from tests.sampling import sampled

TOKENS = torch.tensor([[5, 17, 33, 42, 8, 99]])
POSITION, LAYERS = 3, [1, 2]


def final_state(model, layer, shift):
    """The state before the final norm at the last position, with a vector added to what enters a block."""
    found = []

    def add(value, hook):
        return torch.cat([value[:, :POSITION], value[:, POSITION, None] + shift, value[:, POSITION + 1 :]], dim=1)

    def keep(value, hook):
        found.append(value)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_in", add), ("ln_final.hook_in", keep)]):
        model(TOKENS)
    return found[-1][0, -1]


@pytest.mark.parametrize("kind", sampled([*tiny.CONFIGS, *tiny.OTHER_CONFIGS, *tiny.BESIDE_CONFIGS]))
def test_equals_derivatives_of_whole_passes(kind):
    # Experts' products are not made in double precision.
    dtype = torch.float32 if kind in ("mixtral", "qwen3_next", "llama4_text") else torch.float64
    model = tiny.bridge(kind, dtype=dtype, scale=2.0)
    found = jacobians(freeze(model, TOKENS), POSITION, LAYERS)
    for layer, one in zip(LAYERS, found, strict=True):
        none = torch.zeros(model.cfg.d_model, dtype=dtype)
        exact = torch.autograd.functional.jacobian(lambda shift, layer=layer: final_state(model, layer, shift), none)
        torch.testing.assert_close(one, exact, atol=1e-8 if dtype == torch.float64 else 1e-3, rtol=1e-4)
    assert found.abs().max() > 5e-3


def test_equals_differences():
    model = tiny.bridge("llama", scale=2.0)
    (found,) = jacobians(freeze(model, TOKENS), POSITION, [1])
    with torch.no_grad():
        for unit in (3, 17):
            step = 1e-2 * torch.eye(model.cfg.d_model)[unit]
            slope = (final_state(model, 1, step) - final_state(model, 1, -step)) / 2e-2
            torch.testing.assert_close(found[:, unit], slope, atol=5e-3, rtol=1e-2)


def test_neither_the_budget_nor_how_rows_are_made_changes_anything(monkeypatch):
    model = tiny.bridge("qwen3", dtype=torch.float64)
    whole = jacobians(freeze(model, TOKENS), POSITION, LAYERS)
    told = []
    parts = jacobians(freeze(model, TOKENS, budget=40), POSITION, LAYERS, done=told.append)
    torch.testing.assert_close(parts, whole)
    assert len(told) > 2
    assert sum(told) == model.cfg.d_model
    plain, copies = torch.autograd.grad, []

    def without_batches(*args, is_grads_batched=False, **options):
        if is_grads_batched:
            raise RuntimeError("no batching rule")
        copies.append(len(args[0]))
        return plain(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", without_batches)
    torch.testing.assert_close(jacobians(freeze(model, TOKENS), POSITION, LAYERS), whole)
    assert copies == [model.cfg.d_model]


def test_an_earlier_state_can_be_the_output():
    model = tiny.bridge("gpt2", dtype=torch.float64, scale=2.0)
    run = freeze(model, TOKENS)
    (found,) = jacobians(run, POSITION, [1], to_layer=3)
    (first,), (last,) = jacobians(run, 5, [1], to_layer=3), jacobians(run, 5, [3])
    # At the position that is read the derivative of the whole is that of its parts, one after the other.
    torch.testing.assert_close(last @ first, jacobians(run, 5, [1])[0])
    assert not torch.allclose(found, first)


def test_bad_input():
    run = freeze(tiny.bridge("llama"), TOKENS[:, :4].repeat(2, 1))
    with pytest.raises(SiteError, match="lead from layers up to a later one of at most 4; found"):
        jacobians(run, 1, [3], to_layer=3)
    with pytest.raises(SiteError, match="lead from layers"):
        jacobians(run, 1, [])
    with pytest.raises(SiteError, match=r"one row .* found 2 rows"):
        jacobians(run, 1, [3])


@pytest.mark.filterwarnings("ignore:.*cannot be resumed")
def test_what_cannot_be_resumed_is_refused(not_resumed):
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be resumed from the middle, so the derivative"):
        jacobians(freeze(tiny.bridge("llama"), TOKENS), POSITION, LAYERS)
