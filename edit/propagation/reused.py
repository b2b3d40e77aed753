"""Which mediators of an edit's own prompt carry it to other probes: the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from edit.names import HEAD
from locate.contrast.correlation import pooled
from locate.results import Result
from locate.showing import first_of
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What tells of re-use, one number a probe.
MEASURES = ("rank_correlation", "cosine", "overlap", "gained", "lost")


@dataclass(frozen=True, kw_only=True, eq=False)
class MediatorReuse(Result):
    """What each mediator carries on each probe, and what the edit prompt's largest carry together.

    Attributes:
        data: ``effect`` (dims ``probe, mediator``): what the base model gains, in logits, when that head or MLP takes
            its edited value at all positions; ``chosen`` (``mediator``): the edit prompt's largest; ``joint``
            (``probe, direction``): what these lose and gain together; ``random`` (``probe, direction, sample``): the
            same of random sets. ``kind``, ``layer`` and ``head`` (−1 of an MLP) name a mediator.
        totals: one row a probe, the edit's own prompt first, as a ``Propagation`` has them.
        info: how it was made.

    >>> reuse.best().layer > 4
    True
    """

    stored_as = "mediator_reuse"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.reuse_figures:plot_mediator_reuse"}

    totals: pd.DataFrame
    info: dict[str, Any]

    @property
    def share(self) -> xr.DataArray:
        """Each mediator's effect as a share of the probe's total effect, dims ``probe, mediator``."""
        return self._shares("effect")

    @property
    def joint_share(self) -> xr.DataArray:
        """What the chosen mediators carry together, as a share of the total effect, dims ``probe, direction``."""
        return self._shares("joint")

    @property
    def random_share(self) -> xr.DataArray:
        """The same of random sets, dims ``probe, direction, sample``."""
        return self._shares("random")

    @property
    def names(self) -> list[str]:
        """The mediators as ``a5.h3`` and ``m7``, as circuits call them."""
        rows = zip(*(self.data[name].values for name in ("kind", "layer", "head")), strict=True)
        return [f"a{layer}.h{head}" if kind == HEAD else f"m{layer}" for kind, layer, head in rows]

    def table(self) -> pd.DataFrame:
        """One row a probe: how alike its mediators are to the edit prompt's, and what those carry of its effect.

        ``rank_correlation`` and ``cosine`` are of all mediators' effects; ``overlap`` is the share of the chosen
        mediators that are among the probe's own largest; ``gained`` and ``lost`` are shares of the total effect, with
        the means of random sets beside. ``answered`` is whether o* ranks above o after the edit, ``said`` whether it
        is first of all.

        >>> float(reuse.table().loc[0, "cosine"])
        1.0
        """
        effects, chosen = self.data["effect"].values, self.data["chosen"].values
        norms = np.linalg.norm(effects, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = effects @ effects[0] / (norms * norms[0])
        k = int(chosen.sum())
        towards = effects * np.sign(self._total.values)[:, None]
        own = np.argsort(np.argsort(-towards, axis=1, kind="stable"), axis=1) < k
        columns: dict[str, Any] = {name: self.totals[name] for name in ("role", "text", "old", "new", "total_effect")}
        columns["margin"] = self.totals["edited"]
        columns["answered"] = self.totals["edited"] > 0
        columns["said"] = self.totals["edited_rank_new"] == 1
        columns["rank_correlation"] = [float(pooled(effects[:1], one[None])) for one in effects]
        columns["cosine"] = cosine.round(12)
        columns["overlap"] = (own & chosen).sum(1) / k
        for direction in ("gained", "lost"):
            columns[direction] = self.joint_share.sel(direction=direction).values
            columns[f"random_{direction}"] = self.random_share.sel(direction=direction).mean("sample").values
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: how alike mediators are, and what the edit prompt's carry, by role.

        >>> list(reuse.summary())[:2]
        ['paraphrase: rank correlation', 'paraphrase: cosine']
        """
        table: Any = self.table()
        found: dict[str, float] = {}
        for role, part in table[table["role"] != "edit"].groupby("role", sort=False):
            for name in ("rank_correlation", "cosine", "gained", "random_gained"):
                found[f"{role}: {name.replace('_', ' ')}"] = float(part[name].mean())
        return found

    def best(self) -> Site:
        """Of the edit prompt's largest mediators, the one that carries most to the other probes (the mean effect).

        >>> reuse.best().kind in ("mlp", "attn_head")
        True
        """
        towards = (self.data["effect"] * np.sign(self._total)).isel(probe=slice(1, None)).mean("probe")
        place = np.nanargmax(towards.where(self.data["chosen"]).values)
        one: Any = self.data.isel(mediator=int(place))
        kind, layer, head = str(one["kind"].values), int(one["layer"]), int(one["head"])
        return Site(kind, layer=layer) if head < 0 else Site(kind, layer=layer, head=head)

    def plot(self, **options: Any) -> "Figure":
        """The chosen mediators on every probe; see ``plot_mediator_reuse`` beside this module."""
        return self.draw(**options)

    def _shares(self, name: str) -> xr.DataArray:
        """NaN on probes that the edit does nothing to."""
        return self.data[name] / self._total.where(self._total != 0)

    def _on(self) -> str:
        return first_of(self.totals["text"].tolist())

    def _rows(self) -> pd.DataFrame:
        columns = ["role", "text", "total_effect", "rank_correlation", "overlap", "gained", "random_gained"]
        return pd.DataFrame(self.table()[columns])

    @property
    def _total(self) -> xr.DataArray:
        return xr.DataArray(self.totals["total_effect"].to_numpy(float), dims="probe")

    def _tables(self) -> Sequence[xr.Dataset]:
        return [self.data[["effect", "chosen"]]]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """With names, and the probe's totals beside."""
        names = [self.names[place] for place in table["mediator"]]
        table = table.drop(columns="mediator").assign(name=names)
        return table.merge(
            self.totals[["role", "text", "old", "new", "total_effect"]], left_on="probe", right_index=True
        )

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), "totals": self.totals.to_dict(orient="records")}

    @classmethod
    def _of(cls, data: xr.Dataset, plain: dict[str, Any]) -> "MediatorReuse":
        return super()._of(data, {**plain, "totals": pd.DataFrame(plain["totals"])})


def load_mediator_reuse(path: str | Path) -> MediatorReuse:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_mediator_reuse(reuse.save("reuse.nc")).names == reuse.names
    True
    """
    return MediatorReuse.load(path)
