"""A frozen run computes with the weights that it was frozen with, whatever edit the model has by then."""

from dataclasses import replace

import pytest
import torch

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from locate import ModelError
from locate.engine import Branch, freeze
from locate.engine.gradients import backward_passes
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny

KINDS = ["llama", "gpt2", "gpt_neox", "gemma3_text", "olmo2"]
TOKENS = torch.randint(1, tiny.VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
POSITION = 3


def update_of(model):
    """A random change of two layers' down projections."""
    generator = torch.Generator().manual_seed(2)
    deltas = {}
    for layer in (1, 2):
        down = down_projection(model, layer)
        out, into = down.parameter.shape
        left, right = torch.randn(out, 1, generator=generator), torch.randn(1, into, generator=generator)
        deltas[down.name] = LowRank(left=0.5 * left, right=right)
    return WeightUpdate.make(model, deltas, method="test")


def states(requires_grad=False):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, TOKENS.shape[1] - POSITION, 32, generator=generator).requires_grad_(requires_grad)


def branch(given=None):
    return Branch(layer=1, rows=torch.tensor([1, 0]), states=states() if given is None else given)


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_base_and_edited_runs_resume_under_their_own_weights(kind, resumable):
    model = tiny.bridge(kind)
    update, before = update_of(model), prints(model)
    base = replace(freeze(model, TOKENS), resumable=resumable)
    as_base = base.resume(POSITION, [branch()])
    update.apply(model)
    during = prints(model)
    edited = replace(freeze(model, TOKENS), resumable=resumable)
    as_edited = edited.resume(POSITION, [branch()])
    assert (as_edited - as_base).abs().max() > 0.1 * as_base.std()
    assert torch.equal(base.resume(POSITION, [branch()]), as_base)
    assert prints(model) == during
    update.revert(model)
    assert torch.equal(edited.resume(POSITION, [branch()]), as_edited)
    assert torch.equal(base.resume(POSITION, [branch()]), as_base)
    assert prints(model) == before
    twin = tiny.bridge(kind)  # edited by hand, and run whole
    with torch.no_grad():
        for name in update.parameters:
            hf_parameters(twin)[name].add_(update.delta(name))
    literal = replace(freeze(twin, TOKENS), resumable=False).resume(POSITION, [branch()])
    torch.testing.assert_close(as_edited, literal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_advance_and_record_under_their_own_weights(kind):
    model = tiny.bridge(kind)
    update, base = update_of(model), freeze(model, TOKENS)
    names = ["blocks.2.hook_mlp_out", "ln_final.hook_in"]

    def found(run):
        recorded = run.record(POSITION, branch(), names)
        return [run.advance(POSITION, branch(), [3])[3], *(recorded[name] for name in names)]

    as_base = found(base)
    with update.applied(model):
        edited = freeze(model, TOKENS)
        as_edited = found(edited)
        assert all(torch.equal(a, b) for a, b in zip(found(base), as_base, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found(edited), as_edited, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(as_base, as_edited, strict=True))


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_a_resume_are_those_of_its_own_weights(kind, resumable):
    model = tiny.bridge(kind)
    update = update_of(model)

    def gradient(run):
        given = states(requires_grad=True)
        logits = run.resume(POSITION, [branch(given)], grad=True)
        logits.logsumexp(-1).sum().backward()  # when the run's weights are gone from the model again
        return given.grad

    with update.applied(model):
        edited = replace(freeze(model, TOKENS), resumable=resumable)
        expected = gradient(edited)
    base = gradient(replace(freeze(model, TOKENS), resumable=resumable))
    torch.testing.assert_close(gradient(edited), expected, rtol=0, atol=0)
    assert (base - expected).abs().max() > 0.01 * expected.std()


def test_gradients_of_states_are_those_of_the_runs_own_weights():
    model = tiny.bridge("gpt2")
    update, base = update_of(model), freeze(model, TOKENS)
    names = ["blocks.1.hook_mlp_out"]

    def found(run):
        kept = []
        backward_passes(
            run, 0, Branch(layer=0, rows=torch.arange(len(TOKENS)), states=run.residuals[0]), names,
            lambda logits, rows: logits[:, [7]], lambda tape: kept.append(tape.gradients()[names[0]]),
        )  # fmt: skip
        return torch.cat(kept)

    expected = found(base)
    with update.applied(model):
        assert torch.equal(found(base), expected)
        assert not torch.equal(found(freeze(model, TOKENS)), expected)


@pytest.mark.parametrize("resumable", [True, False])
def test_weights_are_what_they_were_also_when_a_resume_fails(resumable):
    model = tiny.bridge("llama")
    update, before = update_of(model), prints(model)
    with update.applied(model):
        edited, during = replace(freeze(model, TOKENS), resumable=resumable), prints(model)
    seen = []

    def fail(value, hook):
        seen.append(prints(model))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        edited.resume(POSITION, [branch()], hooks=[("blocks.2.hook_mlp_out", fail)])
    assert seen == [during]
    assert prints(model) == before
    assert not update.is_applied(model)


@pytest.mark.parametrize("resumable", [True, False])
def test_a_run_whose_weights_are_gone_is_refused(resumable):
    model = tiny.bridge("llama")
    run = replace(freeze(model, TOKENS), resumable=resumable)
    name = "model.layers.2.mlp.up_proj.weight"
    with torch.no_grad():
        hf_parameters(model)[name][0, 0] += 1
    with pytest.raises(ModelError, match=f"{name} was changed in place since this run was frozen"):
        run.resume(POSITION, [branch()])
    if resumable:
        with pytest.raises(ModelError, match="changed in place"):
            run.advance(POSITION, branch(), [3])
        with pytest.raises(ModelError, match="changed in place"):
            run.record(POSITION, branch(), ["ln_final.hook_in"])
    assert freeze(model, TOKENS).resume(POSITION, [branch()]).isfinite().all()


def test_any_number_of_edits_may_come_and_go():
    model = tiny.bridge("gpt2")
    first, base = update_of(model), freeze(model, TOKENS)
    as_base = base.resume(POSITION, [branch()])
    first.apply(model)
    second, edited = update_of(model), freeze(model, TOKENS)
    as_edited = edited.resume(POSITION, [branch()])
    for _ in range(3):
        with second.applied(model):
            assert torch.equal(base.resume(POSITION, [branch()]), as_base)
            assert torch.equal(edited.resume(POSITION, [branch()]), as_edited)
    first.revert(model)
    assert torch.equal(edited.resume(POSITION, [branch()]), as_edited)
    assert torch.equal(base.resume(POSITION, [branch()]), as_base)
