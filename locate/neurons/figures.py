"""The figure of neurons' scores: which neurons, in which layers."""

from typing import Unpack

import numpy as np
import seaborn as sns
from jaxtyping import Bool
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from locate.errors import SiteError, counted
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import Whole, fitted, shown_text
from locate.neurons.scores import NeuronScores

_FOR, _AGAINST, _OTHER = "#0173b2", "#d55e00", "0.55"
# Of the neurons shown, so many are named above the panel.
_NAMED = 3


def plot_neurons(
    neurons: NeuronScores,
    *,
    fact: int = 0,
    n: int = 50,
    share: float = 0.5,
    **options: Unpack[PlotOptions],
) -> Figure:
    """A fact's neurons: the largest scores, either way, by layer; and below what each layer's neurons sum to.

    Filled dots are the refined set, where the scores have one. Bars are the sums of what is above and of what is below
    0; the line is both together.

    Args:
        neurons: what was attributed.
        fact: its place among the facts.
        n: how many neurons are shown.
        share: of the prompts, for the refined set.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: there is no such fact.

    >>> figure = locate.plots.plot_neurons(neurons, n=20)
    """
    if not 0 <= fact < neurons.data.sizes["fact"]:
        raise SiteError(f"There is no fact {fact}: these scores are of {counted(neurons.data.sizes['fact'], 'fact')}.")
    table = neurons.scores.isel(fact=fact)
    layers, values = table["layer"].values, np.nan_to_num(table.values)
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:n]
    rows, columns = np.unravel_index(order, values.shape)
    refined = _refined(neurons, fact, share)[rows, columns]
    with sheet(options, "plot_neurons", width=3.5, height=3.4, panels=2) as drawn:
        upper, lower = drawn.panels(2, 1, sharex=True, height_ratios=(3, 2))
        for name, chosen, face in (("others", ~refined, "none"), ("refined set", refined, _FOR)):
            if chosen.any():
                upper.scatter(
                    layers[rows[chosen]], values[rows[chosen], columns[chosen]], s=12, linewidth=0.7, facecolor=face,
                    edgecolor=_FOR if name == "refined set" else _OTHER, label=name,
                )  # fmt: skip
        if refined.any():
            upper.legend(frameon=False, handletextpad=0.1, borderpad=0)
        named = ", ".join(f"{layers[row]}.{column}" for row, column in zip(rows[:_NAMED], columns, strict=False))
        upper.set_title(fitted(f"the {len(order)} largest; first {named}", 0.7 * drawn.width))
        upper.set_ylabel("neuron")
        for part, colour in ((values.clip(min=0), _FOR), (values.clip(max=0), _AGAINST)):
            lower.bar(layers, part.sum(-1), color=colour, width=0.8, linewidth=0)
        lower.plot(layers, values.sum(-1), color="black", linewidth=0.8, marker="o", markersize=2)
        lower.set(xlabel="layer", ylabel="layer's sum")
        lower.xaxis.set_major_locator(Whole())
        for axes in (upper, lower):
            axes.axhline(0, color="black", linewidth=0.5)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            sns.despine(ax=axes)
        drawn.headline(_headline(neurons, fact))
    return drawn.figure


def _refined(neurons: NeuronScores, fact: int, share: float) -> Bool[np.ndarray, "layer neuron"]:
    """The refined set as a table; of scores without one, nothing."""
    shape = neurons.scores.shape[1:]
    found = np.zeros(shape, dtype=bool)
    if "kept" in neurons.data:
        at = {int(layer): row for row, layer in enumerate(neurons.scores["layer"].values)}
        for site in neurons.refined(fact, share=share, least=0):
            found[at[site.layer], site.neuron] = True
    return found


def _headline(neurons: NeuronScores, fact: int) -> str:
    info = neurons.info
    of = "".join((info.get("answer_tokens") or [None] * (fact + 1))[fact] or [])
    answer = f" of {shown_text(of)}" if of else ""
    asked = str(neurons.data["fact"].values[fact])
    how, measure = info.get("method", "attribution"), info.get("measure", "probability")
    return f"“{asked}”: {how} on {measure}{answer}"
