"""Where each way of locating points, and what is said of the layer that was edited."""

import numpy as np
import pytest
import xarray as xr

from edit import ROME
from edit.report.arrow import points_to, why_there
from locate import NeuronScores, Patches
from tests import tiny

TOKENS = (" The", " <b>", " is")


def results():
    """A trace that peaks in layer 2, patches in layer 1, and neurons in layer 0."""
    table = xr.DataArray(
        [[[0.1, 0.1, 0.3], [0.2, 0.2, 0.5], [0.1, 0.1, 0.9]]],
        coords={"kind": ["mlp"], "position": range(3), "layer": range(3)}, dims=("kind", "position", "layer"),
    )  # fmt: skip
    trace = tiny.made_up_trace(table, clean=0.9, corrupted=0.1, answer=" x", tokens=TOKENS, span=(0, 2), window=10)
    values = np.full((1, 3, 2), 0.1)
    values[0, 1, 0] = 0.4
    patches = Patches(
        data=xr.Dataset(
            {"values": (("metric", "layer", "position"), values), "clean": ("metric", [0.9]),
             "corrupted": ("metric", [0.1])},
            coords={"metric": ["probability"], "layer": range(3), "position": [0, 1]},
        ),
        metric="probability", info={"sites": "mlp_out", "direction": "restore", "tokens": TOKENS},
    )  # fmt: skip
    scores = np.zeros((1, 3, 4))
    scores[0, 0, 3] = 0.25
    data = xr.Dataset({"scores": (("fact", "layer", "neuron"), scores)}, coords={"layer": range(3)})
    data = data.assign_coords(neuron=range(4))
    return trace, patches, NeuronScores(data=data, info={"steps": 5, "prompts": [["a", "b"]]})


def test_each_points_to_its_own_best_site():
    found = {name: one.describe() for name, one in points_to(*results()).items()}
    # The last token is not of the subject, although more comes back there.
    assert found["trace"]["site"] == {"kind": "mlp", "layer": 2, "position": 1, "token": " <b>"}
    assert found["trace"]["score"] == pytest.approx(0.5)
    assert (found["patches"]["site"]["layer"], found["patches"]["site"]["token"]) == (1, " The")
    assert found["patches"]["score"] == pytest.approx(0.4)
    assert found["neurons"]["site"] == {"kind": "neuron", "layer": 0, "neuron": 3}
    assert found["neurons"]["score"] == pytest.approx(0.25)
    assert "5 steps, mean over 2 prompts" in found["neurons"]["meaning"]


@pytest.mark.parametrize(("layer", "words"), [(None, "default share of the depth"), (1, "was asked for")])
def test_the_layer_is_explained(layer, words):
    assert words in why_there(ROME(layer=layer))
