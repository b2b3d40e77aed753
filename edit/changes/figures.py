"""A figure of what a change does to the weights."""

from typing import Unpack

import numpy as np
from matplotlib.figure import Figure
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.updates import WeightUpdate
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.model.weights import down_projection, edited_layers


def plot_footprint(model: TransformerBridge, update: WeightUpdate, **options: Unpack[PlotOptions]) -> Figure:
    """Draw how an update's change is spread over the MLP neurons of each layer it touches.

    Args:
        model: whose weights they are.
        update: whose change is drawn.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = plot_footprint(model, update)
    """
    downs = [down_projection(model, layer) for layer in edited_layers(model, update.parameters)]
    with sheet(options, "plot_footprint", width=6.2, height=2.6) as drawn:
        (axes,) = drawn.panels()
        for down in downs:
            # A neuron's output weights: a column of W, which some models store as a row.
            norms = np.sort(update.delta(down.name).norm(dim=1 if down.transposed else 0).numpy())[::-1]
            shares = np.cumsum(norms**2) / np.sum(norms**2)
            axes.plot(np.arange(1, len(norms) + 1) / len(norms), shares, label=down.name)
        axes.set(xlabel="share of neurons, largest change first", ylabel="share of ‖ΔW‖²", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(frameon=False, loc="lower right")
        drawn.headline("")
        axes.spines[["top", "right"]].set_visible(False)
    return drawn.figure
