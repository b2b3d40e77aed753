"""A figure of what a change does to the weights."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.updates import WeightUpdate
from locate.model.weights import down_projection, edited_layers

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}


def plot_footprint(
    model: TransformerBridge, update: WeightUpdate, *, figsize: tuple[float, float] = (6.2, 2.6)
) -> Figure:
    """Draw how an update's change is spread over the MLP neurons of each layer it touches.

    >>> figure = plot_footprint(model, update)
    """
    downs = [down_projection(model, layer) for layer in edited_layers(model, update.parameters)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=figsize, layout="constrained")
        for down in downs:
            # A neuron's output weights: a column of W, which some models store as a row.
            norms = np.sort(update.delta(down.name).norm(dim=1 if down.transposed else 0).numpy())[::-1]
            shares = np.cumsum(norms**2) / np.sum(norms**2)
            axes.plot(np.arange(1, len(norms) + 1) / len(norms), shares, label=down.name)
        axes.set(xlabel="share of neurons, largest change first", ylabel="share of ‖ΔW‖²", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure
