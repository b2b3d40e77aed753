"""What every figure must be."""

import warnings

from matplotlib.figure import Figure


def check_fits(figure: Figure) -> None:
    """Nothing is cut off, and nothing warns while it is drawn (a missing glyph, or a layout that does not fit)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 * figure.dpi <= width
    assert box.y1 * figure.dpi <= height
