import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from locate.errors import LocateError
from locate.figures.sheet import sheet
from locate.figures.style import label_rows, shown_number
from tests.drawings import COLUMN, DPI, DRAWINGS, states, trace
from tests.figures import check_fits, check_readable

SAMPLE = ("circuit", "flow", "knockout_of_heads", "patches_of_senders", "trace_shift")
slow = pytest.mark.slow("a sample of the figures stands for all")
sampled = pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=slow) for name in DRAWINGS]
)


def axes_of(name: str, **options) -> tuple[Figure, list]:
    """As many as it says that it needs."""
    with pytest.raises(LocateError, match=r"ax must be \d+ Axes") as told:
        DRAWINGS[name](ax=[])
    n = int(re.search(r"must be (\d+) Axes", str(told.value))[1])
    figure = plt.figure(figsize=(7.0, 2.6 * n), layout="constrained", **options)
    return figure, figure.subplots(n, 1, squeeze=False).ravel().tolist()


@sampled
def test_every_figure_fits_a_column_without_a_title_and_changes_no_settings(name):
    before, open_ones = dict(mpl.rcParams), plt.get_fignums()
    figure = DRAWINGS[name](width=COLUMN, title=None)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_ones
    assert figure.get_figwidth() == COLUMN
    assert not figure.get_suptitle()
    figure.set_dpi(DPI)
    check_fits(figure)
    check_readable(figure)


@sampled
def test_every_figure_draws_on_the_users_axes(name):
    figure, given = axes_of(name)
    assert DRAWINGS[name](ax=given, title="of my own") is figure
    assert all(axes.has_data() for axes in given)
    assert [axes for axes in figure.axes if axes.get_label() != "<colorbar>"] == given
    assert given[0].get_title() == "of my own"
    figure.draw_without_rendering()
    plt.close(figure)


def test_a_subfigure_holds_all_of_it_with_its_headline():
    figure = plt.figure(figsize=(7.0, 2.6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert trace(ax=left, kinds=["mlp", "attn"]) is figure
    assert states().plot(ax=right, title=None) is figure
    assert (len(left.axes), len(right.axes)) == (4, 2)  # each panel with its colour bar, or one
    assert left.get_suptitle().startswith("p(Paris): 0.70 clean")
    assert not right.get_suptitle()
    plt.close(figure)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ax": "axes"}, "must be 1 Axes.*found 1: str"),
        ({"width": 3.3, "figsize": (3, 3)}, "width, figsize each say a size"),
        ({"width": 330}, "width is in inches"),
        ({"heading": "x"}, "plot_patches takes no heading"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, told):
    with pytest.raises(LocateError, match=told):
        states().plot(**options)


def test_what_the_user_set_is_kept_and_the_rest_is_ours():
    with mpl.rc_context({"font.size": 12, "axes.linewidth": 2.0, "figure.facecolor": "0.9"}):
        figure = states().plot()
    axes = figure.axes[0]
    assert axes.xaxis.label.get_fontsize() == axes.title.get_fontsize() == 12
    assert axes.spines["left"].get_linewidth() == 2.0
    assert figure.get_facecolor()[:3] == (0.9, 0.9, 0.9)
    assert states().plot().axes[0].xaxis.label.get_fontsize() == 7  # in a column, else 8
    assert states().plot(width=7).axes[0].xaxis.label.get_fontsize() == 8


def test_files_keep_letters_as_text_however_they_are_saved(tmp_path):
    figure = states().plot()
    with mpl.rc_context({"pdf.compression": 0}):
        figure.savefig(tmp_path / "own.pdf")
        plt.figure().savefig(tmp_path / "plain.pdf")
    assert b"/Type3" not in (tmp_path / "own.pdf").read_bytes()
    assert b"/Type0" in (tmp_path / "own.pdf").read_bytes()
    plt.close("all")


@pytest.mark.parametrize("high", [0.6, 4.0])
def test_rows_have_as_many_labels_as_fit_and_the_last_one(high):
    with sheet({"figsize": (3.3, high)}, "rows", width=3.3, height=1.0) as drawn:
        (axes,) = drawn.panels()
        axes.set_ylim(19.5, -0.5)
        label_rows(axes, [f"$row {row}$" for row in range(20)])
    drawn.figure.draw_without_rendering()
    check_readable(drawn.figure)
    labels = [tick.label1.get_text() for tick in axes.yaxis._update_ticks()]
    assert labels[-1] == r"\$row 19\$"
    assert (len(labels) == 20) is (high == 4.0)


def test_what_is_hard_to_read_is_told():
    for spoil, told in (
        (lambda axes: axes.set_xticks(np.linspace(0, 0.1, 9), ["a long label"] * 9), "overlap"),
        (lambda axes: axes.set_title("small", fontsize=6), "6.0 points"),
        (lambda axes: axes.set_title("a\nb\nc\nd\ne"), "a.nb"),
        (lambda axes: axes.set_title("corrupted: -6.47"), "hyphen for a minus"),
        (lambda axes: axes.figure.suptitle("beside the page", x=1.0), "cut off"),
    ):
        figure = plt.figure(figsize=(3, 2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1])
        figure.draw_without_rendering()
        check_readable(figure)
        spoil(axes)
        figure.draw_without_rendering()
        with pytest.raises(AssertionError, match=told):
            check_readable(figure)
        plt.close(figure)
    assert shown_number(-6.47) == "−6.47"
