"""Activation patching against whole passes with one hook each, and against TransformerLens."""

import inspect
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from transformer_lens import patching as tl

import locate
from locate import DataError, Fact, FactError, LocateError, SiteError
from locate.contrast import pairs
from locate.patching.sites import patch_site
from tests import tiny

CLEAN = "I think that Big Ben is in the city of"
CORRUPT = "I think that The Louvre is in the city of"


@cache
def model(kind):
    return tiny.bridge(kind, scale=20.0)


def prompts(kind):
    """Two prompts with as many tokens that differ in the middle."""
    ids = torch.tensor(tiny.tokenizer()(CLEAN)["input_ids"])
    other = ids.clone()
    other[4:6] = torch.tensor(tiny.tokenizer()(" London Paris")["input_ids"])[:2]
    assert not torch.equal(ids, other)
    return ids, other


def difference(logits):
    return (logits[:, 7] - logits[:, 9]).float()


def quiet_patch(kind, **options):
    clean, corrupt = prompts(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate.patch(model(kind), clean, corrupt, metric=difference, progress=False, **options)


def literal(kind, name, change, *, source, target):
    """One whole pass over ``target`` with ``change(value, value of source)`` at a hook point."""
    bridge = model(kind)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(source[None], names_filter=[name])

        def hook(value, hook):
            return change(value.clone(), cache[name])

        with bridge.hooks(fwd_hooks=[(name, hook)]):
            return float(difference(bridge(target[None])[:, -1])[0])


def at_position(position):
    def change(value, other):
        value[:, position] = other[:, position]
        return value

    return change


def at_unit(unit, position=None):
    columns = slice(None) if position is None else position

    def change(value, other):
        value[:, columns, unit] = other[:, columns, unit]
        return value

    return change


@pytest.mark.parametrize("direction", ["restore", "break"])
@pytest.mark.parametrize(("sites", "hook"), [
    ("resid_pre", "hook_in"), ("resid_post", "hook_out"), ("attn_out", "hook_attn_out"), ("mlp_out", "hook_mlp_out"),
    ("mlp.hook_out", "hook_mlp_out"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_states_by_layer_and_position_equal_whole_passes(kind, sites, hook, direction):
    clean, corrupt = prompts(kind)
    found = quiet_patch(kind, sites=sites, direction=direction)
    assert found.scores.dims == ("layer", "position")
    source, target = (clean, corrupt) if direction == "restore" else (corrupt, clean)
    table = found.values.values
    for layer, position in [(0, 4), (1, 5), (2, len(clean) - 1), (3, 4), (0, 2)]:
        expected = literal(kind, f"blocks.{layer}.{hook}", at_position(position), source=source, target=target)
        assert table[layer, position] == pytest.approx(expected, abs=2e-5)
    start = found.corrupted if direction == "restore" else found.clean
    assert np.abs(table[:, 4:] - start).max() > 1e-3  # or there would be nothing to get wrong
    np.testing.assert_allclose(table[:, :4], start, rtol=1e-5)


@pytest.mark.parametrize(("sites", "hook"), [
    ("attn_head_z", "attn.hook_z"), ("attn_head_q", "attn.hook_q"), ("attn_head_k", "attn.hook_k"),
    ("attn_head_v", "attn.hook_v"), ("mlp_neurons", "mlp.hook_post"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_heads_and_neurons_equal_whole_passes(kind, sites, hook):
    clean, corrupt = prompts(kind)
    unit = "neuron" if "neuron" in sites else "head"
    everywhere = quiet_patch(kind, sites=sites)
    assert everywhere.scores.dims == ("layer", unit)
    placed = quiet_patch(kind, sites=sites, by=("layer", "position", unit), positions=[4, 6])
    assert placed.scores.dims == ("layer", "position", unit)
    last = everywhere.scores.sizes[unit] - 1
    for layer, one in [(0, 0), (2, last), (3, 1)]:
        name = f"blocks.{layer}.{hook}"
        expected = literal(kind, name, at_unit(one), source=clean, target=corrupt)
        assert float(everywhere.values[layer, one]) == pytest.approx(expected, abs=2e-5)
        expected = literal(kind, name, at_unit(one, 4), source=clean, target=corrupt)
        assert float(placed.values.sel(position=4)[layer, one]) == pytest.approx(expected, abs=2e-5)
    # Keys and values matter for later tokens, in all layers but those whose result nobody reads.
    assert np.abs(everywhere.effect.values).max() > 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_patterns_equal_whole_passes(kind):
    clean, corrupt = prompts(kind)
    found = quiet_patch(kind, sites="attn_head_pattern")
    placed = quiet_patch(kind, sites="attn_head_pattern", by=("layer", "head", "position"))

    def head(index, query=slice(None)):
        def change(value, other):
            value[:, index, query] = other[:, index, query]
            return value

        return change

    for layer, index in [(0, 0), (1, 1), (3, 1)]:
        name = f"blocks.{layer}.attn.hook_pattern"
        expected = literal(kind, name, head(index), source=clean, target=corrupt)
        assert float(found.values[layer, index]) == pytest.approx(expected, abs=2e-5)
        expected = literal(kind, name, head(index, 6), source=clean, target=corrupt)
        assert float(placed.values.sel(layer=layer, head=index, position=6)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_the_middle_of_a_block_takes_the_whole_stream(kind):
    """Patched between attention and MLP at the last position of the last layer, everything is clean but its past."""
    clean, corrupt = prompts(kind)
    found = quiet_patch(kind, sites="resid_mid")
    bridge = model(kind)
    with torch.no_grad():
        _, a = bridge.run_with_cache(clean[None])
        _, b = bridge.run_with_cache(corrupt[None])
    for layer, position in [(1, 4), (3, len(clean) - 1)]:
        moved = (a[f"blocks.{layer}.hook_in"] + a[f"blocks.{layer}.hook_attn_out"])[:, position]
        moved = moved - b[f"blocks.{layer}.hook_in"][:, position]

        def put(value, hook, position=position, moved=moved):
            value = value.clone()
            value[:, position] = moved
            return value

        with torch.no_grad(), bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_attn_out", put)]):
            expected = float(difference(bridge(corrupt[None])[:, -1])[0])
        assert float(found.values[layer, position]) == pytest.approx(expected, abs=2e-5)
    last = len(clean) - 1
    assert float(found.scores[3, last]) == pytest.approx(1.0, abs=1e-3)


def test_parallel_blocks_have_no_middle():
    with pytest.raises(SiteError, match="no residual stream between attention and MLP"):
        quiet_patch("gptj", sites="resid_mid")


@pytest.mark.parametrize(("sites", "function"), [
    ("resid_pre", tl.get_act_patch_resid_pre), ("attn_out", tl.get_act_patch_attn_out),
    ("mlp_out", tl.get_act_patch_mlp_out), ("attn_head_z", tl.get_act_patch_attn_head_out_all_pos),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_patches_equal_transformer_lens(kind, sites, function):
    clean, corrupt = prompts(kind)
    # In float64, so that what differs is not the order of sums.
    bridge = tiny.bridge(kind, dtype=torch.float64, scale=20.0)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean[None])
        expected = function(bridge, corrupt[None], cache, lambda logits: difference(logits[:, -1])[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = locate.patch(bridge, clean, corrupt, sites=sites, metric=difference, progress=False)
    np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-6)


def test_scores_are_0_corrupt_and_1_clean():
    found = quiet_patch("llama", sites="resid_pre")
    last = found.scores.sizes["position"] - 1
    clean, corrupt = prompts("llama")
    with torch.no_grad():
        high, low = (float(difference(model("llama")(ids[None])[:, -1])[0]) for ids in (clean, corrupt))
    assert found.clean == pytest.approx(high, abs=1e-5)
    assert found.corrupted == pytest.approx(low, abs=1e-5)
    assert float(found.scores[0, 3]) == pytest.approx(0, abs=1e-4)
    both = quiet_patch("llama", sites="resid_post", positions=[last], layers=[3])
    assert float(both.scores.squeeze()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("sites", ["attn_head_z", "attn_head_pattern", "mlp_neurons"])
def test_some_layers_and_units_are_those_of_all(sites):
    every = quiet_patch("llama", sites=sites)
    unit = str(every.values.dims[1])
    n = every.values.sizes[unit]
    some = quiet_patch("llama", sites=sites, layers=[3, 1, -1], units=[-1, 0, n - 1])
    assert some.values["layer"].values.tolist() == [1, 3]
    assert some.values[unit].values.tolist() == [0, n - 1]
    expected = every.values.sel({"layer": [1, 3], unit: [0, n - 1]})
    np.testing.assert_allclose(some.values, expected, rtol=1e-5, atol=1e-6)


def test_prompts_are_averaged_and_each_counts_once():
    ids, other = prompts("llama")
    second = ids.clone()
    second[1] = int(other[4])
    pairs = [(ids, other), (second, other)]
    each = [
        locate.patch(model("llama"), a, b, metric=difference, sites="mlp_out", progress=False).values for a, b in pairs
    ]
    both = locate.patch(
        model("llama"), [a for a, _ in pairs], [b for _, b in pairs], metric=difference, sites="mlp_out", progress=False
    )
    np.testing.assert_allclose(both.values, (each[0] + each[1]) / 2, atol=1e-5)
    spread = np.abs(each[0] - each[1]) / 2
    np.testing.assert_allclose(both.standard_error, spread, atol=1e-5)
    assert both.info["pairs"] == 2


def test_positions_tell_heads_apart():
    found = quiet_patch("llama", sites="attn_head_z", positions=[4, 6])
    assert dict(found.scores.sizes) == {"layer": 4, "position": 2, "head": 4}
    same = quiet_patch("llama", sites="attn_head_z", by=("layer", "position", "head"), positions=[4, 6])
    np.testing.assert_allclose(found.values, same.values, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_the_stream_has_transformer_lens_names_as_well(kind):
    for name in ("resid_pre", "resid_mid", "resid_post"):
        np.testing.assert_allclose(quiet_patch(kind, sites=f"hook_{name}").values, quiet_patch(kind, sites=name).values)


@pytest.mark.parametrize("direction", ["restore", "break"])
@pytest.mark.parametrize("sites", ["attn_head_z", "attn_head_result", "mlp_neurons", "attn_head_pattern", "resid_mid"])
def test_both_directions_meet_at_the_other_end(sites, direction):
    """Patching every head, say, one at a time; where a layer has one of them, the directions differ by what is held."""
    found = quiet_patch("llama", sites=sites, direction=direction)
    again = quiet_patch("llama", sites=sites, direction=direction, screen=1.0)
    np.testing.assert_allclose(found.values, again.values, atol=1e-5)
    start = found.corrupted if direction == "restore" else found.clean
    assert np.abs(found.values.values - start).max() > 1e-4
    np.testing.assert_allclose(found.effect, found.values - start)


def test_heads_of_the_other_direction_equal_whole_passes():
    clean, corrupt = prompts("llama")
    found = quiet_patch("llama", sites="attn_head_z", direction="break", positions=[6])
    for layer, head in [(0, 1), (2, 3)]:
        expected = literal("llama", f"blocks.{layer}.attn.hook_z", at_unit(head, 6), source=corrupt, target=clean)
        assert float(found.values[layer, 0, head]) == pytest.approx(expected, abs=2e-5)


def test_the_error_is_over_prompts_where_there_are_several():
    facts = [Fact(prompt="I think that {} is in", subject=name, target="Paris") for name in ("The Louvre", "Big Ben")]
    noise = locate.GaussianNoise(samples=3)
    options = {"sites": "mlp_out", "positions": "last", "metric": difference, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [locate.patch(model("llama"), fact, noise, **options) for fact in facts]
        lengths = {len(one.info["tokens"]) for one in alone}
        assert len(lengths) == 1  # or they could not be patched together
        both = locate.patch(model("llama"), facts, noise, **options)
    each = np.stack([one.values.values for one in alone])
    np.testing.assert_allclose(both.values, each.mean(0), atol=1e-5)
    np.testing.assert_allclose(both.standard_error, each.std(0, ddof=1) / 2**0.5, atol=1e-5)
    assert (alone[0].standard_error > 0).any()  # of a single prompt, over its samples


def test_recall_needs_the_same_sites():
    screened = quiet_patch("llama", sites="mlp_out", layers=[0, 1], screen=3)
    for other in (quiet_patch("llama", sites="mlp_out", layers=[2, 3]), quiet_patch("llama", layers=[0, 1])):
        with pytest.raises(LocateError, match="both must be of the same layers"):
            screened.recall(other)


def test_bfloat16_patches_are_near():
    exact = quiet_patch("llama", sites="attn_head_z")
    near = quiet_patch("llama", sites="attn_head_z", precision="bfloat16")
    # These weights are large, so that three digits are few; no site may be another's.
    assert 0 < np.abs(near.values - exact.values).mean() < 0.05 * np.abs(exact.effect).max()
    assert np.corrcoef(near.effect.values.ravel(), exact.effect.values.ravel())[0, 1] > 0.98


def test_several_metrics_come_from_one_run():
    clean, corrupt = prompts("llama")
    both = locate.patch(model("llama"), clean, corrupt, metric=[difference, "probability", "rank"], progress=False)
    assert both.metrics == ("difference", "probability", "rank")
    np.testing.assert_allclose(both.values, quiet_patch("llama").values, atol=1e-6)
    alone = locate.patch(model("llama"), clean, corrupt, metric="probability", progress=False)
    np.testing.assert_allclose(both.of("probability").values, alone.values, atol=1e-6)
    with pytest.raises(LocateError, match="no metric 'logit_diff'; it has difference, probability, rank"):
        both.of("logit_diff")


@pytest.mark.parametrize("sites", ["resid_pre", "resid_mid", "mlp_out", "attn_head_z", "attn_head_q", "mlp_neurons"])
def test_screening_confirms_exactly_what_it_picks(sites):
    exact = quiet_patch("llama", sites=sites)
    screened = quiet_patch("llama", sites=sites, screen=5)
    assert int(screened.data["confirmed"].sum()) == 5
    chosen = screened.data["confirmed"].values
    np.testing.assert_allclose(screened.values.values[chosen], exact.values.values[chosen], atol=1e-5)
    assert 0 <= screened.recall(exact, n=5) <= 1
    whole = quiet_patch("llama", sites=sites, screen=exact.values.size)
    np.testing.assert_allclose(whole.values, exact.values, atol=1e-5)
    assert whole.recall(exact, n=5) == 1


@pytest.mark.parametrize(
    "sites", ["resid_pre", "resid_mid", "mlp_out", "attn_head_z", "attn_head_k", "attn_head_pattern"]
)
def test_the_estimate_is_the_slope_of_small_patches(sites):
    """For two nearly equal prompts, first order is all there is."""
    fact = Fact(prompt="I think that {} is in the city of", subject="Big Ben", target="Paris")
    tiny_noise = locate.GaussianNoise(scale=1e-3, samples=2, std=float(model("llama").embed.weight.detach().std()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"sites": sites, "metric": difference, "progress": False}
        exact = locate.patch(model("llama"), fact, tiny_noise, **options)
        guess = locate.patch(model("llama"), fact, tiny_noise, screen=1, method="atp", **options)
    effect, estimate = exact.effect.values, guess.data["estimate"].values
    assert np.corrcoef(effect.ravel(), estimate.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(estimate, effect, atol=0.02 * np.abs(effect).max())


def test_a_metric_without_gradient_cannot_screen():
    clean, corrupt = prompts("llama")
    with pytest.raises(LocateError, match="needs a metric with a gradient"):
        locate.patch(model("llama"), clean, corrupt, metric="rank", screen=3, progress=False)


def test_saving_and_loading(tmp_path):
    found = quiet_patch("llama", sites="attn_head_z", screen=3)
    loaded = locate.load_patches(found.save(tmp_path / "p.nc"))
    xr.testing.assert_equal(loaded.scores, found.scores)
    assert loaded.info == found.info
    assert loaded.recall(quiet_patch("llama", sites="attn_head_z"), n=1) in (0.0, 1.0)
    with pytest.raises(DataError, match="There is no patches file"):
        locate.load_patches(tmp_path / "none.nc")


def test_the_table_names_sites_and_tokens():
    found = quiet_patch("llama", sites="mlp_out")
    table = found.to_dataframe()
    assert len(table) == found.values.size
    assert table.loc[0, "token"] == found.info["tokens"][0]
    top = found.top(3)
    assert top["effect"].abs().iloc[0] == pytest.approx(float(np.abs(found.effect.values).max()))


@pytest.mark.parametrize("direction", ["restore", "break"])
@pytest.mark.parametrize(("sites", "by"), [
    ("mlp_out", None), ("attn_head_z", None), ("mlp_neurons", ("layer", "position", "neuron")),
    ("attn_head_k", None),
])  # fmt: skip
def test_the_best_site_is_the_one_that_restores_most(sites, by, direction):
    found = quiet_patch("llama", sites=sites, by=by, direction=direction)
    gain = found.scores if direction == "restore" else 1 - found.scores
    best = found.best()
    assert best.kind == sites
    place = {name: getattr(best, name) for name in ("layer", "position", "head", "neuron") if name in gain.dims}
    assert {name for name in ("position", "head", "neuron") if getattr(best, name) is None} == (
        {"position", "head", "neuron"} - set(gain.dims)
    )
    assert float(gain.sel(place)) == float(gain.max()) > 0
    # A metric that is restored by going down has the same best site.
    falling = replace(found, data=-found.data)
    assert falling.best() == best


def test_what_screening_left_out_is_not_the_best():
    screened = quiet_patch("llama", sites="attn_head_z", screen=3)
    confirmed = screened.data["confirmed"]
    data = screened.data.assign(values=screened.data["values"].where(confirmed, 10 * screened.clean))
    best = replace(screened, data=data).best()
    assert bool(confirmed.sel(layer=best.layer, head=best.head))


def test_patches_of_a_hook_point_of_ones_own_have_no_site():
    with pytest.raises(SiteError, match=r"There is no kind of site 'mlp\.hook_out'"):
        quiet_patch("llama", sites="mlp.hook_out").best()


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"sites": "attn_head_zz"}, SiteError, r"no site 'attn_head_zz' to patch. Did you mean attn_head_z"),
    ({"sites": "mlp.hook_posst"}, SiteError, r"Did you mean .*mlp\.hook_post"),
    ({"layers": [4]}, SiteError, "Layer 4 is out of range: the model has 4 layers"),
    ({"layers": []}, SiteError, "give at least one"),
    ({"positions": [40]}, SiteError, "Position 40 is out of range"),
    ({"sites": "attn_head_z", "units": [9]}, SiteError, "The head 9 is out of range"),
    ({"sites": "mlp_neurons", "units": [10**6]}, SiteError, "The neuron 1000000 is out of range"),
    ({"units": [0]}, SiteError, "resid_pre has no heads or neurons"),
    ({"sites": "attn_head_z", "units": []}, SiteError, "units: give at least one head"),
    ({"positions": "subject_last"}, SiteError, "has no 'subject_last' tokens; it has no subject"),
    ({"by": ["head"]}, SiteError, "resid_pre has no 'head'"),
    ({"sites": "attn_head_z", "by": ["layer"]}, SiteError, "told apart by head at least"),
    ({"direction": "both"}, SiteError, "direction must be one of"),
    ({"screen": 0}, LocateError, "screen: there are"),
    ({"screen": 10**6}, LocateError, "screen: there are"),
    ({"screen": 2.5}, LocateError, "screen: there are"),
    ({"sites": "attn.hook_pattern"}, SiteError, "a value for each pair of tokens.*patch attn_head_pattern"),
    ({"sites": "attn_head_z", "by": ["layer", "head"], "positions": "last"}, SiteError, "patched at all positions"),
])  # fmt: skip
def test_sites_that_do_not_exist_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        quiet_patch("llama", **options)


def test_metrics_that_do_not_work_are_refused():
    clean, corrupt = prompts("llama")
    with pytest.raises(LocateError, match=r"'whole' must return one number per row, shape \(1,\).*found \(1, 400\)"):
        locate.patch(model("llama"), clean, corrupt, metric=_named(lambda logits: logits, "whole"), progress=False)
    with pytest.raises(LocateError, match="The metric 'broken' is not finite: though the logits are finite"):
        locate.patch(
            model("llama"), clean, corrupt, metric=_named(lambda logits: logits[:, 0] / 0, "broken"), progress=False
        )
    with pytest.raises(LocateError, match="There is no metric 'probabilty'; there are probability"):
        locate.patch(model("llama"), clean, corrupt, metric="probabilty", progress=False)


def _named(function, name):
    function.__name__ = name
    return function


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(FactError, match=r"same number of tokens, found \d+ and \d+\. They differ in \[.*\], from"):
        locate.patch(model("llama"), CLEAN, CORRUPT.replace("The Louvre", "The very old Louvre"), metric=difference)
    with pytest.raises(FactError, match="are the same"):
        locate.patch(model("llama"), CLEAN, CLEAN, metric=difference)
    with pytest.raises(FactError, match="Token ids must be from 0 to 399"):
        locate.patch(model("llama"), torch.tensor([1, 2]), torch.tensor([1, 400]), metric=difference)
    with pytest.raises(FactError, match="GaussianNoise corrupts a subject, so the clean prompt must be a Fact"):
        locate.patch(model("llama"), CLEAN, locate.GaussianNoise(), metric=difference)
    with pytest.raises(FactError, match="2 clean prompts and 1 corrupted"):
        locate.patch(model("llama"), [CLEAN, CLEAN], [CORRUPT], metric=difference)
    encode = inspect.unwrap(pairs.as_prompt)  # past the checks of types that users do not have
    with pytest.raises(FactError, match="must be a Fact, a text or token ids; found ndarray"):
        encode(model("llama"), np.array([1, 2]))
    with pytest.raises(FactError, match="Token ids must be integers, found torch"):
        encode(model("llama"), [1.0, 2.0])


def test_named_positions_must_be_the_same_in_all_prompts():
    middle = Fact(prompt="I think that {} is in", subject="London", target="Paris", target_new="Rome")
    early = Fact(prompt="I think {} that is in", subject="London", target="Paris", target_new="Rome")
    options = {"metric": "probability", "progress": False}
    with pytest.raises(FactError, match=r"positions='subject_last' are tokens \[\d+\] of 'I think that London"):
        locate.patch(model("llama"), [middle, early], locate.ZeroEmbedding(), positions="subject_last", **options)
    found = locate.patch(model("llama"), [middle, early], locate.ZeroEmbedding(), positions=["last", 0], **options)
    assert found.values["position"].values.tolist() == [0, len(found.info["tokens"]) - 1]
    assert found.info["subject_span"] == [0, 0]


def test_the_usual_metric_needs_answers_that_a_token_tells_apart():
    facts = [
        Fact(prompt="I think that {} is in", subject="London", target="Paris", target_new=new)
        for new in ("Paris France", "Rome")
    ]
    facts.append(replace(facts[0], target="Paris too"))
    found = [locate.patch(model("llama"), fact, locate.ZeroEmbedding(), layers=[0], progress=False) for fact in facts]
    assert [one.metric for one in found] == ["probability", "logit_diff", "logit_diff"]


def test_a_float16_model_is_not_run_in_bfloat16():
    half = tiny.bridge("llama", dtype=torch.float16)
    fact = Fact(prompt="I think that {} is in", subject="London", target="Paris")
    for ask in (
        lambda: locate.patch(half, fact, locate.ZeroEmbedding(), precision="bfloat16"),
        lambda: locate.causal_trace(half, fact, precision="bfloat16"),
        lambda: locate.attention_knockout(half, fact, precision="bfloat16"),
    ):
        with pytest.raises(LocateError, match="A float16 model cannot be run in bfloat16"):
            ask()


def test_token_ids_may_be_a_list():
    ids = model("llama").tokenizer([CLEAN, CORRUPT])["input_ids"]
    found = locate.patch(model("llama"), *ids, metric=difference, progress=False)
    expected = locate.patch(model("llama"), CLEAN, CORRUPT, metric=difference, progress=False)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    several = locate.patch(model("llama"), [ids[0]] * 2, [ids[1]] * 2, metric=difference, progress=False)
    np.testing.assert_allclose(several.values, expected.values, rtol=1e-5)


def test_a_corruption_without_effect_is_warned_about():
    fact = Fact(prompt="I think that {} is in the city of", subject="Big Ben", target="Paris")
    with pytest.warns(UserWarning, match="The corruption changes probability by only"):
        locate.patch(model("llama"), fact, locate.GaussianNoise(scale=1e-5), progress=False)


@pytest.mark.parametrize("sites", ["resid_pre", "attn_head_z", "mlp_out"])
def test_the_budget_changes_nothing(sites):
    np.testing.assert_allclose(
        quiet_patch("llama", sites=sites, budget=1).values, quiet_patch("llama", sites=sites).values, atol=1e-5
    )


def test_sites_know_their_hooks():
    site = patch_site(model("llama"), "attn_head_z", by=("layer", "head", "position"))
    assert site.by == ("layer", "position", "head")
    assert site.kept(2) == ["blocks.2.attn.hook_z"]


def test_paired_prompts_of_several_lengths_are_averaged_over_pairs():
    texts = [(CLEAN, CORRUPT), tuple(f"I think {one}" for one in (CLEAN, CORRUPT))]
    pairs = locate.tasks.PairedPrompts.of(*zip(*texts, strict=True), answers=[(" London", " Paris")] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"sites": "attn_head_z", "progress": False}
        both = locate.patch(model("llama"), pairs, **options)
        each = [locate.patch(model("llama"), *one, **options) for one in pairs]
        guess = locate.attribute(model("llama"), pairs, **options)
        guesses = [locate.attribute(model("llama"), *one, **options) for one in pairs]
        with pytest.raises(FactError, match="positions are those of one length"):
            locate.patch(model("llama"), pairs, sites="resid_pre", progress=False)
    assert both.info["pairs"] == 2
    for whole, parts in ((both, each), (guess, guesses)):
        values = np.stack([one.values.values for one in parts])
        np.testing.assert_allclose(whole.values.values, values.mean(0), atol=1e-5)
        np.testing.assert_allclose(whole.standard_error.values, values.std(0, ddof=1) / 2**0.5, atol=1e-5)
        assert whole.clean == pytest.approx(np.mean([one.clean for one in parts]), abs=1e-5)
