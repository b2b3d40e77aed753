"""Waterfalls, lines in panels, heat maps side by side, and points of groups: made-up numbers, also narrow ones."""

import numpy as np
import pandas as pd
import pytest

from locate.errors import LocateError
from locate.figures.groups import groups_figure
from locate.figures.lines import line_panels
from locate.figures.maps import Panel, map_panels
from locate.figures.waterfall import waterfall, waterfall_figure
from tests.figures import check_fits

PARTS = pd.DataFrame({"name": list("abcdef"), "value": [0.1, 3.0, -0.2, -2.0, 0.3, 1.0]})


def test_a_waterfall_reaches_its_end_in_the_order_of_the_parts():
    rows = waterfall(PARTS, start=-1.0, end=1.7, n=3)
    assert rows["name"].tolist() == ["b", "d", "f", "3 others", "not attributed"]
    np.testing.assert_allclose(rows["value"], [3, -2, 1, 0.2, 0.5])
    np.testing.assert_allclose(rows["low"], [-1, 2, 0, 1, 1.2])
    exact = waterfall(PARTS, start=-1.0, end=1.2, n=9)
    assert exact["name"].tolist() == list("abcdef")
    assert (exact["low"] + exact["value"]).iloc[-1] == pytest.approx(1.2)


def test_a_waterfall_fits_and_tells_what_it_cannot_draw():
    named = PARTS.assign(name=["$x$", "a12.h11", "巴", "m3", "m4", "m5"])
    check_fits(waterfall_figure(named, start=-1.0, end=1.7, n=3, headline="a headline that is much longer than it"))
    for parts, n in ((PARTS, 0), (PARTS.head(0), 3), (PARTS.assign(value=np.nan), 3)):
        with pytest.raises(LocateError, match="finite parts"):
            waterfall_figure(parts, start=0.0, end=1.0, n=n)


def test_lines_stand_in_panels_of_one_scale():
    rows = [
        (layer, word, state, layer * height)
        for state, height in (("before", 1.0), ("after", 3.0)) for word in ("Paris", "$x$") for layer in range(5)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["layer", "word", "state", "logit"])
    options = {"value": "logit", "by": "word", "panel": "state", "unit": "logit"}
    figure = line_panels(table, **options, marked=[2], figsize=(3.3, 2.3))
    check_fits(figure)
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    with pytest.raises(LocateError, match="'state' is not among them"):
        line_panels(table.drop(columns="state"), **options)
    with pytest.raises(LocateError, match="found 0"):
        line_panels(table.head(0), **options)


def test_maps_stand_side_by_side_where_there_is_room():
    values = np.linspace(-1, 2, 40).reshape(4, 10)
    tokens = [Panel(title=name, values=values, labels=list("abcd"), stars=[(3, 1)]) for name in ("MLP", "attention")]
    heads = Panel(title="heads", values=values[:3], labels=list("012"), rows="head")
    for panels, size, across in ((tokens, None, 2), (tokens, (2.8, 5.0), 1), ([*tokens, heads], None, 1)):
        figure = map_panels(panels, figsize=size)
        check_fits(figure)
        maps = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len({round(axes.get_position().x0, 3) for axes in maps}) == across
        assert {axes.collections[0].get_clim() for axes in maps} == {(-2.0, 2.0)}
        top, bottom = maps[0].transData.transform([(0, 0), (0, 3)])[:, 1]
        assert top > bottom
    with pytest.raises(LocateError, match="label for each row"):
        map_panels([Panel(title="", values=values, labels=list("abc"))])


def test_groups_have_their_means_and_intervals():
    rows = [("edit", "ROME", 1.0)] + [("hop", way, one + shift) for way, shift in (("ROME", 0), ("FT", 2)) for one in
                                      np.linspace(-1, 1, 9)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["role", "method", "share"])
    options = {"value": "share", "by": "role", "unit": "share of the effect", "resamples": 100}
    plain = groups_figure(table, **options, order=["hop", "near", "edit"], levels=(0.0, 1.0))
    check_fits(plain)
    assert [label.get_text() for label in plain.axes[0].get_yticklabels()] == ["hop (18)", "edit (1)"]
    means = {round(float(x), 6) for line in plain.axes[0].lines for x in line.get_xdata() if line.get_marker() == "o"}
    assert means >= {1.0}
    both = groups_figure(table, **options, hue="method", figsize=(2.6, 2.2))
    check_fits(both)
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["ROME", "FT"]
    with pytest.raises(LocateError, match="'role' is not among them"):
        groups_figure(table.drop(columns="role"), **options)
    with pytest.raises(LocateError, match="found 0 groups"):
        groups_figure(table.assign(share=np.nan), **options)
