"""What silencing or amplifying sets of neurons does to answers, beside random sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from locate.contrast.bootstrap import mean_interval
from locate.errors import LocateError
from locate.results import Measured
from locate.showing import shown, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the prompts are on which effects are measured.
ON = ("fact", "paraphrases", "unrelated")
_PERMUTATIONS = 9999


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronEffects(Measured):
    """What multiplying the activations of a fact's neurons does to its answer, and to answers of other prompts.

    Effects are changes from the model as it is, means over the prompts of one kind; the metrics are ``log_probability``
    and ``probability`` of the answer's first token.

    Attributes:
        data: ``values`` (dims ``metric, on, fact, factor, set``), the metric under each factor, of the fact's own set
            (set 0) and of random ones; ``clean`` (dims ``metric, on, fact``) without any. ``on`` says on which prompts:
            the fact's own, its paraphrases, or unrelated facts' with their own answers; NaN where there are none.
        metric: the one in view.
        info: how it was made, among it each fact's neurons.

    >>> effects = locate.verify_neurons(model, [fact], neurons, random=2, progress=False)
    >>> effects.effect.dims
    ('on', 'fact', 'factor')
    """

    stored_as = "neuron_effects"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.neurons.effect_figures:plot_neuron_effects"}

    @property
    def clean(self) -> float:
        """The metric of facts' own prompts in the model as it is, mean over facts."""
        return float(self._view("clean").sel(on="fact").mean())

    @property
    def effect(self) -> xr.DataArray:
        """The effect of each fact's own set; dims ``on, fact, factor``."""
        return self._effects().sel(set=0, drop=True)

    @property
    def random(self) -> xr.DataArray:
        """The mean effect of the random sets; NaN where there are none."""
        return self._effects().isel(set=slice(1, None)).mean("set")

    @property
    def difference(self) -> xr.DataArray:
        """The effect of each fact's own set minus the mean of its random ones."""
        return self.effect - self.random

    def summary(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Mean effects with their bootstrap intervals over facts, and whether own sets differ from random ones.

        Both tests are two-sided and paired, fact by fact: Wilcoxon's signed ranks (``wilcoxon``) and random signs of
        the differences (``permutation``); NaN for fewer than two facts.

        Args:
            confidence: of the intervals.
            seed: of the bootstrap and of the signs.

        Returns:
            A row for each factor and kind of prompt: ``facts``, ``effect``, ``random``, ``difference``, each with
            ``_low`` and ``_high``; ``same_sign``, the share of facts whose difference has the sign of the mean one.

        >>> effects = locate.verify_neurons(model, facts[:3], neurons.top(5), random=2, progress=False)
        >>> list(effects.summary().columns[:3])
        ['on', 'factor', 'facts']
        """
        rows = []
        for on in self.data["on"].values:
            for factor in self.data["factor"].values:
                parts = {name: getattr(self, name).sel(on=on, factor=factor).values for name in _PARTS}
                there = ~np.isnan(parts["effect"])
                if not there.any():
                    continue
                row: dict[str, Any] = {"on": str(on), "factor": float(factor), "facts": int(there.sum())}
                for name, values in parts.items():
                    interval = mean_interval(values[there], confidence=confidence, seed=seed)
                    mean, low, high = (float(bound) for bound in interval)
                    row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
                rows.append(row | _tested(parts["difference"][there], seed))
        return pd.DataFrame(rows)

    def _found(self) -> str:
        """Of silencing each fact's own neurons, or whatever was done first."""
        first = self.summary().iloc[0]
        effect, random = (spread(*(first[f"{name}{end}"] for end in ("", "_low", "_high"))) for name in _PARTS[:2])
        return f"{self.metric} × {shown(first['factor'])}: {effect}{random and f', random sets {random}'}"

    def plot(self, **options: Any) -> "Figure":
        """Own sets beside random ones, fact by fact; see ``locate.plots.plot_neuron_effects``."""
        return self.draw(**options)

    def _effects(self) -> xr.DataArray:
        return self._view("values") - self._view("clean")

    def _tables(self) -> Sequence[xr.Dataset]:
        clean = self._view("clean").expand_dims(factor=self.data["factor"].values).transpose("on", "fact", "factor")
        every = {"clean": clean, **{name: getattr(self, name) for name in _PARTS}}
        return [xr.Dataset(every)]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.dropna(subset="effect", ignore_index=True)


_PARTS = ("effect", "random", "difference")


def load_neuron_effects(path: str | Path) -> NeuronEffects:
    """Read effects that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> effects = locate.verify_neurons(model, [fact], neurons, random=2, progress=False)
    >>> locate.load_neuron_effects(effects.save("effects.nc")).metrics
    ('log_probability', 'probability')
    """
    return NeuronEffects.load(path)


def _tested(differences: np.ndarray, seed: int) -> dict[str, float]:
    """Whether differences are 0 on the whole."""
    found = {"same_sign": float("nan"), "wilcoxon": float("nan"), "permutation": float("nan")}
    if np.isnan(differences).any():
        return found
    found["same_sign"] = float((np.sign(differences) == np.sign(differences.mean())).mean())
    if len(differences) < 2 or not differences.any():
        return found

    def mean(signed: np.ndarray, none: np.ndarray, axis: int = -1) -> Any:
        return (signed - none).mean(axis)

    ranked: Any = stats.wilcoxon(differences)
    # By its name in all versions of scipy.
    sampled: Any = {"n_resamples": _PERMUTATIONS, "random_state": seed}
    pair = differences, np.zeros_like(differences)
    permuted = stats.permutation_test(pair, mean, permutation_type="samples", vectorized=True, **sampled)
    return found | {"wilcoxon": float(ranked.pvalue), "permutation": float(permuted.pvalue)}


def check_factors(factors: Sequence[float]) -> list[float]:
    """Factors as numbers, each once.

    Raises:
        LocateError: there are none, one twice, or one that is not finite.

    >>> check_factors((0.0, 2.0))
    [0.0, 2.0]
    """
    found = [float(one) for one in factors]
    if not found or len(set(found)) < len(found) or not np.isfinite(found).all():
        raise LocateError(f"factors: give one or more finite numbers, each once, such as (0, 2); found {found}.")
    return found
