"""What was attributed to each neuron, and which neurons are a fact's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from locate.errors import LocateError, SiteError, counted
from locate.results import Result, place_of_largest
from locate.showing import ROWS, shown
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a layer's change of P, where it hardly changes anything: less is roundings.
LEAST_CHANGE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronScores(Result):
    """How much each neuron contributes to facts' answers.

    Attributes:
        data: ``scores`` (dims ``fact, layer, neuron``), the mean attribution over a fact's prompts; ``kept``, the share
            of a fact's prompts for which the neuron passes the threshold, and ``coarse``, whether it does for the first
            of them, the fact's own; where there were negatives, ``negative``, the share of those for which it passes;
            ``change`` (dims ``fact, layer``), the mean change of the measure from a layer without its neurons to the
            layer as it is; ``residual``, by how much a layer's attributions miss it, at most over a fact's prompts.
            Where several positions count, ``by_position`` (dims ``fact, position, layer, neuron``), of each fact's own
            prompt, and ``strongest``, the position where most of a neuron's score is.
        info: how it was made.

    >>> neurons.scores.dims
    ('fact', 'layer', 'neuron')
    """

    stored_as = "neurons"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.neurons.figures:plot_neurons"}

    info: dict[str, Any]

    @property
    def scores(self) -> xr.DataArray:
        """Mean attribution over each fact's prompts; dims ``fact, layer, neuron``."""
        return self.data["scores"]

    @property
    def kept(self) -> xr.DataArray:
        """The share of each fact's prompts for which a neuron passes the threshold."""
        return self._need("kept")

    @property
    def missed(self) -> xr.DataArray:
        """By how much of its change a layer's attributions miss it, at most over a fact's prompts: 0 is complete.

        Where the change is less than a thousandth, as a share of that.

        >>> neurons.missed.dims
        ('fact', 'layer')
        """
        return self._need("residual") / np.abs(self.data["change"]).clip(min=LEAST_CHANGE)

    def coarse(self, fact: int = 0) -> list[Site]:
        """The coarse set of a fact: its own prompt's neurons that pass the threshold, the largest scores first.

        Raises:
            SiteError: there is no such fact, or no neuron passes.
            LocateError: these scores have no threshold.

        >>> len(neurons.coarse()) >= 1
        True
        """
        self._check(fact)
        return self._sites(self._need("coarse").isel(fact=fact).values.astype(bool), fact, 1, "its own prompt")

    def refined(self, fact: int = 0, *, share: float = 0.5, negative_share: float = 0.5, least: int = 1) -> list[Site]:
        """The knowledge neurons of a fact: those that pass the threshold for more than a share of its prompts.

        Args:
            fact: its place among the facts.
            share: of the fact's prompts.
            negative_share: neurons that pass for more than this share of the negatives are left out.
            least: fewer neurons are an error.

        Raises:
            SiteError: there is no such fact, or too few neurons pass, with what would let them.
            LocateError: these scores have no threshold.

        >>> neurons.refined()[0].kind
        'neuron'
        """
        self._check(fact)
        own = self.kept.isel(fact=fact).values > share
        if "negative" in self.data:
            own &= self.data["negative"].isel(fact=fact).values <= negative_share
        return self._sites(own, fact, least, f"more than {share:.0%} of its prompts")

    def top(self, n: int = 20, fact: int = 0) -> list[Site]:
        """The neurons of the largest attribution, the largest first; with the position where most of it is, if known.

        Raises:
            SiteError: there is no such fact.

        >>> len(neurons.top(5))
        5
        """
        self._check(fact)
        table = self.scores.isel(fact=fact).values
        order = np.argsort(-table, axis=None, kind="stable")[:n]
        places = [(int(at), int(one)) for at, one in zip(*np.unravel_index(order, table.shape), strict=True)]
        layers = self.scores["layer"].values
        found = [Site("neuron", layer=int(layers[at]), neuron=one) for at, one in places]
        if "strongest" not in self.data:
            return found
        most = self.data["strongest"].isel(fact=fact).values
        return [replace(site, position=int(most[place])) for site, place in zip(found, places, strict=True)]

    def best(self) -> Site:
        """The neuron of the largest mean attribution over all facts.

        >>> neurons.best().kind
        'neuron'
        """
        return Site("neuron", **place_of_largest(self.scores.mean("fact")))

    def plot(self, fact: int = 0, **options: Any) -> "Figure":
        """The neurons of a fact, layer by layer; see ``locate.plots.plot_neurons``."""
        self._check(fact)
        return self.draw(fact=fact, **options)

    def _found(self) -> str:
        return f"largest score {shown(float(self.scores.max()))} ({self.info.get('measure', 'attribution')})"

    def _rows(self) -> pd.DataFrame:
        """The best of the first fact."""
        sites = self.top(ROWS)
        scores = [float(self.scores.isel(fact=0).sel(layer=one.layer, neuron=one.neuron)) for one in sites]
        table = pd.DataFrame({"layer": [one.layer for one in sites], "neuron": [one.neuron for one in sites]})
        return table.assign(score=scores)

    def _check(self, fact: int) -> None:
        if not 0 <= fact < self.data.sizes["fact"]:
            raise SiteError(f"There is no fact {fact}: these scores are of {counted(self.data.sizes['fact'], 'fact')}.")

    def _need(self, name: str) -> xr.DataArray:
        if name not in self.data:
            raise LocateError(
                f"These scores have no {name!r}: it comes with those that knowledge_neurons gives. Make them again, or "
                "use top(n)."
            )
        return self.data[name]

    def _sites(self, passing: np.ndarray, fact: int, least: int, of: str) -> list[Site]:
        """Those that pass, the largest scores first."""
        if (found := int(passing.sum())) < least:
            raise SiteError(self._too_few(found, fact, of))
        layers, neurons = np.nonzero(passing)
        order = np.argsort(-self.scores.isel(fact=fact).values[passing], kind="stable")
        numbers = self.scores["layer"].values
        return [Site("neuron", layer=int(numbers[layers[i]]), neuron=int(neurons[i])) for i in order]

    def _too_few(self, found: int, fact: int, of: str) -> str:
        share, largest = float(self.kept.isel(fact=fact).max()), float(self.scores.isel(fact=fact).max())
        negative = ""
        if "negative" in self.data and self.data["negative"].isel(fact=fact).max() > 0:
            negative = ", those of its negatives left out"
        remedy = (
            "none counts for the answer, since no attribution is above 0" if share == 0 and largest <= 0
            else f"the most that any neuron has is {share:.0%} of the prompts. Lower the share, or the threshold"
        )  # fmt: skip
        passing = counted(found, "neuron") if found else "No neuron"
        return (
            f"{passing} of {str(self.data['fact'].values[fact])!r} with {self.info['threshold']} of the largest "
            f"attribution for {of}{negative}; {remedy}."
        )

    def _tables(self) -> Sequence[xr.Dataset]:
        return [self.data[[name for name, one in self.data.items() if one.dims == ("fact", "layer", "neuron")]]]


def load_neurons(path: str | Path) -> NeuronScores:
    """Read scores that were saved.

    Raises:
        DataError: the file is missing or holds no neuron scores.

    >>> load_neurons(neurons.save("neurons.nc")).info["rule"]
    'adaptive'
    """
    return NeuronScores.load(path)


def check_threshold(threshold: float) -> None:
    """Whether a share of the largest attribution leaves any neuron.

    Raises:
        LocateError: it cannot.

    >>> check_threshold(0.2)
    """
    if not 0 <= threshold < 1:
        raise LocateError(
            f"threshold must be at least 0 and below 1, found {threshold:g}: it is a share of the largest attribution, "
            "which no neuron exceeds. Use 0.2 to 0.3."
        )


def passing_of(each: Float[Tensor, "prompt layer neuron"], threshold: float) -> Bool[Tensor, "prompt layer neuron"]:
    """Which neurons exceed a share of their prompt's largest attribution; none where none is above 0.

    >>> import torch
    >>> passing_of(torch.tensor([[[1.0, 0.5, 0.1]]]), 0.3).tolist()
    [[[True, True, False]]]
    """
    return each > threshold * each.flatten(1).amax(1).clamp_min(0)[:, None, None]
