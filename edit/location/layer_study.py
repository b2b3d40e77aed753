"""The result of a study of layers: what edits at each do, what locating says of it, and how the two go together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import xarray as xr

from edit.location.measured import score_of
from locate.contrast.bootstrap import mean_interval
from locate.contrast.correlation import WAYS, correlated
from locate.errors import LocateError
from locate.results import Result
from locate.showing import spread
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What correlations are taken with: of each fact a number between its worst and its best.
CORRELATED = ("rewrite", "paraphrase rewrite", "neighbourhood")


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStudy(Result):
    """Edits of each fact at every layer, beside what ways of locating say of the layers.

    Attributes:
        data: ``outcome`` (dims ``name, fact, layer``): of each fact's edit there, ``rewrite`` and ``paraphrase
            rewrite`` (how much of what P(o*) could gain it gained), and success on its prompt, paraphrases and
            neighbours, NaN where it was not edited; ``score`` (dims ``way, fact, layer``), larger where that way would
            edit.
        info: how it was made; ``left_out``, what there is not, and why.

    >>> study.best().layer in (2, 4)
    True
    """

    stored_as = "layer_study"
    figures: ClassVar[Mapping[str, str]] = {
        "plot": "edit.location.layer_figures:plot_layer_choice",
        "plot_correlations": "edit.location.layer_figures:plot_correlations",
    }

    info: dict[str, Any]

    @property
    def layers(self) -> list[int]:
        """Those at which any fact was edited."""
        edited = self.data["outcome"].sel(name="rewrite").notnull().any("fact")
        return [int(layer) for layer in self.data["layer"].values[edited.values]]

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """By layer, the mean of every outcome over facts with its interval, and the harmonic mean of successes.

        >>> study.table().index.tolist()
        [2, 4]
        """
        columns: dict[str, Any] = {}
        for name in self.data["name"].values:
            own = self.data["outcome"].sel(name=name, layer=self.layers).transpose("fact", "layer").values
            found = mean_interval(own, confidence=confidence, seed=seed)
            columns |= {str(name): found.mean, f"{name} low": found.low, f"{name} high": found.high}
        columns["score"] = [score_of(self.data["outcome"].sel(layer=layer).values) for layer in self.layers]
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    def best(self) -> Site:
        """The layer whose edits score best: by the harmonic mean, or by success on prompts where there is none.

        Of several the one that gains most. Where to edit other facts: these were chosen on.

        >>> study.best().kind
        'mlp'
        """
        table: Any = self.table()
        by = "efficacy" if table["score"].isna().all() else "score"
        return Site("mlp", layer=int(table.sort_values([by, "rewrite"], ascending=False).index[0]))

    def pointed(self) -> pd.DataFrame:
        """By way of locating, the layer of the largest mean score, and what edits there do beside the best layer's.

        >>> study.pointed().loc["gradient", "layer"] in (2, 4)
        True
        """
        table: Any = self.table()
        rows: dict[str, dict[str, float]] = {}
        by = "efficacy" if table["score"].isna().all() else "score"
        for way in self.data["way"].values:
            own = self.data["score"].sel(way=way, layer=self.layers).mean("fact")
            if own.notnull().any():
                layer = int(own["layer"].values[int(own.argmax("layer"))])
                rows[str(way)] = {"layer": layer, by: float(table.loc[layer, by])}
        layer = self.best().layer
        rows["measured"] = {"layer": layer, by: float(table.loc[layer, by])}
        return pd.DataFrame.from_dict(rows, orient="index").astype({"layer": int})

    def correlations(
        self, outcomes: Sequence[str] = CORRELATED, *, confidence: float = 0.95, resamples: int = 500, seed: int = 0
    ) -> pd.DataFrame:
        """Spearman's correlations of every score with every outcome, with bootstrap intervals over facts.

        They are taken over all facts and layers (``pooled``), over facts at each layer (as Hase et al. 2023 do; the
        mean over layers), and over layers for each fact (whether the score says which layer to edit; the mean over
        facts). NaN where there is nothing to rank: one fact, one layer, or scores that are all the same.

        Args:
            outcomes: of the edits.
            confidence: of the intervals.
            resamples: of the bootstrap.
            seed: of the bootstrap.

        Raises:
            LocateError: there is no such outcome.

        >>> set(study.correlations(resamples=10)["over"]) == {"pooled", "across facts, by layer", "across layers, by fact"}
        True
        """  # noqa: E501
        if unknown := set(outcomes) - {str(name) for name in self.data["name"].values}:
            raise LocateError(f"There is no outcome {sorted(unknown)[0]!r}; there are {', '.join(self._names)}.")
        rows = []
        how: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
        for way in self.data["way"].values:
            score = self.data["score"].sel(way=way, layer=self.layers).transpose("fact", "layer").values
            for name in outcomes:
                outcome = self.data["outcome"].sel(name=name, layer=self.layers).transpose("fact", "layer").values
                for over in WAYS:
                    found = correlated(over, score, outcome, **how)._asdict()
                    rows.append({"way": str(way), "outcome": name, "over": over, "rho": found.pop("value"), **found})
        return pd.DataFrame(rows)

    def plot(self, **options: Any) -> "Figure":
        """Edits and scores by layer, one above the other; see ``edit.location.layer_figures``."""
        return self.draw(**options)

    def plot_correlations(self, **options: Any) -> "Figure":
        """Correlations with their intervals; see ``edit.location.layer_figures``."""
        return self.draw("plot_correlations", **options)

    def _found(self) -> str:
        at, own = self.best().layer, self.table()
        return f"rewrite score there {spread(*(own.loc[at, f'rewrite{end}'] for end in ('', ' low', ' high')))}"

    def _rows(self) -> pd.DataFrame:
        """The layers, the best first."""
        table = self.table()[[*self._names, "score"]]
        return pd.DataFrame(table).sort_values("rewrite", ascending=False)

    @property
    def _names(self) -> list[str]:
        return [str(name) for name in self.data["name"].values]

    def _tables(self) -> Sequence[xr.Dataset]:
        outcomes = self.data["outcome"].to_dataset("name")
        scores = self.data["score"].to_dataset("way")
        return [xr.merge([outcomes, scores]).sel(layer=self.layers)]


def load_layer_study(path: str | Path) -> LayerStudy:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_layer_study(study.save("study.nc")).layers
    [2, 4]
    """
    return LayerStudy.load(path)
