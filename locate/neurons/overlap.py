"""How far the neurons of several facts are the same, or those that several methods find for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from scipy.stats import rankdata

from locate.errors import DataError, LocateError
from locate.neurons.scores import NeuronScores
from locate.results import Result
from locate.showing import first_of, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronOverlap(Result):
    """How alike scores of neurons are, pair by pair.

    Attributes:
        data: ``jaccard`` (dims ``fact, k, one, other``), the neurons that are among the ``k`` of the largest scores in
            both over those that are in either; ``spearman`` (dims ``fact, one, other``), the rank correlation of all
            scores. Between methods, a table for each fact; between facts, one.
        info: what was compared, and ``chance``, the Jaccard index of random neurons for each ``k``.

    >>> overlap = locate.neuron_overlap({"all": neurons, "again": neurons}, k=5)
    >>> float(overlap.jaccard.sel(one="all", other="again"))
    1.0
    """

    stored_as = "neuron_overlap"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.neurons.overlap_figures:plot_neuron_overlap"}

    info: dict[str, Any]

    @property
    def jaccard(self) -> xr.DataArray:
        """The mean over facts for the first ``k``; dims ``one, other``."""
        return self.of(int(self.data["k"][0]))

    @property
    def spearman(self) -> xr.DataArray:
        """The mean over facts of the rank correlation of all neurons' scores; dims ``one, other``."""
        return self.data["spearman"].mean("fact")

    def of(self, k: int) -> xr.DataArray:
        """The mean Jaccard index of the best ``k`` neurons.

        Raises:
            LocateError: another ``k`` was asked for.

        >>> locate.neuron_overlap({"all": neurons, "again": neurons}, k=[5, 10]).of(10).dims
        ('one', 'other')
        """
        if k not in (known := [int(one) for one in self.data["k"].values]):
            raise LocateError(f"This overlap is of the best {', '.join(map(str, known))} neurons, not of {k}.")
        return self.data["jaccard"].sel(k=k, drop=True).mean("fact")

    def within(self, groups: Sequence[str]) -> pd.DataFrame:
        """Whether what belongs together is more alike than what does not, such as facts of one relation.

        Args:
            groups: of each that was compared, in order.

        Returns:
            For pairs within a group and between groups: how many, and their mean Jaccard indices and rank correlation.

        Raises:
            DataError: not as many groups as were compared.

        >>> overlap = locate.neuron_overlap({"one": neurons, "two": neurons, "three": neurons})
        >>> overlap.within(["a", "a", "b"])["pairs"].tolist()
        [1, 2]
        """
        names = self.data["one"].values
        if len(groups) != len(names):
            raise DataError(f"groups: {len(names)} were compared, and {len(groups)} groups given.")
        labels = np.asarray(groups)
        one, other = np.triu_indices(len(names), 1)
        same = labels[one] == labels[other]
        table = pd.DataFrame({"where": np.where(same, "within", "between")})
        for k in self.data["k"].values:
            table[f"jaccard_{k}"] = self.of(int(k)).values[one, other]
        table["spearman"] = self.spearman.values[one, other]
        found = pd.DataFrame(table.groupby("where").mean()).reindex(["within", "between"])
        found.insert(0, "pairs", table["where"].value_counts().reindex(found.index, fill_value=0))
        return found.reset_index()

    def _on(self) -> str:
        return f"{first_of([str(name) for name in self.data['one'].values])}, between {self.info['between']}"

    def _found(self) -> str:
        values = self.jaccard.values[np.triu_indices(self.data.sizes["one"], 1)]
        return f"Jaccard index of the best {int(self.data['k'][0])}: {shown(float(values.mean()))} in the mean"

    def _rows(self) -> pd.DataFrame:
        """The pairs that are most alike."""
        names, (one, other) = self.data["one"].values, np.triu_indices(self.data.sizes["one"], 1)
        alike = {"jaccard": self.jaccard.values[one, other], "spearman": self.spearman.values[one, other]}
        table = pd.DataFrame({"one": names[one], "other": names[other], **alike})
        return table.sort_values("jaccard", ascending=False, ignore_index=True)

    def plot(self, **options: Any) -> "Figure":
        """Two matrices; see ``locate.plots.plot_neuron_overlap``."""
        return self.draw(**options)


def load_neuron_overlap(path: str | Path) -> NeuronOverlap:
    """Read an overlap that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> overlap = locate.neuron_overlap({"one": neurons, "two": neurons})
    >>> locate.load_neuron_overlap(overlap.save("overlap.nc")).info["between"]
    'methods'
    """
    return NeuronOverlap.load(path)


def neuron_overlap(scores: NeuronScores | Mapping[str, NeuronScores], *, k: int | Sequence[int] = 20) -> NeuronOverlap:
    """How far several facts have the same neurons, or several methods find the same ones.

    Args:
        scores: of several facts, to compare these; or by name, of the same facts, to compare methods fact by fact.
        k: how many of the best neurons are compared; one or several numbers.

    Raises:
        LocateError: fewer than two to compare, scores of other facts or neurons, or more neurons than there are.

    >>> first_order = locate.neuron_attribution(model, locate.Fact(prompt="{} is", subject="Rome", target="Italy"))
    >>> integrated = locate.knowledge_neurons(model, locate.Fact(prompt="{} is", subject="Rome", target="Italy"))
    >>> overlap = locate.neuron_overlap({"first order": first_order, "integrated": integrated})
    >>> overlap.jaccard.shape
    (2, 2)
    """
    several = [k] if isinstance(k, int) else list(k)
    if isinstance(scores, NeuronScores):
        names = _unlike([str(text) for text in scores.data["fact"].values])
        tables = scores.scores.values[None]
        facts, between = ["all"], "facts"
    else:
        names, facts, between = list(scores), _same(scores), "methods"
        tables = np.stack([one.scores.values for one in scores.values()], axis=1)
    if len(names) < 2:
        raise LocateError(f"An overlap is of two or more {between}, found {len(names)}.")
    flat = rearrange(np.nan_to_num(tables), "fact one layer neuron -> fact one (layer neuron)").astype(float)
    n = flat.shape[-1]
    if not several or len(set(several)) < len(several) or not all(1 <= one <= n for one in several):
        raise LocateError(f"k: give numbers from 1 to the {n} neurons that there are, each once; found {several}.")
    shared = np.stack([[_jaccard(own, one) for one in several] for own in flat])
    data = xr.Dataset(
        {
            "jaccard": (("fact", "k", "one", "other"), shared),
            "spearman": (("fact", "one", "other"), np.stack([_spearman(own) for own in flat])),
        },
        coords={"fact": facts, "k": several, "one": names, "other": names},
    )  # fmt: skip
    chance = {str(one): (one * one / n) / (2 * one - one * one / n) for one in several}
    first = scores if isinstance(scores, NeuronScores) else next(iter(scores.values()))
    info = {"model": first.info.get("model"), "between": between, "neurons": n, "chance": chance}
    return NeuronOverlap(data=data, info=info)


def _same(scores: Mapping[str, NeuronScores]) -> list[str]:
    """The facts, where all scores are of the same ones and of the same neurons."""
    if not scores:
        raise LocateError("An overlap is of two or more methods, found 0.")
    (first, found), *others = scores.items()
    own = found.scores
    for name, one in others:
        if list(one.data["fact"].values) != list(own["fact"].values):
            raise LocateError(f"{first!r} and {name!r} are of other facts. Attribute the same ones by both.")
        if one.scores.shape != own.shape or list(one.data["layer"].values) != list(own["layer"].values):
            raise LocateError(
                f"{first!r} has {own.shape[1]} layers of {own.shape[2]} neurons, {name!r} {one.scores.shape[1]} of "
                f"{one.scores.shape[2]}. Compare scores of the same layers of one model."
            )
    return [str(text) for text in own["fact"].values]


def _unlike(texts: Sequence[str]) -> list[str]:
    """Texts that can be told apart, where one occurs more than once."""
    return [text if list(texts).count(text) == 1 else f"{text} ({place})" for place, text in enumerate(texts)]


def _jaccard(rows: Float[np.ndarray, "one neuron"], k: int) -> Float[np.ndarray, "one other"]:
    """Of the k largest of each row."""
    best = np.zeros(rows.shape)
    np.put_along_axis(best, np.argsort(-rows, axis=1, kind="stable")[:, :k], 1.0, axis=1)
    both = best @ best.T
    return both / (2 * k - both)


def _spearman(rows: Float[np.ndarray, "one neuron"]) -> Float[np.ndarray, "one other"]:
    """NaN where a row has no order."""
    ranks = rankdata(rows, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    return ranks @ ranks.T
