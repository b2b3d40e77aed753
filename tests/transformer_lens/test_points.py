"""What TransformerLens' hook points show and take, and that the toolkit reads and writes what it means to."""

import numpy as np
import pytest
import torch

import locate
from locate.engine import Branch, freeze
from locate.engine.gradients import backward_passes
from locate.engine.reach import reaching_layers
from tests.transformer_lens.models import FACT, SWAP, TOKENS, cached, fresh, hf_model, hooked, model, pair

pytestmark = pytest.mark.filterwarnings("ignore:The corruption changes probability by only")

SEQUENTIAL = ["llama", "gpt2", "gemma3_text", "olmo2", "granite"]
MIDDLE = "blocks.1.hook_resid_mid"


def returned(values):
    def hook(value, hook):
        return values

    return hook


def in_place(values, position: int | slice = slice(None)):
    def hook(value, hook):
        value[:, position] = values[:, position]

    return hook


@pytest.mark.parametrize("kind", [*SEQUENTIAL, "llama, folded"])
def test_a_patch_in_the_middle_that_is_returned_reaches_the_mlp_alone(kind, library):
    bridge = fresh(kind.partition(",")[0])
    if "folded" in kind:
        bridge.enable_compatibility_mode()
    values = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    with library:
        for point in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post"):
            name = f"blocks.1.{point}"
            one, other = (hooked(bridge, TOKENS, (name, make(values))) for make in (returned, in_place))
            assert torch.equal(one, other) == (name != MIDDLE), point
    if bridge.compatibility_mode:
        return
    clean, corrupt, answer = pair(bridge)
    source = cached(bridge, clean)[MIDDLE]
    literal = [
        hooked(bridge, corrupt, (MIDDLE, in_place(source, position))).softmax(-1)[0, answer].item()
        for position in range(corrupt.shape[1])
    ]
    patched = locate.patch(bridge, FACT, SWAP, sites="resid_mid", progress=False)
    np.testing.assert_allclose(patched.values[1], literal, rtol=1e-4, atol=1e-7)


def slope(bridge, name, make, way):
    """How fast a logit moves when a state is shifted that way, by whole passes."""
    step = 1e-2

    def by(size):
        return hooked(bridge, TOKENS, (name, lambda value, hook: make(value + way * size)(value, hook)))[0, 11].item()

    return (by(step) - by(-step)) / (2 * step)


def gradients(bridge, names):
    """The toolkit's, of the same logit."""
    run, found = freeze(bridge, TOKENS), {}
    branch = Branch(layer=0, rows=torch.tensor([0]), states=run.residuals[0])

    def measure(logits, rows):
        return logits[:, 11:]

    backward_passes(run, 0, branch, names, measure, lambda tape: found.update(tape.gradients()))
    assert set(found) == set(names)
    return found


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_backward_hook_in_the_middle_gives_the_gradient_of_the_mlp_alone(kind, library):
    bridge, seen, told = model(kind), [], []
    way = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    branch, both = (slope(bridge, MIDDLE, make, way) for make in (returned, in_place))
    forward = (MIDDLE, lambda value, hook: seen.append(value) or value.retain_grad())
    backward = (MIDDLE, lambda gradient, hook: told.append(gradient))
    with library:
        for before, after in ([[forward], []], [[], [backward]], [[forward], [backward]]):
            with bridge.hooks(fwd_hooks=before, bwd_hooks=after):
                bridge(TOKENS)[0, -1, 11].backward()
        alone, beside = ((value.grad * way).sum().item() for value in seen)
        assert branch != pytest.approx(both, rel=0.05)
        assert alone == pytest.approx(both, rel=0.01)
        assert [(gradient * way).sum().item() for gradient in told] == pytest.approx([branch] * 2, rel=0.01)
        assert beside == pytest.approx(branch, rel=0.01)
    name = "blocks.1.hook_attn_out"
    assert (gradients(bridge, [name])[name] * way).sum().item() == pytest.approx(both, rel=0.01)


def test_a_point_that_is_wired_lazily_hears_no_plain_hook(library):
    names = ["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    heard: list[str] = []
    with library:
        for kind in ("llama", "granite"):
            bridge = fresh(kind)
            for name in names:
                bridge.hook_dict[name].register_forward_hook(lambda *_, name=name: heard.append(name))
            heard.clear()
            bridge(TOKENS)
            assert heard == ([] if kind == "granite" else names)
            heard.clear()
            hooked(bridge, TOKENS, *((name, lambda value, hook: None) for name in names))
            assert heard == names
    bridge = model("granite")
    kept, states = freeze(bridge, TOKENS, keep=names).kept, cached(bridge)
    before, middle, after = (states[f"blocks.1.hook_resid_{place}"] for place in ("pre", "mid", "post"))
    torch.testing.assert_close(kept[names[0]], middle - before)
    torch.testing.assert_close(kept[names[1]], after - middle)


@pytest.mark.parametrize(("point", "setter"), [
    ("attn.hook_result", "set_use_attn_result"), ("hook_q_input", "set_use_split_qkv_input"),
    ("hook_k_input", "set_use_split_qkv_input"), ("hook_v_input", "set_use_split_qkv_input"),
    ("hook_attn_in", "set_use_attn_in"), ("hook_mlp_in", "set_use_hook_mlp_in"),
])  # fmt: skip
def test_points_that_wait_for_a_setter(point, setter, library):
    bridge, name, heard = fresh("llama"), f"blocks.1.{point}", []
    with library:
        with pytest.raises(ValueError, match=setter):
            hooked(bridge, TOKENS, (name, lambda value, hook: None))
        bridge.hook_dict[name].add_hook(lambda tensor, hook: heard.append(tensor))
        bridge(TOKENS)
        assert not heard
        assert name not in cached(bridge)
        getattr(bridge, setter)(True)
        assert name in cached(bridge)
        getattr(bridge, setter)(False)
    with pytest.raises(locate.ModelError, match=r"found no tensor.* set_use_"):
        locate.patch(bridge, FACT, SWAP, sites=point, progress=False)


def test_what_a_head_adds_is_patched_without_a_setter(library):
    bridge = fresh("llama")
    clean, corrupt, answer = pair(bridge)
    patched = locate.patch(bridge, FACT, SWAP, sites="attn_head_result", progress=False)
    name = "blocks.1.attn.hook_result"
    bridge.set_use_attn_result(True)
    source = cached(bridge, clean)[name]
    with library:
        assert source.shape[2:] == (4, 32)

    def one_head(value, hook):
        value[:, :, 2] = source[:, :, 2]

    literal = hooked(bridge, corrupt, (name, one_head)).softmax(-1)[0, answer]
    assert patched.values.sel(layer=1, head=2).item() == pytest.approx(literal.item(), rel=1e-4)


def test_a_hook_is_told_the_canonical_name(library):
    bridge, told = model("llama"), []
    names = ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_post"]
    with library:
        hooked(bridge, TOKENS, *((name, lambda value, hook: told.append(hook.name)) for name in names))
        assert sorted(told) == ["blocks.1.hook_out", "blocks.1.mlp.hook_out", "blocks.1.mlp.out.hook_in"]
    assert set(freeze(bridge, TOKENS, keep=names).kept) == set(names)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "phi3"])
def test_no_gradient_is_kept_at_a_head(kind, library):
    bridge = model(kind)
    names = [f"blocks.1.attn.hook_{part}" for part in ("q", "k", "v", "z")]
    seen: list[torch.Tensor] = []

    def keep(value, hook):
        value.retain_grad()
        seen.append(value)

    with library:
        with bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
            logit = bridge(TOKENS)[0, -1, 11]
        found = torch.autograd.grad(logit, seen, retain_graph=True, allow_unused=True)
        logit.backward()
        assert [value.grad for value in seen] == [None] * 4
        assert list(found) == [None] * 4
    for name, gradient in gradients(bridge, names).items():
        way = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        wanted = pytest.approx(slope(bridge, name, returned, way), rel=0.01, abs=1e-4)
        assert (gradient * way).sum().item() == wanted


@pytest.mark.parametrize(("kind", "factor"), [("gemma3_text", 32**0.5), ("granite", 3.0), ("llama", 1.0)])
def test_the_embedding_is_shown_as_it_enters_the_stream(kind, factor, library):
    bridge = fresh(kind)
    clean, _, answer = pair(bridge)
    shown = cached(bridge, clean)["hook_embed"]
    with library:
        torch.testing.assert_close(shown, bridge.W_E[clean].detach() * factor)
    draws = np.random.RandomState(1).randn(2, 2, 32)
    noisy = shown[:, :2] + torch.tensor(draws * 3 * float(shown[0, :2].std()), dtype=torch.float32)
    hf = hf_model(kind)

    def put(_module, args, kwargs):
        states = args[0].clone()
        states[:, :2] = noisy
        return (states, *args[1:]), kwargs

    hf.model.layers[0].register_forward_pre_hook(put, with_kwargs=True)
    with torch.no_grad():
        literal = hf(clean.expand(2, -1)).logits[:, -1].softmax(-1)[:, answer].mean()
    noise = locate.GaussianNoise(samples=2, seed=1, scale=3.0)
    trace = locate.causal_trace(bridge, FACT, kinds=["resid"], corruption=noise, positions="last", progress=False)
    assert trace.corrupted == pytest.approx(literal.item(), rel=1e-4)


def test_a_start_at_a_layer_runs_the_layers_below_it(library):
    bridge, ran = fresh("llama"), []
    for layer, block in enumerate(bridge.blocks):
        block.original_component.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    states = cached(bridge)["blocks.2.hook_resid_pre"]
    run = freeze(bridge, TOKENS)
    states[:, -1] *= 2
    ran.clear()
    with library, torch.no_grad():
        whole = bridge(states, start_at_layer=2)[:, -1]
        assert ran == [0, 1, 2, 3]
    ran.clear()
    branch = Branch(layer=2, rows=torch.tensor([0]), states=states[:, -1:])
    resumed = run.resume(4, [branch])
    assert ran == [2, 3]
    torch.testing.assert_close(resumed, whole, rtol=1e-4, atol=1e-5)


def test_what_a_token_brings_beside_the_stream(library):
    scores, others = {}, {}
    for kind in ("llama", "gemma4_text"):
        bridge = model(kind)
        clean, corrupt, _ = pair(bridge)
        source = cached(bridge, clean)["blocks.0.hook_resid_pre"]
        found = hooked(bridge, corrupt, ("blocks.0.hook_resid_pre", in_place(source, 1)))
        others[kind] = (found - hooked(bridge, clean)).abs().max().item()
        scores[kind] = locate.patch(bridge, FACT, SWAP, sites="block_in", progress=False).scores.sel(position=1)
    with library:
        assert others["llama"] < 1e-5
        assert others["gemma4_text"] > 0.1
    np.testing.assert_allclose(scores["llama"].sel(layer=0), 1, atol=1e-3)
    np.testing.assert_allclose(scores["gemma4_text"].sel(layer=0), 1, atol=1e-3)
    trace = locate.causal_trace(model("gemma4_text"), FACT, kinds=["resid"], positions="last", progress=False)
    assert trace.info["corrupted"][0] == "embed.hook_out"
    assert len(trace.info["corrupted"]) == 2


def test_states_that_reach_nothing_below_shared_keys_and_values(library):
    bridge = model("gemma4_text")
    answers, silent = hooked(bridge, TOKENS), {}
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))

    def disturb(value, hook):
        value = value.clone()
        value[:, :-1] += noise
        return value

    lengths: list[int] = []
    with library:
        for layer in range(4):
            silent[layer] = torch.equal(hooked(bridge, TOKENS, (f"blocks.{layer}.hook_resid_post", disturb)), answers)
        assert silent == {0: False, 1: True, 2: True, 3: True}
        hf = hf_model("gemma4_text")
        for layer in hf.model.layers:
            layer.register_forward_hook(lambda _module, args, *_: lengths.append(args[0].shape[1]))
        hf(TOKENS, logits_to_keep=1)
        hf.generate(TOKENS, max_new_tokens=1, do_sample=False)
        assert lengths == [5, 5, 1, 1] * 2
    trace = locate.causal_trace(bridge, FACT, kinds=["resid"], progress=False)
    later = trace.scores.sel(kind="resid")[:-1, 1:]
    np.testing.assert_allclose(later, trace.corrupted, rtol=1e-6)
    assert list(reaching_layers(bridge)) == [0]
