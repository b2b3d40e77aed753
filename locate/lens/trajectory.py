"""What each layer would answer: logits, probabilities and ranks of chosen tokens, by layer and position."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from locate.contrast.bootstrap import mean_interval
from locate.errors import LocateError, SiteError
from locate.results import Result
from locate.showing import spread
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALUES = ("log_probability", "probability", "logit", "rank")


@dataclass(frozen=True, kw_only=True, eq=False)
class LensTrajectory(Result):
    """The model's final readout of the states of each layer, prompt by prompt.

    Attributes:
        data: ``logit``, ``log_probability`` and ``rank`` of each chosen token (dims ``fact, layer, position, token``,
            NaN where a prompt has no such token), and ``top`` and ``top_probability``, the readout's first token and
            its probability (dims ``fact, layer, position``).
        sites: which states were read.
        info: how it was made.

    >>> lens = locate.logit_lens(model, fact, progress=False)
    >>> lens.data["rank"].dims
    ('fact', 'layer', 'position', 'token')
    """

    stored_as = "trajectory"
    figures: ClassVar[Mapping[str, str]] = {
        "plot": "locate.lens.trajectory_figures:plot_trajectory",
        "plot_map": "locate.lens.trajectory_figures:plot_lens",
    }

    sites: str
    info: dict[str, Any]

    def of(self, value: str = "log_probability") -> xr.DataArray:
        """One of the values: ``log_probability``, ``probability``, ``logit`` or ``rank`` (1 is the first answer).

        Raises:
            LocateError: there is no such value.

        >>> lens = locate.logit_lens(model, fact, progress=False)
        >>> bool((lens.of("probability") <= 1).all())
        True
        """
        if value not in VALUES:
            raise LocateError(f"value must be one of {', '.join(VALUES)}, found {value!r}.")
        found = self.data["log_probability" if value == "probability" else value]
        return found.copy(data=np.exp(found.values)) if value == "probability" else found

    def summary(self, value: str = "log_probability", *, confidence: float = 0.95, seed: int = 0) -> xr.Dataset:
        """The mean over prompts with a bootstrap interval (missing for a single one); of ranks the geometric mean.

        >>> list(locate.logit_lens(model, facts[:3], progress=False).summary().data_vars)
        ['mean', 'low', 'high']
        """
        values = self.of(value)
        spread = values.values.astype(float)
        found = mean_interval(np.log(spread) if value == "rank" else spread, confidence=confidence, seed=seed)
        dims = values.dims[1:]
        means = xr.Dataset(
            {name: (dims, part) for name, part in found._asdict().items()},
            coords={name: values[name] for name in dims},
        )
        return np.exp(means) if value == "rank" else means

    def best(self) -> Site:
        """The layer that brings the answer: over which its mean log-probability rises most, at the last position read.

        Of what single modules add (``attn_out``, ``mlp_out``) the one that itself gives the answer the highest.

        Raises:
            SiteError: one layer was read, so that nothing rises.

        >>> locate.logit_lens(model, fact, progress=False).best().kind
        'resid'
        """
        own = self.data["log_probability"].mean("fact").isel(position=-1, token=0).values
        layers = [int(layer) for layer in self.data["layer"].values]
        if not self.sites.startswith("resid"):
            return Site(self.sites, layer=layers[int(own.argmax())])
        if len(layers) < 2:
            raise SiteError("One layer was read, so no layer can be said to bring the answer. Read several.")
        layer = layers[1 + int(np.diff(own).argmax())]
        # What is new where a layer begins, the layer before has added.
        return Site("resid", layer=layer - 1) if self.sites == "resid_pre" else Site(self._kind, layer=layer)

    @property
    def _kind(self) -> str:
        return "resid" if self.sites == "resid_post" else self.sites

    def plot(self, **options: Any) -> "Figure":
        """Lines over layers; see ``locate.plots.plot_trajectory``."""
        return self.draw(**options)

    def plot_map(self, **options: Any) -> "Figure":
        """Layers by positions with each readout's first token; see ``locate.plots.plot_lens``."""
        return self.draw("plot_map", **options)

    def _found(self) -> str:
        last = self._last().isel(layer=-1)
        told = spread(*(float(last[name]) for name in ("mean", "low", "high")))
        return f"{self.sites}, log-probability at the end {told}"

    def _rows(self) -> pd.DataFrame:
        """By layer, the answer at the last position: the layers where it rises most."""
        table = self._last().to_dataframe()[["mean", "low", "high"]].reset_index()
        table["rise"] = table["mean"].diff()
        return table.sort_values("rise", ascending=False, ignore_index=True)

    def _last(self) -> xr.Dataset:
        return self.summary().isel(position=-1, token=0, drop=True)

    def _tables(self) -> list[xr.Dataset]:
        return [self.data[["logit", "log_probability", "rank"]]]


def load_trajectory(path: str | Path) -> LensTrajectory:
    """Read a trajectory that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> lens = locate.logit_lens(model, fact, progress=False)
    >>> locate.load_trajectory(lens.save("lens.nc")).sites
    'resid_post'
    """
    return LensTrajectory.load(path)
