"""Average indirect effects over many facts, by the role of the token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from locate.storage import load_result, save_result
from locate.trace import Trace, check_comparable, restoring

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMAT = 1
ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AverageTrace:
    """Average indirect effects with bootstrap intervals over facts.

    Attributes:
        data: ``effect``, ``low`` and ``high`` with dims ``kind, role, layer`` and ``count`` (how many facts have
            a token of that role) with dim ``role``.
        metric: what was measured.
        total_effect: mean total effect, with the bounds of its interval.
        info: of the traces, and how they were averaged.

    >>> average = locate.average_traces(traces)
    >>> average.effect.dims
    ('kind', 'role', 'layer')
    """

    data: xr.Dataset
    metric: str
    total_effect: tuple[float, float, float]
    info: dict[str, Any]

    @property
    def effect(self) -> xr.DataArray:
        """The average indirect effect (AIE)."""
        return self.data["effect"]

    @property
    def n_facts(self) -> int:
        """How many facts were averaged."""
        return int(self.info["facts"])

    def peak(self, kind: str, role: str) -> tuple[int, float, float, float]:
        """The layer of the largest effect in the direction of the total effect, the effect, and its interval.

        >>> layer, effect, low, high = average.peak("mlp", "last subject token")
        """
        own = self.data.sel(kind=kind, role=role)
        best = own.isel(layer=int(restoring(own["effect"], self.total_effect[0]).argmax("layer")))
        return int(best["layer"]), float(best["effect"]), float(best["low"]), float(best["high"])

    def to_dataframe(self) -> Any:
        """One row per kind, role and layer."""
        return self.data[["effect", "low", "high"]].to_dataframe().reset_index()

    def plot(self, **options: Any) -> "Figure":
        """Heat maps by role of the token; see ``locate.plots.plot_average``."""
        from locate.plots import plot_average

        return plot_average(self, **options)

    def plot_lines(self, **options: Any) -> "Figure":
        """Lines per layer with their intervals; see ``locate.plots.plot_average_lines``."""
        from locate.plots import plot_average_lines

        return plot_average_lines(self, **options)

    def save(self, path: str | Path) -> Path:
        """Write everything to one netCDF file, which ``load_average`` reads back.

        >>> average.save("average.nc").name
        'average.nc'
        """
        plain = {"metric": self.metric, "total_effect": self.total_effect, "info": self.info}
        return save_result(path, "average", _FORMAT, self.data, plain)


def load_average(path: str | Path) -> AverageTrace:
    """Read averages that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> load_average("average.nc").n_facts
    2
    """
    data, plain = load_result(path, "average", _FORMAT)
    total: Any = tuple(plain["total_effect"])
    return AverageTrace(data=data, metric=plain["metric"], total_effect=total, info=plain["info"])


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
    values = np.stack([_by_role(trace) for trace in traces])
    totals = np.array([trace.total_effect for trace in traces])
    generator = np.random.default_rng(seed)
    n = len(traces)
    # How often each fact is drawn in each resample.
    draws = generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    present = ~np.isnan(values)
    effect, low, high = _interval(np.where(present, values, 0.0), present, draws, confidence)
    total = _interval(totals[:, None], np.ones((n, 1), dtype=bool), draws, confidence)
    kinds = [str(kind) for kind in traces[0].data.coords["kind"].values]
    dims = ("kind", "role", "layer")
    data = xr.Dataset(
        {"effect": (dims, effect), "low": (dims, low), "high": (dims, high),
         "count": ("role", present[:, 0, :, 0].sum(0))},
        coords={"kind": kinds, "role": list(ROLES), "layer": traces[0].data.coords["layer"].values},
    )  # fmt: skip
    shared = {name: traces[0].info[name] for name in ("model", "kinds", "window", "direction", "severed", "corruption")}
    info = {
        **shared, "label": traces[0].info["metrics"][traces[0].metric], "facts": n, "confidence": confidence,
        "resamples": resamples, "seed": seed,
    }  # fmt: skip
    mean, bottom, top = (float(bound[0]) for bound in total)
    return AverageTrace(data=data, metric=traces[0].metric, total_effect=(mean, bottom, top), info=info)


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


def _by_role(trace: Trace) -> np.ndarray:
    """Kind, role, layer: mean indirect effect, NaN where the fact has no such token."""
    effects = trace.indirect_effect.transpose("kind", "position", "layer")
    missing = np.full((effects.sizes["kind"], effects.sizes["layer"]), np.nan)
    groups = token_roles(trace).values()
    return np.stack(
        [effects.sel(position=group).mean("position").values if group else missing for group in groups], axis=1
    )


def _interval(
    values: np.ndarray, present: np.ndarray, draws: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis where present, with percentile bounds over resamples."""
    shape = values.shape[1:]
    flat, there = values.reshape(len(values), -1), present.reshape(len(values), -1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = flat.sum(0) / there.sum(0)
        means = (draws @ flat) / (draws @ there)
    tail = 50 * (1 - confidence)
    bounds = np.full((2, means.shape[1]), np.nan)
    known = there.sum(0) > 1  # one fact has no spread
    if known.any():
        bounds[:, known] = np.nanpercentile(means[:, known], [tail, 100 - tail], axis=0)
    return mean.reshape(shape), bounds[0].reshape(shape), bounds[1].reshape(shape)
