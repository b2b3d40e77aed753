"""The figure of faithfulness curves draws each with its interval, and random circuits once in the legend."""

import numpy as np
import pytest

from locate import LocateError, plots
from locate.figures.lines import STYLES
from tests.drawings import faithfulness


def without_random(curve):
    return type(curve)(data=curve.data.drop_vars("random"), info=curve.info)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_lines_and_bands_are_those_of_the_curve():
    curve = faithfulness(0.9)
    axes = curve.plot(confidence=0.5).axes[0]
    shares = curve.data["size"].values / 1000
    by_chance, own = axes.lines[-2:]
    for line, values in ((by_chance, curve.random.mean("sample")), (own, curve.curve)):
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([shares, values]))
    low, high = curve.interval(0.5)
    corners = axes.collections[-1].get_paths()[0].vertices
    for bound in (low, high):
        assert {*zip(shares.tolist(), bound.values.round(6).tolist(), strict=True)} <= {
            *map(tuple, corners.round(6).tolist())
        }
    assert axes.get_xscale() == "log"
    assert [line.get_ydata()[0] for line in axes.lines[:2]] == [0, 1]


def test_several_share_a_figure_and_random_circuits_are_named_once():
    one, other = faithfulness(0.9), faithfulness(1.2)
    figure = plots.plot_faithfulness({"IOI": one, "p_0^2 $x$": other})
    assert legend(figure) == [
        f"IOI: CMD {one.cmd:.2f}, CPR {one.cpr:.2f}", f"p_0^2 $x$: CMD {other.cmd:.2g}, CPR {other.cpr:.2f}",
        "random circuits",
    ]  # fmt: skip
    assert figure.get_suptitle() == "tiny, logit_diff, 6 pairs"


def test_no_area_is_told_of_a_curve_that_stops_before():
    curve = faithfulness(0.9)
    short = without_random(type(curve)(data=curve.data.isel(size=slice(5)), info={**curve.info, "model": "other"}))
    assert legend(short.plot()) == ["made up"]
    figure = plots.plot_faithfulness({"whole": without_random(curve), "short": short})
    assert legend(figure)[1] == "short"
    assert figure.get_suptitle() == "logit_diff, 6 pairs"


@pytest.mark.parametrize("count", [0, len(STYLES) + 1])
def test_more_than_can_be_told_apart_are_refused(count):
    curve = faithfulness(0.9)
    with pytest.raises(LocateError, match=f"1 to {len(STYLES)} curves, found {count}"):
        plots.plot_faithfulness({str(index): curve for index in range(count)})
