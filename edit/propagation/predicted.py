"""What is foretold of an edit's reach: the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from locate.errors import LocateError, suggest
from locate.results import Result
from locate.showing import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Scores of a probe by the unedited model, and what they say.
FEATURES: dict[str, str] = {
    "near": "the logit of o* over o that it has already",
    "key": "how much of the edit's change its own key at the site takes",
    "gradient": "whether what turns the edit prompt to its o* at the site turns the probe to its own (cosine)",
    "first order": "what share it gets of what a step along the edit prompt's gradient gains there, by its key",
    "donor": "what it gains by the state of a subject of which o* is true",
    "mediators": "whether its answer and the edit prompt's come from the same heads and MLPs (cosine)",
}
# The best of them by itself, on shipped facts (benchmarks.reach).
USUAL = "first order"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReachPrediction(Result):
    """What the unedited model says of each probe.

    Attributes:
        data: ``score`` (dims ``probe, feature``), larger where an edit would reach; NaN where there is nothing to go
            by, as without another fact of the new object.
        probes: ``role, text, old, new`` and ``base``, the logit difference o* − o.
        info: how it was made.

    >>> foreseen.score().shape
    (2,)
    """

    stored_as = "reach_prediction"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.reach_figures:plot_reach_prediction"}

    probes: pd.DataFrame
    info: dict[str, Any]

    def score(self, feature: str = USUAL) -> xr.DataArray:
        """One of the scores, by probe.

        Raises:
            LocateError: there is no such score.

        >>> bool(foreseen.score("near")[0] == foreseen.probes.loc[0, "base"])
        True
        """
        if feature not in FEATURES:
            raise LocateError(f"feature: there is no score {feature!r}. {suggest(feature, FEATURES)}")
        return self.data["score"].sel(feature=feature, drop=True)

    def table(self) -> pd.DataFrame:
        """One row a probe with all its scores, in the order of ``probes``.

        >>> bool(foreseen.table()["near"].notna().all())
        True
        """
        scores = pd.DataFrame(self.data["score"].transpose("probe", "feature").values, columns=list(FEATURES))
        return pd.concat([self.probes.drop(columns="base"), scores], axis=1)

    def ranking(self, feature: str = USUAL) -> pd.DataFrame:
        """The same, what should be reached most first.

        Raises:
            LocateError: there is no such score.

        >>> len(foreseen.ranking())
        2
        """
        return self.table().iloc[np.argsort(-self.score(feature).values, kind="stable")]

    def plot(self, **options: Any) -> "Figure":
        """The probes in order; see ``plot_reach_prediction`` in ``edit.propagation.reach_figures``."""
        return self.draw(**options)

    def _on(self) -> str:
        return f"{self.info['request']}, {len(self.probes)} probes"

    def _found(self) -> str:
        first: Any = self.ranking().iloc[0]
        return f"first by {USUAL}: {first['text']} ({shown(float(first[USUAL]))})"

    def _rows(self) -> pd.DataFrame:
        return self.ranking()

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.merge(self.probes, left_on="probe", right_index=True)

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), "probes": self.probes.to_dict(orient="records")}

    @classmethod
    def _of(cls, data: xr.Dataset, plain: dict[str, Any]) -> "ReachPrediction":
        return super()._of(data, {**plain, "probes": pd.DataFrame(plain["probes"])})


def load_reach_prediction(path: str | Path) -> ReachPrediction:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_reach_prediction(foreseen.save("foreseen.nc")).info["layer"]
    4
    """
    return ReachPrediction.load(path)
