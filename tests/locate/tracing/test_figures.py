"""Figures of traces."""

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from locate import SiteError
from locate.plots import plot_trace, save_figure
from tests import tiny
from tests.figures import check_fits

TOKENS = ("I", " like", " The", " £$x$", "\n", "  ", " a_b^2", " of")
SPAN = (2, 4)


@pytest.fixture
def trace():
    scores = np.random.default_rng(0).uniform(0.05, 0.9, size=(3, len(TOKENS), 12))
    coords = {"kind": ["resid", "mlp", "attn"], "position": range(len(TOKENS)), "layer": range(12)}
    table = xr.DataArray(scores, coords=coords, dims=("kind", "position", "layer"))
    return tiny.made_up_trace(
        table, clean=0.8, corrupted=0.0123, answer=" P$r$s", tokens=TOKENS, span=SPAN, window=10
    )  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title()]


def bars(figure):
    return [axes for axes in figure.axes if not axes.get_title()]


def test_one_panel_per_kind_with_tokens_down_and_layers_across(trace):
    figure = trace.plot()
    titles = ["restored state", "restored MLP window of 10", "restored attention window of 10"]
    assert [axes.get_title() for axes in panels(figure)] == titles
    for kind, axes in zip(["resid", "mlp", "attn"], panels(figure), strict=True):
        mesh = axes.collections[0]
        np.testing.assert_array_equal(mesh.get_array().reshape(8, 12), trace.scores.sel(kind=kind))
        assert axes.get_xlabel() == "layer"
        # Cells are centred on their layer and token, and the first token is on top.
        assert axes.get_xlim() == (-0.5, 11.5)
        assert axes.get_ylim() == (7.5, -0.5)
    assert figure.get_suptitle() == "p(P$r$s): 0.80 clean, 0.012 with subject* corrupted"


def test_tokens_are_readable_and_the_subjects_are_starred(trace):
    figure = plot_trace(trace)
    figure.canvas.draw()
    labels = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    assert labels == ["I", "like", "The*", r"£\$x\$*", "↵", "␣", "a_b^2", "of"]
    # The rows are named once, at the left.
    for axes in panels(figure)[1:]:
        assert not [label for label in axes.get_yticklabels() if label.get_visible() and label.get_text()]


def test_all_panels_share_a_scale_that_reaches_the_clean_and_corrupted_probabilities(trace):
    limits = {axes.collections[0].get_clim() for axes in panels(plot_trace(trace))}
    assert limits == {(0.0123, float(trace.scores.max()))}
    low = replace(trace, data=trace.data.assign(scores=trace.data["scores"] / 2))
    assert {axes.collections[0].get_clim() for axes in panels(plot_trace(low))} == {(0.0123, 0.8)}


def test_indirect_effects_are_relative_to_the_corrupted_run(trace):
    figure = plot_trace(trace, kinds=["mlp"], effect="indirect")
    mesh = panels(figure)[0].collections[0]
    np.testing.assert_allclose(mesh.get_array().ravel(), trace.scores.sel(kind="mlp").values.ravel() - 0.0123)
    assert mesh.get_clim()[0] == 0
    assert [axes.get_xlabel() for axes in bars(figure)] == ["change of p(P$r$s)"]
    assert [axes.get_xlabel() for axes in bars(plot_trace(trace, kinds=["mlp"]))] == ["p(P$r$s)"]


def test_kinds_choose_and_order_the_panels(trace):
    titles = [axes.get_title() for axes in panels(plot_trace(trace, kinds=["attn", "resid"]))]
    assert titles == ["restored attention window of 10", "restored state"]
    with pytest.raises(SiteError, match=r"can be plotted for the kinds \['resid', 'mlp'\], found \['attn'\]"):
        plot_trace(replace(trace, data=trace.data.isel(kind=[0, 1])), kinds=["attn"])


def test_a_window_of_one_is_called_an_output(trace):
    one = replace(trace, info={**trace.info, "window": 1})
    assert panels(plot_trace(one, kinds=["mlp"]))[0].get_title() == "restored MLP output"


def lightness(colours):
    srgb = np.asarray(colours)[:, :3]
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


def test_equal_values_are_equally_dark_in_every_panel_and_steps_are_even(trace):
    values = np.linspace(0, 1, 11)
    each = [lightness(axes.collections[0].get_cmap()(values)) for axes in panels(plot_trace(trace))]
    for found in each:
        np.testing.assert_allclose(found, each[0], atol=1.0)
        np.testing.assert_allclose(np.diff(found), -7.3, atol=1.0)
    hues = [axes.collections[0].get_cmap()(0.8) for axes in panels(plot_trace(trace))]
    assert len(set(hues)) == 3


def test_a_colour_map_and_size_may_be_given(trace):
    figure = plot_trace(trace, cmap="cividis", figsize=(9.0, 4.0))
    assert {axes.collections[0].get_cmap().name for axes in panels(figure)} == {"cividis"}
    assert tuple(figure.get_size_inches()) == (9, 4)


@pytest.mark.parametrize("kinds", [["mlp"], ["resid", "attn"], None])
def test_nothing_is_cut_off_or_overlaps(trace, kinds):
    figure = plot_trace(trace, kinds=kinds)
    check_fits(figure)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_plotting_leaves_the_settings_alone(trace, monkeypatch, tmp_path):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("plots are not shown unasked"))
    before = dict(mpl.rcParams)
    save_figure(plot_trace(trace), tmp_path, "x")
    assert dict(mpl.rcParams) == before


def test_figures_are_saved_as_png_and_pdf_with_text(trace, tmp_path):
    figure = plot_trace(trace)
    png, pdf = save_figure(figure, tmp_path / "new" / "folder", "eiffel.mlp")
    assert [png.name, pdf.name] == ["eiffel.mlp.png", "eiffel.mlp.pdf"]
    assert plt.imread(png).shape[:2] == tuple(round(200 * side) for side in figure.get_size_inches()[::-1])
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content.replace(b" ", b"")
    save_figure(figure, tmp_path, "again")
    assert (tmp_path / "again.pdf").read_bytes() == content
