"""Figures of patches and knockouts."""

import warnings
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import locate
from locate import Fact, SiteError
from locate.plots import plot_patches, plot_trace_heads
from tests import tiny
from tests.figures import check_fits

FACT = Fact(prompt="I think that {} is in", subject="London", target="Paris", target_new="Rome")


@cache
def model():
    return tiny.bridge("llama", scale=20.0)


@cache
def patches(sites="resid_pre", direction="restore", by=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate.patch(
            model(), FACT, locate.TokenSwap("Rome"), sites=sites, direction=direction, by=by, metric="logit_diff",
            progress=False,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("sites", ["resid_pre", "attn_head_z", "mlp_neurons", "attn_head_pattern"])
@pytest.mark.parametrize("direction", ["restore", "break"])
def test_colours_diverge_from_the_patched_run(sites, direction):
    found = patches(sites, direction)
    figure = found.plot()
    check_fits(figure)
    mesh = figure.axes[0].collections[0]
    low, high = mesh.get_clim()
    assert (low + high) / 2 == pytest.approx(0.0 if direction == "restore" else 1.0)
    other = next(dim for dim in found.scores.dims if dim != "layer")
    shown = mesh.get_array().reshape(-1, 4)
    np.testing.assert_allclose(shown, found.scores.transpose(other, "layer").values)
    verb = "clean in the corrupted run" if direction == "restore" else "corrupted in the clean run"
    assert figure.axes[0].get_title().endswith(verb)


@pytest.mark.parametrize("direction", ["restore", "break"])
def test_means_over_facts_are_drawn_as_those_of_one(direction):
    average = locate.average_patches([patches("attn_head_z", direction)] * 2)
    figure, one = average.plot(), patches("attn_head_z", direction).plot()
    check_fits(figure)
    mesh, its = figure.axes[0].collections[0], one.axes[0].collections[0]
    np.testing.assert_allclose(mesh.get_array(), its.get_array())
    assert mesh.get_clim() == pytest.approx(its.get_clim())
    assert figure.axes[0].get_title() == one.axes[0].get_title()
    assert figure.get_suptitle() == "logit(answer) − logit(new answer): mean over 2 facts"


def test_means_of_senders_have_their_errors():
    def of(first, second):
        values = (("metric", "sender"), np.array([[first, second]]))
        ends = {"clean": ("metric", [1.0]), "corrupted": ("metric", [0.0])}
        coords = {"metric": ["probability"], "sender": ["a1.h2", "m0"]}
        info = {
            "model": "tiny", "sites": "paths_to_logits", "receivers": ["logits"], "direction": "break",
            "by": ["sender"], "metrics": {"probability": "p({answer})"},
        }  # fmt: skip
        return locate.Patches(
            data=xr.Dataset({"values": values, **ends}, coords=coords), metric="probability", info=info
        )

    average = locate.average_patches([of(0.5, 0.8), of(0.7, 1.2)])
    assert average.best() == locate.Site("attn_head", layer=1, head=2)
    figure = average.plot()
    check_fits(figure)
    bars = figure.axes[0].patches
    np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in bars], [0.6, 1.0])
    (whiskers,) = figure.axes[0].collections
    np.testing.assert_allclose(whiskers.get_segments()[0][:, 0], [0.5, 0.7])


def test_tokens_are_starred_and_on_top():
    axes = patches().plot().axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert sum(label.endswith("*") for label in labels) == 1
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_a_token_is_chosen_where_there_are_too_many_dimensions():
    found = patches("attn_head_z", by=("layer", "position", "head"))
    with pytest.raises(SiteError, match="layer, position, head: give position, one of"):
        found.plot()
    figure = plot_patches(found, position=-1)
    np.testing.assert_allclose(
        figure.axes[0].collections[0].get_array().reshape(-1, 4),
        found.scores.isel(position=-1).transpose("head", "layer").values,
    )
    assert "at “in”" in figure.axes[0].get_title()


def test_values_have_their_unit():
    figure = plot_patches(patches(), values="value")
    assert figure.axes[1].get_xlabel() == "logit(Paris) − logit(Rome)"
    assert figure.get_suptitle().startswith("logit(Paris) − logit(Rome): ")


def test_paths_name_their_receivers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = locate.path_patch(
            model(), FACT, locate.TokenSwap("Rome"), receivers=["a3.h1.q"], metric="logit_diff", progress=False
        )
    figure = found.plot()
    check_fits(figure)
    assert figure.axes[0].get_title() == "paths to a3.h1.q corrupted in the clean run"


def test_named_senders_are_bars():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = locate.path_patch(
            model(), FACT, locate.TokenSwap("Rome"), senders=["a1.h2", "m0"], metric="logit_diff", progress=False
        )
    for values, expected, start in (("score", found.scores, 1.0), ("value", found.values, found.clean)):
        figure = plot_patches(found, values=values)
        check_fits(figure)
        bars = figure.axes[0].patches
        np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in bars], expected.values, rtol=1e-5)
        np.testing.assert_allclose([bar.get_x() for bar in bars], start)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a1.h2", "m0"]


def test_a_single_row_or_layer_is_drawn_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = locate.patch(model(), FACT, locate.TokenSwap("Rome"), positions="last", layers=[2], progress=False)
        mlps = locate.path_patch(model(), FACT, locate.TokenSwap("Rome"), senders="mlps", progress=False)
        receivers = [f"a3.h{head}.{side}" for head in range(2) for side in "qkv"]
        many = locate.path_patch(model(), FACT, locate.TokenSwap("Rome"), receivers=receivers, progress=False)
    for found in (last, mlps, many):
        check_fits(found.plot())


def test_prompts_that_differ_lend_no_words_to_each_other():
    other = Fact(prompt="I think that {} is in", subject="Paris", target="Rome", target_new="Europe")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = locate.patch(
            model(), [FACT, other], locate.ZeroEmbedding(), metric="logit_diff", progress=False
        )  # fmt: skip
    figure = found.plot()
    assert figure.get_suptitle().startswith("logit(answer) − logit(new answer): ")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    prompt = locate.encode_fact(model(), FACT)
    shared = [tiny.tokenizer().decode([token]).strip() for token in prompt.tokens.tolist()]
    start, end = prompt.subject_span
    assert labels[:start] + labels[end:] == shared[:start] + shared[end:]
    assert labels[start:end] == [f"[{place}]*" for place in range(start, end)]


def test_divergences_change_absolutely():
    found = locate.attention_knockout(model(), FACT, window=2, metric="kl_divergence", progress=False)
    assert not found.is_relative
    np.testing.assert_allclose(found.change, found.values, atol=1e-6)
    figure = found.plot()
    check_fits(figure)
    assert "[%]" not in figure.axes[0].get_ylabel()


def test_knockouts_are_lines_or_maps():
    lines = locate.attention_knockout(
        model(), FACT, source={"subject": "subject", "last": "last"}, window=2, progress=False
    )
    figure = lines.plot()
    check_fits(figure)
    for line, source in zip(figure.axes[0].lines, ("subject", "last"), strict=False):
        np.testing.assert_allclose(line.get_ydata(), 100 * lines.change.sel(source=source))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["last ↛ subject", "last ↛ last"]
    heads = locate.attention_knockout(model(), FACT, heads=True, progress=False)
    check_fits(heads.plot())


def test_heads_of_a_trace():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = locate.causal_trace(
            model(), FACT, kinds=["attn_head"], corruption=locate.TokenSwap("Rome"), positions="last", progress=False
        )
    figure = plot_trace_heads(trace)
    check_fits(figure)
    np.testing.assert_allclose(
        figure.axes[0].collections[0].get_array().reshape(4, 4), trace.head_effect[0].T.values, rtol=1e-5
    )
    with pytest.raises(SiteError, match="did not visit position 0"):
        plot_trace_heads(trace, position=0)


def test_long_units_are_written_once_and_broken_states_show_their_effect():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = locate.causal_trace(
            model(), FACT, corruption=locate.TokenSwap("Rome"), direction="break", metric="logit_diff", progress=False
        )
    figure = trace.plot()
    check_fits(figure)
    assert figure.get_supxlabel() == "change of logit(Paris) − logit(Rome)"
    mesh = figure.axes[0].collections[0]
    np.testing.assert_allclose(
        mesh.get_array().reshape(-1, 4), trace.indirect_effect.sel(kind="resid").values, rtol=1e-5, atol=1e-6
    )
