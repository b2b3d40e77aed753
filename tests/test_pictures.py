"""Figures look as they did: a change shows, and is accepted with ``make pictures``."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from einops import reduce
from matplotlib.image import imread, imsave
from PIL import Image

from locate.figures import style
from locate.figures.sheet import TextFigure
from locate.patching import figures
from tests.drawings import PICTURES, draw, pictures
from tests.figures import check_readable

# Of pictures that show the same: the most by which a tile of theirs may differ, where white and black differ by 1.
TOLERANCE = 0.03
TILE = 16
PINNED = re.search(r"^matplotlib==(\S+)", (PICTURES.parents[1] / "constraints.txt").read_text(), re.M)[1]

pinned = pytest.mark.skipif(
    mpl.__version__ != PINNED, reason=f"pictures are of matplotlib {PINNED}, whose letters no other draws"
)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The root mean square of the tile where they differ most: a marker or a label is a small part of the whole."""
    squares = ((one - other) ** 2)[..., :3]
    height, width = (-size % TILE for size in squares.shape[:2])
    padded = np.pad(squares, [(0, height), (0, width), (0, 0)])
    return float(reduce(padded, "(h a) (w b) colour -> h w", "mean", a=TILE, b=TILE).max() ** 0.5)


def check(name: str, folder: Path) -> None:
    """Draw it and look at both.

    Raises:
        AssertionError: they differ; the message says where the difference is to be seen, and how it is accepted.
    """
    drawn, known = folder / f"{name}.png", PICTURES / f"{name}.png"
    figure = draw(name, drawn)
    check_readable(figure)
    assert isinstance(figure, TextFigure)
    accept = f"If it should look so, `make pictures` accepts it; the new one is {drawn}"
    assert known.exists(), f"There is no picture {known}. {accept}"
    one, other = imread(known), imread(drawn)
    (height, width), now = one.shape[:2], other.shape[:2]
    assert now == (height, width), f"{known} has {width} × {height} pixels, now {now[1]} × {now[0]}. {accept}"
    found = difference(one, other)
    if found > TOLERANCE:
        imsave(folder / f"{name}-difference.png", np.abs(one - other)[..., :3].clip(0, 1))
        pytest.fail(
            f"{known} does not look like this any more: a tile differs by {found:.3f}, {TOLERANCE} is let pass. "
            f"{accept}, and the difference {folder / f'{name}-difference.png'}"
        )


@pinned
@pytest.mark.parametrize("name", pictures())
def test_figures_look_as_they_did(name, tmp_path):
    check(name, tmp_path)


def test_pictures_are_small_and_all_of_one_version():
    assert {path.stem for path in PICTURES.iterdir()} == set(pictures())
    for path in PICTURES.iterdir():
        assert path.stat().st_size < 40_000, path
        assert f"version{PINNED}," in Image.open(path).info["Software"], f"make pictures draws {path} anew"


@pinned
@pytest.mark.parametrize("change", ["colours", "label", "marker"])
def test_a_changed_figure_is_told(change, monkeypatch, tmp_path):
    def heat_map(axes, table, cmap, *ends):
        mesh = style.heat_map(axes, table, "PuOr_r" if change == "colours" else cmap, *ends)
        axes.set_xlabel("layers" if change == "label" else "layer")
        return mesh

    monkeypatch.setattr(figures, "heat_map", heat_map)
    if change == "marker":
        monkeypatch.setattr(figures, "STYLES", [(colour, "D") for colour, _ in figures.STYLES])
    name = "knockout" if change == "marker" else "patches"
    with pytest.raises(pytest.fail.Exception, match=r"a tile differs by .*make pictures.*-difference\.png"):
        check(name, tmp_path)
    assert (tmp_path / f"{name}-difference.png").exists()
