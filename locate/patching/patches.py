"""The result of activation patching."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from locate.errors import LocateError
from locate.results import Measured, place_of_largest, restoring
from locate.showing import shown
from locate.sites.components import site_written
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches(Measured):
    """What every patch did, for one or more metrics, of which one is in view (``of`` changes it).

    Attributes:
        data: ``values`` and ``standard_error`` (over prompts or corrupted samples) with dim ``metric`` and what the
            sites are told apart by, ``clean`` and ``corrupted`` with dim ``metric``; where sites were screened,
            ``estimate`` (of the effect) and ``confirmed`` (whether the site was patched).
        metric: the metric in view.
        info: how they were made.

    >>> patches = locate.patch(model, fact, locate.TokenSwap("The Colosseum"))         # doctest: +SKIP
    >>> patches.scores.dims                                                            # doctest: +SKIP
    ('layer', 'position')
    """

    stored_as = "patches"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.patching.figures:plot_patches"}

    @property
    def values(self) -> xr.DataArray:
        """The metric with the site patched, averaged over prompts or samples."""
        return self._view("values")

    @property
    def scores(self) -> xr.DataArray:
        """The same, normalised so that 0 is the corrupted run and 1 the clean one."""
        return (self.values - self.corrupted) / (self.clean - self.corrupted)

    @property
    def standard_error(self) -> xr.DataArray:
        """Of the values: over prompts, or over the samples of a single one (NaN where there is only one)."""
        return self._view("standard_error")

    @property
    def corrupted(self) -> float:
        """The metric in the corrupted run."""
        return float(self._view("corrupted"))

    @property
    def effect(self) -> xr.DataArray:
        """How far each patch moved the metric away from the run that was patched."""
        return self.values - (self.corrupted if self.info["direction"] == "restore" else self.clean)

    def top(self, n: int = 10) -> Any:
        """The ``n`` sites of the largest effect, as a table.

        >>> patches.top(3)["score"].shape
        (3,)
        """
        return self.to_dataframe().sort_values("effect", ascending=False, key=abs, ignore_index=True).head(n)

    def best(self) -> Site:
        """The site of the largest effect in the direction that restores the answer, a single head or neuron included.

        Of patches that break, the one that takes away most. Sites that screening left out do not count. Of paths to
        receivers, the best sender.

        Raises:
            SiteError: what was patched has no name among sites, as a hook point of one's own.

        >>> patches.best().kind
        'resid_pre'
        """
        gained = self.effect if self.info["direction"] == "restore" else -self.effect
        if "confirmed" in self.data:
            gained = gained.where(self.data["confirmed"])
        return site_patched(self.info, place_of_largest(restoring(gained, self.clean - self.corrupted)))

    def recall(self, exact: "Patches", n: int = 10) -> float:
        """The share of the exact answer's ``n`` largest effects that were among those patched.

        Says what screening missed: ``exact`` are the same patches made without it.

        Raises:
            LocateError: these were not screened, or the two do not have the same sites.

        >>> screened.recall(patches, n=9) > 0.2
        True
        """
        if "confirmed" not in self.data:
            raise LocateError("recall: these patches were not screened; every site was patched.")
        own, its = self.data["confirmed"], exact.values
        if self.info["sites"] != exact.info["sites"] or not own.coords.to_dataset().equals(its.coords.to_dataset()):
            raise LocateError(
                f"recall: the exact answer has sites {exact.info['sites']} {dict(its.sizes)}, these are "
                f"{self.info['sites']} {dict(own.sizes)}; both must be of the same layers, positions and units."
            )
        order = np.argsort(-np.abs(exact.effect.values), axis=None)[:n]
        return float(self.data["confirmed"].values.ravel()[order].mean())

    def plot(self, **options: Any) -> "Figure":
        """A heat map; see ``locate.plots.plot_patches``."""
        return self.draw(**options)

    def _on(self) -> str:
        n = self.info.get("pairs", 1)
        return f"{self.info.get('prompt', '')} ({n} pairs)" if n > 1 else self.info.get("prompt", "")

    def _found(self) -> str:
        best = self.top(1).iloc[0]
        error = shown(float(best["standard_error"]))
        return (
            f"{self.metric} {shown(self.clean)} clean, {shown(self.corrupted)} corrupted, at best "
            f"{shown(float(best['value']))}{error and f' ± {error}'}"
        )

    def _tables(self) -> list[xr.Dataset]:
        columns = {"value": self.values, "score": self.scores, "effect": self.effect}
        return [xr.Dataset({**columns, "standard_error": self.standard_error})]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        if "position" not in table:
            return table
        return table.assign(token=[self.info["tokens"][position] for position in table["position"]])

    @classmethod
    def _of(cls, data: xr.Dataset, plain: dict[str, Any]) -> "Patches":
        if "confirmed" in data:
            data["confirmed"] = data["confirmed"].astype(bool)
        return super()._of(data, plain)


def site_patched(info: Mapping[str, Any], where: Mapping[str, Any]) -> Site:
    """The site at these coordinates of patches, of paths the sender.

    Raises:
        SiteError: what was patched has no name among sites, as a hook point of one's own.

    >>> site_patched({"sites": "attn_head_z"}, {"layer": 3, "head": 1}).hook
    'blocks.3.attn.hook_z'
    """
    if "sender" in where:
        return site_written(where["sender"])
    if "receivers" in info:
        return Site("attn_head" if "head" in where else "mlp", **where)
    return Site(info["sites"], **where)


def load_patches(path: str | Path) -> Patches:
    """Read patches that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> locate.load_patches("patches.nc").metric
    'logit_diff'
    """
    return Patches.load(path)
