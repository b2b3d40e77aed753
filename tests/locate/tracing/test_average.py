"""Average indirect effects by role of the token."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import locate
from locate import DataError, LocateError, Site, SiteError
from locate.contrast.bootstrap import mean_interval
from locate.tracing.average import ROLES, token_roles
from tests import tiny
from tests.figures import check_fits


def trace(scores, span, n, **info):
    """Scores of dims position, layer, for one kind."""
    table = np.asarray(scores, dtype=float)[None]
    coords = {"kind": ["mlp"], "position": range(n), "layer": range(table.shape[2])}
    return tiny.made_up_trace(
        xr.DataArray(table, coords=coords, dims=("kind", "position", "layer")), clean=0.9, corrupted=0.1,
        answer=" x", tokens=tuple(f" t{i}" for i in range(n)), span=span, **info,
    )  # fmt: skip


def test_a_metric_that_is_restored_by_going_down_has_its_peak_at_the_lowest():
    scores = np.full((6, 3), 300.0)
    scores[5] = [280.0, 20.0, 900.0]
    table = xr.DataArray(
        scores[None], coords={"kind": ["mlp"], "position": range(6), "layer": range(3)},
        dims=("kind", "position", "layer"),
    )  # fmt: skip
    tokens = tuple(f" t{i}" for i in range(6))
    ranks = tiny.made_up_trace(table, clean=1.0, corrupted=300.0, answer=" x", tokens=tokens, span=(1, 3))
    assert ranks.best("mlp", within="last").layer == 1
    average = locate.average_traces([ranks, ranks])
    assert average.total_effect[0] == -299
    assert average.peak("mlp", "last token")[:2] == (1, -280)
    assert average.best(role="last token") == Site("mlp", layer=1)


def ramp(n, scale=1.0):
    return 0.1 + scale * np.arange(n)[:, None] * np.array([[0.01, 0.02]])


def test_positions_have_the_published_roles():
    assert list(token_roles(trace(ramp(9), (1, 5), 9)).values()) == [[1], [2, 3], [4], [5], [6, 7], [8]]
    # A subject of one token has a last token only; a prompt that ends after the next token, that as its last.
    assert list(token_roles(trace(ramp(4), (2, 3), 4)).values()) == [[], [], [2], [], [], [3]]
    assert list(token_roles(trace(ramp(6), (1, 3), 6)).values()) == [[1], [], [2], [3], [4], [5]]


def test_tokens_are_averaged_within_a_fact_and_facts_count_once():
    traces = [trace(ramp(9), (1, 5), 9), trace(ramp(6, 3.0), (1, 3), 6)]
    average = locate.average_traces(traces)
    assert average.effect.dims == ("kind", "role", "layer")
    assert average.n_facts == 2
    middle = average.data.sel(kind="mlp", role="middle subject tokens")
    np.testing.assert_allclose(middle["effect"], [0.025, 0.05])  # of the first alone
    assert np.isnan(middle["low"]).all()
    last = average.data.sel(kind="mlp", role="last token")
    np.testing.assert_allclose(last["effect"], [(0.08 + 0.15) / 2, (0.16 + 0.30) / 2])
    np.testing.assert_allclose(last["low"], [0.08, 0.16])
    np.testing.assert_allclose(last["high"], [0.15, 0.30])
    assert average.data["count"].values.tolist() == [2, 1, 2, 2, 2, 2]
    assert average.total_effect == pytest.approx((0.8, 0.8, 0.8))
    assert average.peak("mlp", "last token")[0] == 1


def test_intervals_are_over_facts():
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.1, 0.9, size=(12, 4, 1))
    average = locate.average_traces([trace(one, (1, 2), 4) for one in scores], confidence=0.8, resamples=300, seed=5)
    last = average.data.sel(kind="mlp", role="last token", layer=0)
    expected = mean_interval(scores[:, 3, 0] - 0.1, confidence=0.8, resamples=300, seed=5)
    np.testing.assert_allclose([last["effect"], last["low"], last["high"]], expected)
    assert float(last["low"]) < float(last["effect"]) < float(last["high"])


def test_the_seed_decides():
    traces = [trace(ramp(6, s), (1, 3), 6) for s in (1.0, 2.0, 4.0, 5.0)]
    first = locate.average_traces(traces, seed=1)
    xr.testing.assert_identical(first.data, locate.average_traces(traces, seed=1).data)
    assert not first.data.equals(locate.average_traces(traces, seed=2, resamples=50).data)


def with_heads(trace, scores, *, alone):
    """The trace with scores of its heads, of dims position, layer, head; without others where they are alone."""
    heads = xr.DataArray(np.asarray(scores)[None], dims=("metric", "position", "layer", "head"))
    data = trace.data.assign(head_scores=heads, head_standard_error=heads * 0).assign_coords(head=range(heads.shape[3]))
    if alone:
        data = data.drop_vars(["scores", "standard_error", "kind"])
    return replace(trace, data=data, info={**trace.info, "kinds": ["attn_head"] if alone else ["mlp", "attn_head"]})


@pytest.mark.parametrize("alone", [True, False])
def test_heads_are_averaged_like_states(alone, tmp_path):
    generator = np.random.default_rng(0)
    spans = [((1, 5), 9), ((1, 3), 6), ((0, 1), 4)]
    plain = [trace(generator.uniform(0.1, 0.9, size=(n, 2)), span, n) for span, n in spans]
    scores = [generator.uniform(0.1, 0.9, size=(n, 2, 3)) for _, n in spans]
    average = locate.average_traces([with_heads(*both, alone=alone) for both in zip(plain, scores, strict=True)])
    assert average.head_effect.dims == ("role", "layer", "head")
    # Each head's own numbers, averaged as those of a kind.
    for head in range(3):
        alike = locate.average_traces([trace(s[:, :, head], *span) for s, span in zip(scores, spans, strict=True)])
        for name in ("effect", "low", "high"):
            own = average.data[f"head_{name}"].sel(head=head, drop=True)
            np.testing.assert_allclose(own, alike.data[name].sel(kind="mlp"))
    assert average.data["count"].values.tolist() == [2, 1, 3, 3, 3, 3]
    last = average.head_effect.sel(role="last token")
    top = average.top_heads("last token", 2)
    best = Site("attn_head", layer=int(top["layer"][0]), head=int(top["head"][0]))
    assert average.best("attn_head", role="last token") == best
    assert top["effect"].tolist() == sorted(last.values.ravel(), reverse=True)[:2]
    assert float(last.sel(layer=top["layer"][0], head=top["head"][0])) == top["effect"][0]
    table = average.to_dataframe()
    assert len(table) == average.head_effect.size + (0 if alone else average.effect.size)
    xr.testing.assert_equal(locate.load_average(average.save(tmp_path / "a.nc")).data, average.data)
    figure = average.plot_heads(role="last token")
    check_fits(figure)
    np.testing.assert_allclose(figure.axes[0].collections[0].get_array(), last.transpose("head", "layer"))
    with pytest.raises(SiteError, match="There is no role 'end'"):
        average.plot_heads(role="end")
    reason = "of single heads alone" if alone else r"There are averages of .*mlp.* by .*found 'attn'"
    with pytest.raises(SiteError, match=reason):
        average.peak("attn", "last token")
    if alone:
        for ask in (lambda: average.effect, average.plot, lambda: average.peak("mlp", "last token")):
            with pytest.raises(SiteError, match="single heads alone; see head_effect"):
                ask()


@pytest.mark.parametrize("kinds", [["mlp"], ["mlp", "attn"], ["resid", "mlp", "attn"]])
@pytest.mark.parametrize("label", ["logit({answer}) − logit({new})", "rank of {answer}"])
def test_units_of_any_length_fit(kinds, label):
    generator = np.random.default_rng(0)
    scores = xr.DataArray(
        generator.uniform(100, 300, size=(len(kinds), 9, 3)), dims=("kind", "position", "layer"),
        coords={"kind": kinds, "position": range(9), "layer": range(3)},
    )  # fmt: skip
    traces = [
        tiny.made_up_trace(
            scores + shift, clean=1.0, corrupted=310.0, answer=" x", tokens=tuple(f" t{i}" for i in range(9)),
            span=(1, 5), metrics={"probability": label},
        )
        for shift in range(3)
    ]  # fmt: skip
    average = locate.average_traces(traces)
    figure = average.plot()
    check_fits(figure)
    check_fits(average.plot_lines())
    # No effect is white, though here what restores most has the lowest number.
    mesh = figure.axes[0].collections[0]
    assert mesh.get_clim()[1] == 0
    assert min(mesh.cmap(1.0)[:3]) > 0.98
    assert max(mesh.cmap(0.0)[:3]) < 0.6
    figure = traces[0].plot()
    check_fits(figure)
    assert min(figure.axes[0].collections[0].cmap(1.0)[:3]) > 0.98


def test_only_like_is_averaged_with_like():
    with pytest.raises(LocateError, match="no traces"):
        locate.average_traces([])
    with pytest.raises(LocateError, match="differ in their window: 1, 10"):
        locate.average_traces([trace(ramp(6), (1, 3), 6), trace(ramp(6), (1, 3), 6, window=10)])
    with pytest.raises(LocateError, match="differ in their direction: break, restore"):
        locate.average_traces([trace(ramp(6), (1, 3), 6), trace(ramp(6), (1, 3), 6, direction="break")])
    for how in ({"corruption": "ZeroEmbedding"}, {"precision": "bfloat16"}, {"scale": 5.0}):
        with pytest.raises(LocateError, match=f"differ in their {next(iter(how))}: "):
            locate.average_traces([trace(ramp(6), (1, 3), 6), trace(ramp(6), (1, 3), 6, **how)])
    with pytest.raises(SiteError, match=r"have no heads; the traces were made with kinds=\['mlp'\]"):
        locate.average_traces([trace(ramp(6), (1, 3), 6)]).plot_heads()


def test_metrics_of_different_targets_are_not_averaged():
    one, other = (trace(ramp(6), (1, 3), 6, metrics={"probability": label}) for label in ("p({answer})", "p(Rome)"))
    with pytest.raises(LocateError, match=r"different metrics: p\(Rome\), p\({answer}\)"):
        locate.average_traces([one, other])


def test_saving_loading_and_figures(tmp_path):
    average = locate.average_traces([trace(ramp(9), (1, 5), 9), trace(ramp(6, 3.0), (1, 3), 6)])
    loaded = locate.load_average(average.save(tmp_path / "a.nc"))
    xr.testing.assert_equal(loaded.data, average.data)
    assert (loaded.info, loaded.total_effect) == (average.info, average.total_effect)
    with pytest.raises(DataError, match="There is no average file"):
        locate.load_average(tmp_path / "none.nc")
    heat = average.plot()
    check_fits(heat)
    assert [label.get_text() for label in heat.axes[0].get_yticklabels()] == list(ROLES)
    check_fits(average.plot_lines())
    lines = average.plot_lines(roles=["last token"])
    check_fits(lines)
    np.testing.assert_allclose(lines.axes[0].lines[0].get_ydata(), average.effect.sel(kind="mlp", role="last token"))
    own = average.data.sel(kind="mlp", role="last token")
    shade = lines.axes[0].collections[0].get_paths()[0].vertices
    for layer, low, high in zip(own["layer"].values, own["low"].values, own["high"].values, strict=True):
        heights = shade[shade[:, 0] == layer, 1]
        np.testing.assert_allclose((heights.min(), heights.max()), (low, high))
    # A role that no fact has a token of is neither a row nor a line.
    ends = locate.average_traces([trace(ramp(4), (2, 3), 4)] * 2)
    there = ["last subject token", "last token"]
    assert [label.get_text() for label in ends.plot().axes[0].get_yticklabels()] == there
    assert [text.get_text() for text in ends.plot_lines().legends[0].get_texts()] == there
    for ask in (lambda: ends.peak("mlp", "further tokens"), lambda: ends.best(role="further tokens")):
        with pytest.raises(SiteError, match="No fact has a token of the role 'further tokens'"):
            ask()
    assert average.best() == Site("mlp", layer=average.peak("mlp", "last subject token")[0])
    assert ends.plot().get_suptitle().startswith("Gaussian noise, 2 facts: ")
    with pytest.raises(SiteError, match="There is no role 'end'"):
        average.plot_lines(roles=["end"])
    with pytest.raises(SiteError, match=r"can be plotted for the kinds \['mlp'\], found \['attn'\]"):
        average.plot(kinds=["attn"])


def test_the_last_state_is_not_best_where_the_subject_ends_the_prompt():
    grid = np.stack([np.arange(6.0).reshape(2, 3)] * 2)
    scores = xr.DataArray(
        grid, dims=("kind", "position", "layer"),
        coords={"kind": ["resid", "mlp"], "position": [0, 1], "layer": [0, 1, 2]},
    )  # fmt: skip
    how = {"clean": 9.0, "corrupted": 0.0, "answer": " x"}
    found = tiny.made_up_trace(scores, tokens=("a", "b"), span=(0, 2), **how)
    assert (found.best("resid"), found.best("mlp")) == (Site("resid", 2, 0), Site("mlp", 2, 1))
    assert found.best("resid", within="last") == found.best("resid", within="all") == Site("resid", 2, 1)
    alone = tiny.made_up_trace(scores, tokens=("a", "b"), span=(1, 2), **how)
    with pytest.raises(SiteError, match="Ask for another kind, or for within='last'"):
        alone.best("resid")
