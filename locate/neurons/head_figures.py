"""The figure of value heads: from which token, and in which layer, heads make the answer likelier."""

from typing import Unpack

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import SiteError, counted
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import heat_map, label_rows, shown_text, token_label
from locate.neurons.gained import LogprobGain


def plot_value_heads(
    gain: LogprobGain, *, fact: int = 0, cmap: str | Colormap = "RdBu_r", **options: Unpack[PlotOptions]
) -> Figure:
    """A heat map of a fact's heads: layers across, the tokens that they take from down; of each place the head of most
    effect.

    Args:
        gain: what ``neuron_logprob_gain`` gave, with heads.
        fact: its place among the facts.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: there is no such fact.
        LocateError: heads were not asked for.

    >>> gain = locate.neuron_logprob_gain(model, fact, progress=False)
    >>> figure = locate.plots.plot_value_heads(gain)
    """
    if not 0 <= fact < gain.data.sizes["fact"]:
        raise SiteError(f"There is no fact {fact}: these gains are of {counted(gain.data.sizes['fact'], 'fact')}.")
    tokens = gain.info["tokens"][fact]
    values = gain.heads.isel(fact=fact).values[:, :, : len(tokens)]
    there = ~np.isnan(values).all(1, keepdims=True)
    strongest = np.nan_to_num(np.abs(values)).argmax(1, keepdims=True)
    table = np.where(there, np.take_along_axis(values, strongest, 1), np.nan)[:, 0].T
    reach = max(float(np.nanmax(np.abs(table))), 1e-9)
    with sheet(options, "plot_value_heads", width=4.0, height=1.5 + 0.16 * max(len(tokens), 5)) as drawn:
        (axes,) = drawn.panels()
        mesh = heat_map(axes, table, cmap, -reach, reach)
        label_rows(axes, [token_label(token, False) for token in tokens])
        layers = gain.data["layer"].values
        if list(layers) != list(range(len(layers))):
            axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        drawn.colorbar(mesh, axes, "gain of log p [nat]")
        answer = shown_text("".join(gain.info["answer_tokens"][fact] or []))
        drawn.headline(f"value heads for “{answer}”: the head of most effect by token and layer")
    return drawn.figure
