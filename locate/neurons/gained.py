"""Gains of log-probability by neuron, and by head and position."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import xarray as xr

from locate.errors import LocateError
from locate.neurons.scores import NeuronScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class LogprobGain(NeuronScores):
    """By how much each neuron, and each head from each position, makes facts' answers likelier, in nats.

    Attributes:
        data: ``scores`` (dims ``fact, layer, neuron``); ``heads`` (dims ``fact, layer, head, source``), where they were
            asked for; where neurons were screened, ``exact``: the scores of the others are upper bounds.
        info: how it was made.

    >>> gain = locate.neuron_logprob_gain(model, fact, screen=20, progress=False)
    >>> bool(gain.data["exact"].sum() >= 20)
    True
    """

    stored_as = "logprob_gain"
    figures: ClassVar[Mapping[str, str]] = {
        **NeuronScores.figures, "plot_heads": "locate.neurons.head_figures:plot_value_heads",
    }  # fmt: skip

    @property
    def heads(self) -> xr.DataArray:
        """Gains by head and the position that it takes from; dims ``fact, layer, head, source``.

        Raises:
            LocateError: heads were not asked for.
        """
        if "heads" not in self.data:
            raise LocateError("These gains are of neurons alone. Make them with heads=True.")
        return self.data["heads"]

    def top_heads(self, n: int = 10, fact: int = 0) -> pd.DataFrame:
        """The heads and positions of the largest gains, the largest first.

        Raises:
            SiteError: there is no such fact.
            LocateError: heads were not asked for.

        >>> len(locate.neuron_logprob_gain(model, fact, progress=False).top_heads(3))
        3
        """
        self._check(fact)
        table = self.heads.isel(fact=fact, drop=True).to_series().dropna()
        best = table.sort_values(ascending=False, kind="stable").head(n).rename("score").reset_index()
        best = best.rename(columns={"source": "position"})
        tokens = self.info["tokens"][fact]
        best.insert(3, "token", [tokens[position] for position in best["position"]])
        return best

    def plot_heads(self, fact: int = 0, **options: Any) -> "Figure":
        """A fact's heads, by layer and the token that they take from; see ``locate.plots.plot_value_heads``."""
        self._check(fact)
        return self.draw("plot_heads", fact=fact, **options)


def load_logprob_gain(path: str | Path) -> LogprobGain:
    """Read gains that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> gain = locate.neuron_logprob_gain(model, fact, layers=[2], progress=False)
    >>> locate.load_logprob_gain(gain.save("gain.nc")).scores.shape == gain.scores.shape
    True
    """
    return LogprobGain.load(path)
