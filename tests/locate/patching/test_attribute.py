"""Attribution against slopes of whole passes, and each method against itself written out."""

import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import edit
import locate
from locate import LocateError, ModelError
from locate.engine import freeze
from locate.engine.rules import GIM, GRADIENT, RELP, Rules, Ruling
from locate.facts.questions import Questions
from locate.model.weights import down_projection
from locate.patching.estimating import ESTIMATORS
from tests import tiny
from tests.architectures import table
from tests.sampling import sampled

KINDS = [
    "gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "cohere", "falcon", "mpt",
]  # fmt: skip
OTHERS = ["gemma4_text:shared keys and values", "mixtral", "falcon_h1", "jamba"]
HOOKS = {
    "resid_pre": "hook_in", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "attn_head_z": "attn.hook_z",
    "attn_head_q": "attn.hook_q", "attn_head_k": "attn.hook_k", "attn_head_v": "attn.hook_v",
    "mlp_neurons": "mlp.out.hook_in",
}  # fmt: skip
CLEAN = "I think that Big Ben is in the city of"
FACT = locate.Fact(prompt="I think that {} is in the city of", subject="Big Ben", target="London", target_new="Rome")


@cache
def model(kind):
    return table.bridge(kind)


@cache
def prompts():
    ids = torch.tensor(tiny.tokenizer()(CLEAN)["input_ids"])
    other = ids.clone()
    other[4:6] = torch.tensor(tiny.tokenizer()(" London Paris")["input_ids"])[:2]
    return ids, other


def difference(logits):
    return (logits[:, 7] - logits[:, 9]).float()


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, progress=False, **options)


def attributed(kind, method, sites, **options):
    return quiet(locate.attribute, model(kind), *prompts(), metric=difference, method=method, sites=sites, **options)


def effects(kind, method, sites, **options):
    """Estimated effects site by site: layer, position, and unit where there is one."""
    unit = {"mlp_neurons": "neuron"}.get(sites, "head")
    by = ("layer", "position", unit) if sites in ("mlp_neurons",) or "head" in sites else None
    return attributed(kind, method, sites, by=by, **options).effect


@contextmanager
def shifted(bridge, hooks, rules=GRADIENT):
    """A pass with hooks, between what makes values by rules and what takes them."""
    ruling = Ruling.of(bridge, rules)
    with ruling.making(), bridge.hooks(fwd_hooks=hooks), ruling.taking():
        yield


def seen(bridge, tokens, names, hooks=()):
    """States at hook points, of a whole pass."""
    found = {}

    def look(name):
        return lambda value, hook: found.__setitem__(name, value.detach().clone())

    with torch.no_grad(), bridge.hooks(fwd_hooks=[*hooks, *((name, look(name)) for name in names)]):
        bridge(tokens[None])
    return found


def gradients(bridge, tokens, names, *, before=(), hooks=(), rules=GRADIENT):
    """Of the metric with respect to states at hook points, of a whole pass."""
    shifts = {}

    def shift(name):
        def hook(value, hook):
            shifts[name] = torch.zeros_like(value, requires_grad=True)
            return value + shifts[name]

        return hook

    with shifted(bridge, [*before, *((name, shift(name)) for name in names), *hooks], rules):
        measured = difference(bridge(tokens[None])[:, -1]).sum()
    return dict(
        zip(names, torch.autograd.grad(measured, [shifts[name] for name in names], materialize_grads=True), strict=True)
    )


def of_units(product, sites):
    """Sums over what is no unit: position, and unit where there is one."""
    if "head" in sites:
        return product.sum(-1)[0]
    return product[0] if sites == "mlp_neurons" else product.sum(-1)[0]


@pytest.mark.parametrize("kind", sampled([*KINDS, *OTHERS]))
def test_effects_are_the_slopes_of_patches(kind):
    bridge, (clean, corrupt) = model(kind), prompts()
    own_sites = [site for site, hook in HOOKS.items() if f"blocks.1.{hook}" in bridge.hook_dict]
    if kind == "falcon_h1":
        own_sites = ["resid_pre", "mlp_out"]
    if kind == "mixtral":
        own_sites.remove("mlp_neurons") if "mlp_neurons" in own_sites else None
    assert "resid_pre" in own_sites
    assert kind in OTHERS or own_sites == list(HOOKS)
    for site in own_sites:
        found = effects(kind, "atp", site)
        values, size = found.values, float(np.abs(found.values).max())
        assert size > 0
        generator = np.random.default_rng(0)
        largest = np.argsort(-np.abs(values), axis=None)[[0, 2, 5]]
        for flat in (*largest, *generator.integers(0, values.size, 2)):
            place = tuple(int(one) for one in np.unravel_index(flat, values.shape))
            layer, at = int(found["layer"][place[0]]), place[1:]
            name = f"blocks.{layer}.{HOOKS[site]}"
            own, its = (seen(bridge, ids, [name])[name] for ids in (clean, corrupt))
            moved = torch.zeros_like(own)
            moved[(0, *at)] = (its - own)[(0, *at)]
            step = 1e-2

            def measured(share, name=name, moved=moved):
                hooks = [(name, lambda value, hook: value + share * moved)]
                with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
                    return float(difference(bridge(clean[None])[:, -1].double())[0])

            slope = (measured(step) - measured(-step)) / (2 * step)
            assert float(values[place]) == pytest.approx(slope, rel=2e-2, abs=3e-3 * size), (site, place)


def stopped(layer):
    """No gradient through what a layer's attention and MLP add."""
    return [(f"blocks.{layer}.hook_{part}_out", lambda value, hook: value.detach()) for part in ("attn", "mlp")]


def averaged_in_size(each):
    each = torch.stack(each)
    return torch.sign(each.sum(0)) * each.abs().sum(0) / (len(each) - 1)


@pytest.mark.parametrize("site", ["attn_head_q", "attn_head_k"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_pattern_is_exchanged_and_layers_dropped_as_written_out(kind, site):
    bridge, (clean, corrupt) = model(kind), prompts()
    layers, n, every = range(3), len(clean), slice(None)
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    by_layer = [gradients(bridge, clean, patterns, hooks=stopped(layer)) for layer in layers]
    placed, whole = effects(kind, "atp*", site), attributed(kind, "atp*", site).effect
    assert placed.sizes["head"] == (2 if kind == "llama" and site == "attn_head_k" else 4)

    def expected(layer, head, position):
        hook, pattern = f"blocks.{layer}.{HOOKS[site]}", patterns[layer]
        its = seen(bridge, corrupt, [hook])[hook]

        def put(value, hook):
            value = value.clone()
            value[:, position, head] = its[:, position, head]
            return value

        change = seen(bridge, clean, [pattern], [(hook, put)])[pattern] - seen(bridge, clean, [pattern])[pattern]
        return averaged_in_size([(change * found[pattern]).sum() for found in by_layer])

    size = max(float(abs(whole).max()), float(abs(placed).max()))
    assert size > 1e-4
    for layer in layers:
        for head in range(placed.sizes["head"]):
            assert float(whole[layer, head]) == pytest.approx(float(expected(layer, head, every)), abs=1e-4 * size)
            for position in (4, n - 1):
                close = pytest.approx(float(expected(layer, head, position)), abs=1e-4 * size)
                assert float(placed[layer, position, head]) == close


@pytest.mark.parametrize("site", ["resid_pre", "attn_head_v", "mlp_out"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_other_sites_have_layers_dropped_as_written_out(kind, site):
    bridge, (clean, corrupt) = model(kind), prompts()
    names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(3)]
    own, its = (seen(bridge, ids, names) for ids in (clean, corrupt))
    by_layer = [gradients(bridge, clean, names, hooks=stopped(layer)) for layer in range(3)]
    found = effects(kind, "atp*", site).values
    for layer, name in enumerate(names):
        each = [of_units((its[name] - own[name]) * one[name], site) for one in by_layer]
        np.testing.assert_allclose(found[layer], averaged_in_size(each), atol=1e-4 * np.abs(found).max())
    plain = effects(kind, "atp", site).values
    assert np.abs(plain - found).max() > 1e-2 * np.abs(found).max()


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "attn_head_v", "mlp_neurons"])
@pytest.mark.parametrize("direction", ["break", "restore"])
@pytest.mark.parametrize(("method", "rules", "pattern"), [
    ("ig", GRADIENT, "gradient"), ("relp-ig", RELP, "gradient"), ("relp", RELP, "gradient"), ("gim", GIM, "gradient"),
    ("relp", replace(RELP, pattern="half"), "half"), ("relp-ig", replace(RELP, pattern="frozen"), "frozen"),
])  # fmt: skip
def test_gradients_are_taken_where_the_method_says(method, rules, pattern, direction, site):
    bridge, steps = model("llama"), 3
    target, source = prompts() if direction == "break" else prompts()[::-1]
    names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(3)]
    own, its = (seen(bridge, ids, [*names, "blocks.0.hook_in"]) for ids in (target, source))
    entering, other = (one["blocks.0.hook_in"] for one in (own, its))
    shares = [k / steps for k in range(1, steps + 1)] if "ig" in method.split("-") else [1.0]
    each = []
    for share in shares:
        put = ("blocks.0.hook_in", lambda value, hook, share=share: other + share * (entering - other))
        each.append(gradients(bridge, target, names, before=[put], rules=rules))
    options = {} if pattern == "gradient" else {"pattern": pattern}
    found = effects("llama", method, site, direction=direction, steps=steps, **options).values
    for layer, name in enumerate(names):
        gradient = torch.stack([one[name] for one in each]).mean(0)
        expected = of_units((its[name] - own[name]) * gradient, site)
        np.testing.assert_allclose(found[layer], expected, atol=1e-4 * np.abs(found).max())
    if rules != Rules():
        assert np.abs(found - effects("llama", "atp", site, direction=direction).values).max() > 1e-3


@pytest.mark.parametrize("method", ["atp", "atp*", "relp-ig"])
@pytest.mark.parametrize("site", ["resid_mid", "attn_head_pattern", "attn_head_k"])
def test_some_layers_positions_and_units_are_those_of_all(method, site):
    whole = attributed("llama", method, site, positions=[4, 5, 9])
    unit = None if site == "resid_mid" else "head"
    chosen = {"layer": [0, 2], "position": [5, 9], **({unit: [1]} if unit else {})}
    some = attributed(
        "llama",
        method,
        site,
        layers=[2, 0],
        positions=[5, 9],
        **({"units": [-1 if site == "attn_head_k" else 1]} if unit else {}),
    )
    np.testing.assert_allclose(some.values, whole.values.sel(chosen), rtol=1e-5, atol=1e-6)
    assert float(abs(some.effect).max()) > 1e-3
    small = attributed("llama", method, site, positions=[4, 5, 9], budget=1)
    np.testing.assert_allclose(small.values, whole.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["atp", "relp-ig"])
def test_samples_and_prompts_are_averaged_and_metrics_told_apart(method):
    """Rows of noise count alike within a question, and questions alike however many rows they have."""
    bridge, both = model("llama"), ["logit_diff", "log_probability"]
    noise = locate.GaussianNoise(samples=3)
    options = {"sites": "mlp_out", "method": method}
    found = quiet(locate.attribute, bridge, FACT, noise, metric=both, **options)
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    own = locate.Contrast.of(bridge, FACT, noise, keep=names, keep_target=names, metric=both)
    for metric in both:
        each = [
            quiet(locate.attribute, bridge, own.only(torch.arange(3) == row), metric=metric, **options).values
            for row in range(3)
        ]
        np.testing.assert_allclose(found.of(metric).values, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.of(metric).standard_error, np.std(each, axis=0, ddof=1) / 3**0.5, atol=1e-5)
        assert np.std(each, axis=0).max() > 1e-4
    (clean, corrupt), second = prompts(), prompts()[0].clone()
    second[1] = int(corrupt[4])
    pairs = [(clean, corrupt), (second, corrupt)]
    several = quiet(locate.attribute, bridge, *map(list, zip(*pairs, strict=True)), metric=difference, **options)
    each = [quiet(locate.attribute, bridge, *pair, metric=difference, **options).values for pair in pairs]
    np.testing.assert_allclose(several.values, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-3


@pytest.mark.parametrize("method", ESTIMATORS)
@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "attn_head_q", "attn_head_pattern"])
def test_a_contrast_whose_target_kept_nothing_is_enough(method, site):
    hook = {"attn_head_pattern": "attn.hook_pattern"}.get(site, HOOKS.get(site))
    kept = [] if site == "resid_pre" else [f"blocks.{layer}.{hook}" for layer in range(3)]
    own = locate.Contrast.of(model("llama"), *prompts(), keep=kept, metric=difference)
    assert not own.target.kept
    options = {"metric": difference, "method": method, "sites": site, "direction": "restore"}
    found = quiet(locate.attribute, model("llama"), own, **options)
    expected = quiet(locate.attribute, model("llama"), *prompts(), **options)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-6)
    assert float(abs(found.effect).max()) > 0


def test_states_of_an_edited_model_are_attributed_to():
    """Gradients are the base's; what states would become is the edited model's, which is gone by then."""
    bridge, (clean, _) = model("llama"), prompts()
    down = down_projection(bridge, 0)
    left, right = (torch.randn(n, generator=torch.Generator().manual_seed(3)) / 2 for n in down.parameter.shape)
    update = edit.WeightUpdate.make(
        bridge, {down.name: edit.LowRank(left=left[:, None], right=right[None])}, method="made up"
    )
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    base = freeze(bridge, clean[None])
    with update.applied(bridge):
        edited = freeze(bridge, clean[None], keep=names)
        its = seen(bridge, clean, names)
    own = seen(bridge, clean, names)
    questions = Questions(
        model=bridge, prompts=(locate.encode_fact(bridge, FACT),), answers=torch.tensor([7]), clean=base.logits,
        targets_new=(None,),
    )  # fmt: skip
    contrast = locate.Contrast.between(base, edited, questions)
    options = {"metric": difference, "sites": "mlp_out", "direction": "restore"}
    found = quiet(locate.attribute, bridge, contrast, method="atp", **options).effect.values
    for layer, (name, gradient) in enumerate(gradients(bridge, clean, names).items()):
        expected = of_units((its[name] - own[name]) * gradient, "mlp_out")
        np.testing.assert_allclose(found[layer], expected, atol=1e-4 * np.abs(found).max())
    assert np.abs(found).min(axis=1).max() > 0
    for method in ESTIMATORS:
        values = quiet(locate.attribute, bridge, contrast, method=method, **options).values
        assert bool(np.isfinite(values).all()), method


def test_tokens_that_bring_more_than_the_stream_have_no_straight_path():
    kind = "gemma4_text:inputs of each layer"
    found = attributed(kind, None, "mlp_out")
    assert found.info["method"] == "relp"
    np.testing.assert_array_equal(found.values, attributed(kind, "relp", "mlp_out").values)
    for method in ("ig", "relp-ig"):
        with pytest.raises(ModelError, match="no straight path between two of them"):
            attributed(kind, method, "mlp_out")
    assert attributed("llama", None, "mlp_out").info["method"] == "ig"


def test_what_cannot_be_attributed_is_refused():
    for options, problem in (
        ({"method": "relpp"}, r"no method 'relpp' of attribution.*relp"), ({"steps": 0}, "steps: must be 1 or more"),
        ({"metric": "rank"}, "a metric with a gradient"), ({"pattern": "half", "method": "ig"}, "only relp has rules"),
    ):  # fmt: skip
        with pytest.raises(LocateError, match=problem):
            quiet(locate.attribute, model("llama"), *prompts(), sites="mlp_out", **options)
