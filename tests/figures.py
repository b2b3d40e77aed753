"""What every figure must be."""

import re
import warnings
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# In points; and how many lines a title may have.
SMALLEST, LINES = 7.0, 4


def check_fits(figure: Figure) -> None:
    """Nothing is cut off, no cell is without extent, and nothing warns (missing glyphs, a layout that does not fit)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 * figure.dpi <= width
    assert box.y1 * figure.dpi <= height
    for axes in figure.axes:
        for mesh in axes.collections:
            if isinstance(mesh, QuadMesh) and axes.get_label() != "<colorbar>":
                corners = mesh.get_coordinates()
                assert np.abs(np.diff(corners[..., 0], axis=1)).min() > 0
                assert np.abs(np.diff(corners[..., 1], axis=0)).min() > 0


def check_readable(figure: Figure) -> None:
    """Of a figure that was drawn: letters are large enough and all on it, and no two labels overlap."""
    page = Bbox.from_bounds(0, 0, *(figure.get_size_inches() * figure.dpi))
    inside = [text for text in figure.findobj(Text) if _shown(text)]
    around = list(_around(figure))
    assert around
    for text in {*inside, *around}:
        told = repr(text.get_text())
        assert text.get_fontsize() >= SMALLEST, f"{told} has {text.get_fontsize()} points"
        assert "$" in told or not re.search(r"(?<!\w)-\d", text.get_text()), f"{told} has a hyphen for a minus"
        assert "( " not in told, told
        assert told.count("\\n") < LINES, told
    boxes = [(text, text.get_window_extent()) for text in around]
    for text, box in boxes:
        cut = max(page.x0 - box.x0, page.y0 - box.y0, box.x1 - page.x1, box.y1 - page.y1)
        assert cut <= 1, f"{text.get_text()!r} is cut off by {cut:.0f} pixels"
    for (one, first), (other, second) in combinations(boxes, 2):
        if one.get_rotation() % 90 == other.get_rotation() % 90 == 0:
            common = Bbox.intersection(_core(first), _core(second))
            assert common is None, f"{one.get_text()!r} and {other.get_text()!r} overlap"


def _core(box: Bbox) -> Bbox:
    """Without the room that letters of no height or depth leave."""
    return box.expanded(0.98, 0.7)


def _shown(text: Text) -> bool:
    return text.get_visible() and bool(text.get_text().strip())


def _around(figure: Figure) -> Iterator[Text]:
    """Titles, labels of axes and ticks, legends: all that stands outside of panels."""
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        yield from filter(_shown, [axes.title, axes.xaxis.label, axes.yaxis.label])
        for axis in (axes.xaxis, axes.yaxis):
            yield from (tick.label1 for tick in axis._update_ticks() if _shown(tick.label1))
        if axes.get_legend():
            yield from axes.get_legend().get_texts()
    for part in (figure, *figure.subfigs):
        yield from filter(_shown, part.texts)
        for legend in part.legends:
            yield from legend.get_texts()
