"""What every figure must be."""

import warnings

import numpy as np
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure


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
