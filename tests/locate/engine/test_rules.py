"""Gradients by rules against plain transformers models whose modules have the rules written into them."""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import nn

from locate import LocateError, ModelError
from locate.engine import Branch, freeze
from locate.engine.gradients import backward_passes
from locate.engine.multiplying import how_mlps_multiply
from locate.engine.rules import GIM, GRADIENT, RELP, Rules
from locate.model.norms import NormShape
from locate.patching.estimating import estimator
from tests import tiny
from tests.architectures import table

TOKENS = torch.tensor([[5, 9, 33, 7, 21, 60], [5, 9, 33, 8, 22, 61]])


def measure(logits, rows):
    return (logits[:, [7]] - logits[:, [9]]).float()


def entering(bridge, rules, position=0, names=("blocks.0.hook_resid_pre",), **options):
    """Gradients at hook points, of the frozen run's own states."""
    run, kept = freeze(bridge, TOKENS), []
    branch = Branch(layer=0, rows=torch.arange(len(TOKENS)), states=run.residuals[0][:, position:])

    def use(tape):
        kept.append((tape.values, tape.gradients()))

    backward_passes(run, position, branch, list(names), measure, use, rules=rules, **options)
    values, gradients = ({name: torch.cat([one[i][name] for one in kept]) for name in names} for i in (0, 1))
    return values, gradients


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "olmo2", "mistral", "granite", "phi3"])
def test_relevance_is_conserved_from_layer_to_layer(kind):
    """With patterns constant and no bias anywhere, what is attributed to each layer's stream is the metric."""
    bridge = tiny.bridge(kind)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(4)] + ["blocks.3.hook_resid_post"]
    rules = Rules(frozen_norms=True, identity=True, halves=True, pattern="frozen")
    values, gradients = entering(bridge, rules, names=names)
    wanted = measure(bridge(TOKENS)[:, -1].detach(), None)[:, 0]
    for name in names:
        found = (values[name] * gradients[name]).sum((1, 2))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    plain = entering(bridge, GRADIENT, names=names)[1]
    total = (values[names[0]] * plain[names[0]]).sum((1, 2))
    assert float((total - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def weighed(value, factor):
    return value * factor + (value * (1 - factor)).detach()


def frozen_norm(module, args, output):
    """Root mean squares, or deviations, as constants."""
    states = args[0]
    if isinstance(module, nn.LayerNorm):
        states = states - states.mean(-1, keepdim=True)
        scale = (states.pow(2).mean(-1, keepdim=True) + module.eps).sqrt().detach()
        return states / scale * module.weight + module.bias
    scale = (states.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt().detach()
    return states / scale * module.weight


def relp_llama_mlp(module, args, output):
    gate, up = module.gate_proj(args[0]), module.up_proj(args[0])
    product = (module.act_fn(gate) / gate).detach() * gate * up.detach() + module.act_fn(gate).detach() * up
    return module.down_proj(product / 2)


def relp_gpt2_mlp(module, args, output):
    before = module.c_fc(args[0])
    return module.c_proj((module.act(before) / before).detach() * before)


def norms_of(plain):
    return [one for one in plain.modules() if "norm" in type(one).__name__.lower()]


def literal_gradient(plain, hooks, softmax=None):
    """The gradient with respect to what enters the first block, of a plain model with hooks."""
    block = (plain.transformer.h if hasattr(plain, "transformer") else plain.model.layers)[0]
    kept = {}

    def enter(module, args, kwargs):
        kept["in"] = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        return ((kept["in"], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": kept["in"]})

    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        if softmax is not None:
            stack.enter_context(patch.object(nn.functional, "softmax", softmax))
        logits = plain(TOKENS).logits[:, -1]
    return torch.autograd.grad(measure(logits, None).sum(), kept["in"])[0]


@pytest.mark.parametrize(("kind", "mlp"), [("llama", relp_llama_mlp), ("gpt2", relp_gpt2_mlp)])
def test_relevance_propagation_is_as_written_out(kind, mlp):
    plain = tiny.hf_model(kind)
    blocks = plain.transformer.h if kind == "gpt2" else plain.model.layers
    hooks = [*((norm, frozen_norm) for norm in norms_of(plain)), *((block.mlp, mlp) for block in blocks)]
    expected = literal_gradient(plain, hooks)
    found = entering(tiny.bridge(kind), RELP)[1]["blocks.0.hook_resid_pre"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    unruled = literal_gradient(plain, [])
    assert float((expected - unruled).abs().max()) > 0.05 * float(expected.abs().max())


class _Softer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return torch.softmax(scores, -1)

    @staticmethod
    def backward(ctx, gradient):
        soft = torch.softmax(ctx.saved_tensors[0] / 2, -1)
        return soft * (gradient - (gradient * soft).sum(-1, keepdim=True))


def test_gim_is_as_written_out():
    plain = tiny.hf_model("llama")

    def factor(share):
        return lambda module, args, output: weighed(output, share)

    hooks = [(norm, frozen_norm) for norm in norms_of(plain)]
    for block in plain.model.layers:
        hooks += [(block.self_attn.q_proj, factor(0.25)), (block.self_attn.k_proj, factor(0.25))]
        hooks += [(block.self_attn.v_proj, factor(0.5))]
        hooks += [(block.mlp.gate_proj, factor(0.5)), (block.mlp.up_proj, factor(0.5))]
    expected = literal_gradient(plain, hooks, softmax=lambda scores, **options: _Softer.apply(scores))
    found = entering(tiny.bridge("llama"), GIM)[1]["blocks.0.hook_resid_pre"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("rules", [GRADIENT, RELP, GIM], ids=["gradient", "relp", "gim"])
def test_the_suffix_has_the_gradients_of_the_whole(rules):
    names = ["blocks.1.attn.hook_v", "blocks.2.hook_mlp_out", "blocks.3.mlp.out.hook_in"]
    bridge = tiny.bridge("gemma3_text")
    whole = entering(bridge, rules, names=names)[1]
    late = entering(bridge, rules, position=3, names=names)[1]
    one_by_one = entering(bridge, rules, position=3, names=names, most=1)[1]
    for name in names:
        size = float(whole[name].abs().max())
        torch.testing.assert_close(late[name], whole[name][:, 3:], rtol=1e-3, atol=1e-4 * size)
        torch.testing.assert_close(one_by_one[name], late[name], rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize(("kind", "rules", "dtype"), [
    ("gemma3_text", RELP, torch.float32), ("gemma3_text", GIM, torch.bfloat16), ("olmo2", RELP, torch.float32),
])  # fmt: skip
def test_what_norms_take_and_give_has_the_gradient_of_the_stream(kind, rules, dtype):
    """What a block adds may be the very output of a norm, and what its MLP reads the input of one."""
    names = [f"blocks.1.hook_{name}" for name in ("mlp_out", "attn_out", "resid_mid", "resid_post")]
    mlp, attention, branch, post = entering(tiny.bridge(kind, dtype=dtype), rules, names=names)[1].values()
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    size = float(post.abs().max())
    torch.testing.assert_close(mlp / size, post / size, **near)
    torch.testing.assert_close(attention / size, (post + branch) / size, **near)
    assert float(branch.abs().max()) > 0.1 * size


def test_the_forward_pass_stays_the_models_own():
    bridge = tiny.bridge("gemma3_text")
    names = ["blocks.2.hook_resid_post", "blocks.2.attn.hook_pattern"]
    for rules in (RELP, GIM):
        for name, value in entering(bridge, rules, names=names)[0].items():
            assert torch.equal(value, entering(bridge, GRADIENT, names=names)[0][name])


def test_how_mlps_multiply_is_found():
    kinds = {"gpt2": "plain", "llama": "gated", "phi3": "gated", "bloom": "plain", "falcon": "plain", "mixtral": None}
    assert {kind: how_mlps_multiply(tiny.bridge(kind))[0] for kind in kinds} == kinds


def test_mlps_without_a_rule_are_named():
    with pytest.warns(UserWarning, match="in layers 0, 1, 2, 3 are no function of one projection"):
        entering(tiny.bridge("mixtral"), RELP)


def test_a_pattern_that_is_no_softmax_of_its_scores_is_refused():
    with pytest.raises(ModelError, match="not the softmax of its scores alone"):
        entering(table.bridge("gpt_oss"), GIM)


def test_a_norm_whose_scale_cannot_be_held_is_refused():
    states = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match="cannot be held constant"):
        NormShape.of(nn.Tanh(), states).scaled(states, states.tanh())


def test_an_unknown_pattern_is_refused():
    with pytest.raises(LocateError, match="pattern must be one of"):
        estimator("relp", pattern="other")
    with pytest.raises(LocateError, match="only relp"):
        estimator("atp", pattern="half")
