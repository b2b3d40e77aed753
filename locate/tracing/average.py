"""Average indirect effects over many facts, by the role of the token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from locate.contrast.bootstrap import mean_interval
from locate.errors import SiteError, counted
from locate.results import Result, place_of_largest, restoring
from locate.showing import spread
from locate.sites.site import Site, check_traced
from locate.tracing.trace import Trace, check_comparable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


def check_role(role: str) -> str:
    """The role, if there is such a one.

    Raises:
        SiteError: naming the roles that there are.
    """
    if role not in ROLES:
        raise SiteError(f"There is no role {role!r}; roles are {', '.join(ROLES)}.")
    return role


@dataclass(frozen=True, kw_only=True, eq=False)
class AverageTrace(Result):
    """Average indirect effects with bootstrap intervals over facts.

    Attributes:
        data: ``effect``, ``low`` and ``high`` with dims ``kind, role, layer``, for single heads ``head_effect``,
            ``head_low`` and ``head_high`` with dims ``role, layer, head``, and ``count`` (how many facts have a token
            of that role) with dim ``role``.
        metric: what was measured.
        total_effect: mean total effect, with the bounds of its interval.
        info: of the traces, and how they were averaged.

    >>> average = locate.average_traces(traces)
    >>> average.effect.dims
    ('kind', 'role', 'layer')
    """

    stored_as = "average"
    figures: ClassVar[Mapping[str, str]] = {
        "plot": "locate.tracing.average_figures:plot_average",
        "plot_lines": "locate.tracing.average_figures:plot_average_lines",
        "plot_heads": "locate.tracing.average_figures:plot_average_heads",
    }

    metric: str
    total_effect: tuple[float, float, float]
    info: dict[str, Any]

    @property
    def effect(self) -> xr.DataArray:
        """The average indirect effect (AIE).

        Raises:
            SiteError: the traces were of single heads alone; see ``head_effect``.
        """
        if "effect" not in self.data:
            raise SiteError("These averages are of single heads alone; see head_effect.")
        return self.data["effect"]

    @property
    def head_effect(self) -> xr.DataArray:
        """The same of single heads; dims ``role, layer, head``.

        Raises:
            SiteError: the traces were made without ``attn_head``.
        """
        if "head_effect" not in self.data:
            raise SiteError(f"These averages have no heads; the traces were made with kinds={self.info['kinds']}.")
        return self.data["head_effect"]

    @property
    def n_facts(self) -> int:
        """How many facts were averaged."""
        return int(self.info["facts"])

    @property
    def roles(self) -> list[str]:
        """Those that any fact has a visited token of."""
        return [role for role in ROLES if int(self.data["count"].sel(role=role))]

    def visited(self, role: str) -> str:
        """The role, if any fact has a visited token of it.

        Raises:
            SiteError: there is no such role, or no fact has a token of it.
        """
        if check_role(role) not in self.roles:
            raise SiteError(f"No fact has a token of the role {role!r} that was visited.")
        return role

    def peak(self, kind: str, role: str) -> tuple[int, float, float, float]:
        """The layer of the largest effect in the direction of the total effect, the effect, and its interval.

        Raises:
            SiteError: a kind or role that was not averaged.

        >>> layer, effect, low, high = average.peak("mlp", "last subject token")
        """
        own = xr.Dataset({"effect": self.effect, "low": self.data["low"], "high": self.data["high"]})
        kinds = [str(known) for known in own["kind"].values]
        if kind not in kinds or role not in ROLES:
            raise SiteError(
                f"There are averages of {', '.join(kinds)} by {', '.join(ROLES)}; found {kind!r}, {role!r}."
            )
        own = own.sel(kind=kind, role=self.visited(role))
        best = own.isel(layer=int(restoring(own["effect"], self.total_effect[0]).argmax("layer")))
        return int(best["layer"]), float(best["effect"]), float(best["low"]), float(best["high"])

    def best(self, kind: str = "mlp", *, role: str = "last subject token") -> Site:
        """The site of the largest average effect in the direction of the total effect, at the tokens of one role.

        Args:
            kind: ``resid``, ``mlp``, ``attn`` or ``attn_head``.
            role: of the tokens; by default where facts are recalled, and where an edit goes. It says no position, as
                each fact has its own.

        Raises:
            SiteError: a kind or role that was not averaged.

        >>> average.best().kind
        'mlp'
        """
        kind = check_traced(kind)
        if kind != "attn_head":
            return Site(kind, layer=self.peak(kind, role)[0])
        effects = self.head_effect.sel(role=self.visited(role))
        return Site(kind, **place_of_largest(restoring(effects, self.total_effect[0])))

    def top_heads(self, role: str, n: int = 10) -> Any:
        """The heads of the largest effects in the direction of the total effect, as a table with their intervals.

        >>> average.top_heads("last token", 3)                                         # doctest: +SKIP
        """
        heads = self._heads().sel(role=role)
        heads["order"] = restoring(heads["effect"], self.total_effect[0])
        table = heads.to_dataframe().reset_index().sort_values("order", ascending=False).head(n)
        return table[["layer", "head", "effect", "low", "high"]].reset_index(drop=True)

    def plot(self, **options: Any) -> "Figure":
        """Heat maps by role of the token; see ``locate.plots.plot_average``."""
        return self.draw(**options)

    def plot_lines(self, **options: Any) -> "Figure":
        """Lines per layer with their intervals; see ``locate.plots.plot_average_lines``."""
        return self.draw("plot_lines", **options)

    def plot_heads(self, **options: Any) -> "Figure":
        """A heat map of single heads at the tokens of one role; see ``locate.plots.plot_average_heads``."""
        return self.draw("plot_heads", **options)

    def _on(self) -> str:
        return counted(self.n_facts, "fact")

    def _found(self) -> str:
        return f"total effect on {self.metric} {spread(*self.total_effect)}"

    def _rows(self) -> pd.DataFrame:
        """The peaks of each kind by role; of heads alone the largest at the last token."""
        if "effect" not in self.data:
            return self.top_heads(self.roles[-1])
        kinds = [str(kind) for kind in self.data["kind"].values]
        names = ("layer", "effect", "low", "high")
        peaks = [(kind, role, self.peak(kind, role)) for kind in kinds for role in self.roles]
        rows = [{"kind": kind, "role": role, **dict(zip(names, peak, strict=True))} for kind, role, peak in peaks]
        return pd.DataFrame(rows).sort_values("effect", key=abs, ascending=False, ignore_index=True)

    def _tables(self) -> list[xr.Dataset]:
        parts: list[xr.Dataset] = [self.data[["effect", "low", "high"]]] if "effect" in self.data else []
        if "head_effect" in self.data:
            parts.append(self._heads().expand_dims(kind=["attn_head"]))
        return parts

    def _heads(self) -> xr.Dataset:
        return xr.Dataset({"effect": self.head_effect, "low": self.data["head_low"], "high": self.data["head_high"]})


def load_average(path: str | Path) -> AverageTrace:
    """Read averages that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> load_average("average.nc").n_facts
    2
    """
    return AverageTrace.load(path)


def average_traces(
    traces: Sequence[Trace], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> AverageTrace:
    """Average indirect effects of many facts by the role of the token (Meng et al. 2022, figures 2 and 3).

    Roles are the subject's first, middle and last token, the first token after it, further tokens, and the
    prompt's last. A subject of one token has a last token only, and a prompt that ends right after its subject's
    next token has that as its last. Tokens of one role are averaged within a fact first, so that each fact counts
    once; intervals are percentile bootstraps over facts.

    Args:
        traces: of the metric that each has in view.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        LocateError: there are no traces, or they were made in different ways.

    >>> average = locate.average_traces(traces)
    >>> average.effect.sizes["role"]
    6
    """
    check_comparable(traces)
    how: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    total = mean_interval(np.array([trace.total_effect for trace in traces]), **how)
    data: dict[str, Any] = {}
    for before, effects in _AVERAGED.items():
        if f"{before}scores" in traces[0].data:
            # Roles stand where positions stood; a fact without a token of a role does not count there.
            dims = effects(traces[0]).rename(position="role").dims
            averaged = mean_interval(np.stack([by_role(trace, effects(trace)) for trace in traces]), **how)
            for name, values in zip(("effect", "low", "high"), averaged, strict=True):
                data[before + name] = (dims, values)
    data["count"] = ("role", sum(np.array([bool(group) for group in token_roles(trace).values()]) for trace in traces))
    coords = {name: traces[0].data[name].values for name in ("kind", "layer", "head") if name in traces[0].data.coords}
    shared = {name: traces[0].info[name] for name in ("model", "kinds", "window", "direction", "severed", "corruption")}
    info = {
        **shared, "label": traces[0].info["metrics"][traces[0].metric], "facts": len(traces), **how,
    }  # fmt: skip
    mean, bottom, top = (float(bound) for bound in total)
    averages = xr.Dataset(data, coords={**coords, "role": list(ROLES)})
    return AverageTrace(data=averages, metric=traces[0].metric, total_effect=(mean, bottom, top), info=info)


def token_roles(trace: Trace) -> dict[str, list[int]]:
    """The visited positions of each role.

    >>> token_roles(trace)["last subject token"]
    [3]
    """
    (start, end), last = trace.subject_span, len(trace.tokens) - 1
    roles: dict[str, list[int]] = {role: [] for role in ROLES}
    for position in trace.info["positions"]:
        if position == end - 1:
            roles["last subject token"].append(position)
        elif start < position < end:
            roles["middle subject tokens"].append(position)
        elif position == start:
            roles["first subject token"].append(position)
        elif position == last:
            roles["last token"].append(position)
        elif position == end:
            roles["first subsequent token"].append(position)
        elif position > end:
            roles["further tokens"].append(position)
    return roles


_AVERAGED: dict[str, Callable[[Trace], xr.DataArray]] = {
    "": lambda trace: trace.indirect_effect,
    "head_": lambda trace: trace.head_effect,
}


def by_role(trace: Trace, effects: xr.DataArray) -> np.ndarray:
    """Mean effects with roles in place of positions, NaN where the fact has no such token.

    >>> by_role(trace, trace.indirect_effect).shape == (1, len(ROLES), model.cfg.n_layers)
    True
    """
    missing = effects.isel(position=0, drop=True) * np.nan
    return np.stack(
        [
            (effects.sel(position=group).mean("position") if group else missing).values
            for group in token_roles(trace).values()
        ],
        axis=effects.get_axis_num("position"),
    )
