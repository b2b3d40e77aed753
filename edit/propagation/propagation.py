"""What a change does to each probe, and which states carry it: the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from edit.names import DIRECTIONS, HEAD, HEADS
from locate.contrast.bootstrap import mean_interval
from locate.errors import SiteError
from locate.results import Result, place_of_largest
from locate.showing import shown
from locate.sites.site import KINDS, Site, check_traced

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Propagation(Result):
    """What an edit changes per probe, and through which states.

    Attributes:
        totals: one row per probe: ``role, text, old, new`` and how these are spelled in tokens (``old_tokens``,
            ``new_tokens``), the logit difference o* − o of both models (``base``, ``edited``), their difference
            (``total_effect``, in logits), log-probabilities in nats, ranks of o*, and each model's first answer.
        tokens: each probe's tokens as text.
        layers: the edited layers.
        info: how it was made.

    >>> flow.best("mlp").layer >= 4  # the edited layer, or one that passes the change on
    True
    """

    stored_as = "propagation"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.figures:plot_propagation"}

    totals: pd.DataFrame
    tokens: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...]
    info: dict[str, Any]

    @property
    def mediation(self) -> xr.DataArray:
        """Effect in logits, dims ``probe, direction, kind, position, layer``.

        ``lost`` is what the edited model loses when that state takes its base value, ``gained`` what the base model
        gains when it takes its edited value. NaN beyond a probe's length and for probes without mediation.
        """
        return self._measured("mediation", KINDS)

    @property
    def heads(self) -> xr.DataArray:
        """The same of each head's output at all positions at once, dims ``probe, direction, layer, head``.

        Raises:
            SiteError: heads were not exchanged.
        """
        return self._measured(HEADS, (HEADS,))

    def of_kind(self, kind: str) -> xr.DataArray:
        """The effects of a kind of state: with a dim ``head`` where it is of heads.

        Raises:
            SiteError: that kind was not exchanged.

        >>> flow.of_kind("mlp").dims
        ('probe', 'direction', 'position', 'layer')
        """
        kind = check_mediator(kind)
        if kind not in self.info["kinds"]:
            raise SiteError(f"States of kind {kind!r} were not exchanged; {', '.join(self.info['kinds'])} were.")
        return self.mediation.sel(kind=kind, drop=True) if kind in KINDS else self.data[kind]

    @property
    def mediated(self) -> list[int]:
        """The probes whose mediation was measured."""
        return [index for index, role in enumerate(self.totals["role"]) if role in self.info["roles"]]

    def share(self, probe: int = 0, kind: str | None = None) -> xr.DataArray:
        """A probe's mediated effects as shares of its total effect: of one kind, or of all but single heads.

        A share is above 1 where others work against it; NaN where there is no total effect.

        Raises:
            SiteError: there is no such probe, or its mediation was not measured.
        """
        if not 0 <= probe < len(self.totals):
            raise SiteError(f"There is no probe {probe}: there are {len(self.totals)}, from 0.")
        found = (self.mediation if kind is None else self.of_kind(kind)).sel(probe=probe)
        if bool(found.isnull().all()):
            role = self.totals.loc[probe, "role"]
            raise SiteError(f"The mediation of probe {probe} ({role}) was not measured; add its role to roles=….")
        return found / (self.totals.loc[probe, "total_effect"] or np.nan)

    def best(self, kind: str = "mlp", *, probe: int = 0, direction: str = "gained") -> Site:
        """The site of a kind that carries most of a probe's effect.

        Raises:
            SiteError: no such kind, probe or direction was measured, or none of the kind carries anything.

        >>> flow.best("mlp", direction="lost").kind
        'mlp'
        """
        if direction not in DIRECTIONS:
            raise SiteError(f"direction: must be one of {', '.join(DIRECTIONS)}, found {direction!r}.")
        table = self.share(probe, kind).sel(direction=direction)
        if not bool((table > 0).any()):
            raise SiteError(
                f"No state of kind {kind!r} carries the change to probe {probe} by itself ({direction}), where the "
                f"total effect is {self.totals.loc[probe, 'total_effect']:.3g}. Take another kind, direction or probe."
            )
        return Site(HEAD if kind == HEADS else check_mediator(kind), **place_of_largest(table))

    def retention(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """By role, the effect on its probes as a share of the effect on the edit's own prompt, and how they answer.

        Of the effect the mean over probes, with a bootstrap interval where there are several; ``answered`` is the share
        of probes whose o* ranks above o after the edit, ``first`` that of those whose o* ranks first. Shares are NaN
        where the edit has no effect on its own prompt.

        Raises:
            SiteError: there is no probe of role ``edit`` to compare with.

        >>> float(flow.retention().loc["edit", "share"])
        1.0
        """
        own = self.totals.loc[self.totals["role"] == "edit", "total_effect"]
        if not len(own):
            raise SiteError("There is no probe of role 'edit', which the effect on the others would be a share of.")
        table: Any = self.totals.assign(
            share=self.totals["total_effect"] / (own.mean() or np.nan), answered=self.totals["edited"] > 0,
            first=self.totals["edited_rank_new"] == 1,
        )  # fmt: skip
        rows: dict[str, dict[str, float]] = {}
        for role, part in table.groupby("role", sort=False):
            mean, low, high = mean_interval(part["share"].to_numpy(float)[:, None], confidence=confidence, seed=seed)
            rows[str(role)] = {
                "probes": len(part), "share": float(mean[0]), "low": float(low[0]), "high": float(high[0]),
                "answered": float(part["answered"].mean()), "first": float(part["first"].mean()),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("role").astype({"probes": int})

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: effects by role, what is answered, and the largest shares by kind of state.

        >>> sorted(flow.summary())[0]
        'answered: edit'
        """
        totals: Any = self.totals
        found = {str(role): float(value) for role, value in totals.groupby("role")["total_effect"].mean().items()}
        if "edit" in found:
            table: Any = self.retention()
            found |= {f"share: {role}": float(row["share"]) for role, row in table.iterrows() if role != "edit"}
            found |= {f"answered: {role}": float(row["answered"]) for role, row in table.iterrows()}
        edits = [int(index) for index in totals.index[totals["role"] == "edit"]]
        for kind in (one for one in self.info["kinds"] if "edit" in self.info["roles"] and edits):
            for direction in DIRECTIONS:
                shares = [self.share(index, kind).sel(direction=direction) for index in edits]
                found[f"largest {kind}, {direction}"] = float(np.mean([float(one.max()) for one in shares]))
        return found

    def plot(self, **options: Any) -> "Figure":
        """The change flowing from the edited site to the last token; see ``plot_propagation`` beside this module."""
        return self.draw(**options)

    def _on(self) -> str:
        first: Any = self.totals.iloc[0]
        more = f" (and {len(self.totals) - 1} more probes)" if len(self.totals) > 1 else ""
        return f"{first['text']}: {first['old']} → {first['new']}{more}"

    def _found(self) -> str:
        first: Any = self.totals.iloc[0]
        ends = f"{shown(float(first['base']))} → {shown(float(first['edited']))}"
        return f"logit({first['new']}) − logit({first['old']}) {ends}, effect {shown(float(first['total_effect']))}"

    def _choice(self) -> Site:
        kinds = self.info["kinds"]
        return self.best("mlp" if "mlp" in kinds else kinds[0], probe=self.mediated[0])

    def _rows(self) -> pd.DataFrame:
        return pd.DataFrame(self.totals[["role", "text", "old", "new", "base", "edited", "total_effect"]])

    def _measured(self, name: str, kinds: Sequence[str]) -> xr.DataArray:
        if name not in self.data:
            raise SiteError(
                f"None of the kinds {', '.join(kinds)} were exchanged; {', '.join(self.info['kinds'])} were: add "
                "them to kinds=…."
            )
        return self.data[name]

    def _tables(self) -> list[xr.Dataset]:
        found = [self.data["mediation"]] if "mediation" in self.data else []
        found += [self.data[kind].assign_coords(kind=kind) for kind in (HEADS, HEAD) if kind in self.data]
        return [xr.Dataset({"effect": one}) for one in found]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """With tokens, and the probe's totals beside each state; without those that were not measured."""
        table = table.dropna(subset="effect")
        if "position" not in table:
            table = table.assign(position=np.nan)
        table = table.assign(position=table["position"].astype("Int64"))  # none where it is of all positions
        places = zip(table["probe"], table["position"], strict=True)
        tokens = ["" if pd.isna(position) else self.tokens[probe][position] for probe, position in places]
        totals = self.totals[["role", "text", "old", "new", "total_effect"]]
        return table.assign(token=tokens).merge(totals, left_on="probe", right_index=True)

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), "totals": self.totals.to_dict(orient="records")}

    @classmethod
    def _of(cls, data: xr.Dataset, plain: dict[str, Any]) -> "Propagation":
        return super()._of(data, {**plain, "totals": pd.DataFrame(plain["totals"])})


def check_mediator(kind: str) -> str:
    """A kind of state that may carry a change, by any of its names.

    Raises:
        SiteError: naming the kinds there are.

    >>> check_mediator("mlp_out"), check_mediator("heads")
    ('mlp', 'heads')
    """
    return kind if kind == HEADS else check_traced(kind)


def load_propagation(path: str | Path) -> Propagation:
    """Read a propagation that was saved.

    Raises:
        DataError: the file is missing or is not a saved propagation.

    >>> load_propagation(flow.save("flow.nc")).layers
    (4,)
    """
    return Propagation.load(path)
