"""The figure of a circuit shows what takes part, and every edge once."""

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from locate import Circuit, LocateError, plots
from locate.figures.layered import SIGNS
from tests import tiny
from tests.locate.circuits.test_circuit import grid


def drawn(figure):
    """The words in boxes, and of curves width and colour."""
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    curves = [patch for patch in axes.patches if len(patch.get_path().vertices) == 4 and patch not in boxes]
    words = [text.get_text() for text in axes.texts]
    assert len(words) == len(boxes)
    return words, [(curve.get_linewidth(), curve.get_edgecolor()[:3]) for curve in curves]


@pytest.mark.parametrize("how", ["greedy", "threshold"])
def test_every_edge_is_drawn_once_by_size_and_sign(how):
    circuit = tiny.made_up_circuit(grid()).top(60, how)
    words, curves = drawn(circuit.plot())
    assert sorted(words) == sorted(name.removeprefix("a").replace(".h", ".") for name in circuit.nodes)
    assert [colour for _, colour in curves] == [
        pytest.approx(to_rgb(SIGNS[int(score < 0)])) for *_, score in reversed(circuit.edges)
    ]
    widths = [width for width, _ in curves]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_only_what_takes_part_has_room():
    circuit = tiny.made_up_circuit(grid(n_layers=9))
    names = ["embed", "a2.h4", "m7"]
    kept = circuit.kept & circuit.kept["writer"].isin(names) & circuit.kept["reader"].isin(["a2.h4.q", "m7", "logits"])
    axes = Circuit.of(grid(n_layers=9), circuit.scores, model_print="tiny", kept=kept).plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "7"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "MLP"]


@pytest.mark.parametrize("figsize", [None, (3.5, 3.0), (7.0, 9.0)])
def test_it_keeps_to_its_size(figsize):
    figure = tiny.made_up_circuit(grid(n_layers=40, n_heads=12)).top(200).plot(figsize=figsize)
    width, height = figure.get_size_inches()
    assert (width, height) == (figsize or pytest.approx((4.6, 9), abs=0.1))
    whole = figure.bbox.padded(0.5)
    figure.draw_without_rendering()
    for text in [*figure.texts, *figure.axes[0].texts, *figure.legends[0].get_texts()]:
        box = text.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1  # noqa: PT018


def test_a_circuit_without_edges_is_not_drawn():
    empty = tiny.made_up_circuit(grid()).top(0)
    with pytest.raises(LocateError, match="no edges"):
        plots.plot_circuit(empty)
