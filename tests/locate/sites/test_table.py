"""The table of places, row by row on every architecture."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from locate import Site, SiteError
from locate.engine import hook_points
from locate.sites.site import check_kind, check_traced
from locate.sites.table import TABLE, hook_name, site_row, site_title
from tests import tiny

KINDS = [*tiny.CONFIGS, *tiny.OTHER_CONFIGS]
ROWS = {row.name: row for row in TABLE}
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
# Where attention and MLP stand side by side there is nothing between them; of several experts none is the MLP.
ABSENT = {
    *((kind, "resid_mid") for kind in ("gpt_neox", "gptj", "falcon")),
    *(("mixtral", name) for name in ("mlp_neurons", "down_out")),
}


@cache
def model(kind):
    return tiny.bridge(kind)


@cache
def states(kind):
    """The value at every place of the table, and the logits."""
    bridge, found = model(kind), {}

    def keep(name):
        return lambda value, hook: found.update({name: value.detach()})

    places = {
        (row.name, layer): row.at(layer if row.layered else None)
        for row in TABLE if (kind, row.name) not in ABSENT
        for layer in (range(bridge.cfg.n_layers) if row.layered else [None])
    }  # fmt: skip
    # Through the library's own hooks, for which alone some blocks make these points fire.
    with torch.no_grad(), bridge.hooks(fwd_hooks=[(hook, keep(place)) for place, hook in places.items()]):
        found["logits"] = bridge(TOKENS)
    return found


def sizes(kind):
    config = model(kind).original_model.config.to_dict()
    heads = config.get("num_attention_heads") or config["n_head"]
    width = config.get("hidden_size") or config["n_embd"]
    kv = 1 if config.get("multi_query") else config.get("num_key_value_heads") or heads
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    return {
        "row": 2, "position": 5, "query": 5, "key": 5, "d_model": width, "head": heads, "kv_head": kv,
        "d_head": config.get("head_dim") or width // heads, "neuron": inner, "vocab": tiny.VOCAB,
    }  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_the_value_that_it_says_or_is_refused(kind, name):
    row = ROWS[name]
    layers = range(4) if row.layered else [None]
    if (kind, name) in ABSENT:
        with pytest.raises(SiteError, match="The model has no hook point"):
            hook_points(model(kind), [row.at(0)])
        return
    expected = tuple(sizes(kind)[dim] for dim in row.dims)
    for layer in layers:
        assert tuple(states(kind)[name, layer].shape) == expected
    assert row.unit is None or row.dims[row.unit_axis] == row.unit


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_what_entered_and_what_is_added(kind):
    found = states(kind)
    added = [row.name for row in TABLE if row.added]
    assert added == ["attn_out", "mlp_out"]
    for layer in range(4):
        total = found["resid_pre", layer] + sum(found[name, layer] for name in added)
        torch.testing.assert_close(total, found["resid_post", layer], rtol=1e-5, atol=1e-5)
        after = found["resid_pre", layer + 1] if layer < 3 else found["final_in", None]
        assert torch.equal(found["resid_post", layer], after)
        if (kind, "resid_mid") not in ABSENT:
            middle = found["resid_pre", layer] + found["attn_out", layer]
            torch.testing.assert_close(middle, found["resid_mid", layer], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "same"), [
    ("llama", True), ("gpt2", True), ("gptj", True), ("bloom", True),
    ("gemma3_text", False), ("olmo2", False), ("granite", False),
])  # fmt: skip
def test_what_is_added_is_the_projections_output_unless_something_stands_between(kind, same):
    found = states(kind)
    for own, added in (("attn_proj_out", "attn_out"), ("down_out", "mlp_out")):
        assert all(torch.equal(found[own, layer], found[added, layer]) == same for layer in range(4))
    if kind == "granite":
        torch.testing.assert_close(found["down_out", 2] * 0.3, found["mlp_out", 2])


def test_a_pattern_is_the_softmax_of_its_scores():
    found = states("llama")
    torch.testing.assert_close(found["attn_head_scores", 1].softmax(-1), found["attn_head_pattern", 1])


def test_the_logits_are_the_models_own_but_for_a_scale():
    assert torch.equal(states("llama")["logits", None], states("llama")["logits"])
    torch.testing.assert_close(states("granite")["logits", None] / 2, states("granite")["logits"])


def test_names_are_told_apart_and_lead_to_their_rows():
    names = [name for row in TABLE for name in row.names]
    assert len(names) == len(set(names))
    today = {
        "resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out", "attn_head": "attn.hook_z",
        "neuron": "mlp.out.hook_in", "down_in": "mlp.out.hook_in", "down_out": "mlp.out.hook_out",
    }  # fmt: skip
    for name, hook in today.items():
        assert Site(name, layer=2).hook == hook_name(name, 2) == f"blocks.2.{hook}"
    assert site_row("attn_head_result") is site_row("attn_head_z")
    assert (check_kind("resid_post"), check_kind("attn_out"), check_traced("attn_head_z")) == (
        "resid",
        "attn",
        "attn_head",
    )
    assert site_title("mlp") == "MLP output"


def test_a_trace_knows_its_kinds_by_any_of_their_names():
    scores = xr.DataArray(
        np.array([[[0.1, 0.2], [0.9, 0.3]]]), dims=("kind", "position", "layer"),
        coords={"kind": ["mlp"], "position": [0, 1], "layer": [0, 1]},
    )  # fmt: skip
    trace = tiny.made_up_trace(scores, clean=1.0, corrupted=0.0, answer="x", tokens=("a", "b"), span=(0, 2))
    assert trace.best("mlp_out") == trace.best("mlp") == Site("mlp", layer=0, position=1)
    with pytest.raises(SiteError, match="no kind of site 'down_out'"):
        trace.best("down_out")


def test_places_outside_the_layers_have_none():
    assert hook_name("embed") == "embed.hook_out"
    with pytest.raises(SiteError, match="logits is in no layer"):
        hook_name("logits", 3)
    with pytest.raises(SiteError, match="mlp_out: every layer has one; say which"):
        hook_name("mlp")
    with pytest.raises(SiteError, match="final_in is in no layer"):
        Site("final_in", layer=0)
    with pytest.raises(SiteError, match=r"no kind of site 'down_outt'. Did you mean down_out"):
        Site("down_outt", layer=0)
    with pytest.raises(SiteError, match=r"no kind of site 'down_out'. Known: attn, mlp, resid"):
        check_kind("down_out")
