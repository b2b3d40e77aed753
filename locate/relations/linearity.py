"""How linear a relation is, layer by layer: the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
import xarray as xr

from locate.contrast.bootstrap import Interval, mean_interval
from locate.results import Result
from locate.showing import spread
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Literal["faithfulness", "causality"]
_VALUES: Mapping[Measure, tuple[str, str]] = {"faithfulness": ("faithful", "map"), "causality": ("causal", "edit")}
LINEAR = "linear relation"


@dataclass(frozen=True, kw_only=True, eq=False)
class RelationLinearity(Result):
    """For each layer, whether an affine map takes subjects' states to what the model says of them.

    Attributes:
        data: ``faithful`` (dims ``layer, map, subject``), 1 where the map's output is read as the model's own state is;
            ``causal`` (dims ``layer, edit, subject``), 1 where the edit makes the model say what it says of another
            subject; ``other``, which one that is. A subject without one that is answered otherwise has NaN, and −1.
            The maps are ``linear relation``, ``least squares`` on the examples' states, ``translation`` (their mean
            difference) and ``identity`` (a logit lens). The edits of a subject's state are by ``linear relation`` (J⁺
            of what is to change in the object's state), ``identity`` (that change itself) and ``subject swap`` (the
            other subject's state put there).
        info: how it was made, with the examples and how many facts were known.

    >>> linearity.faithfulness.dims
    ('layer', 'map')
    """

    stored_as = "relation_linearity"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.relations.figures:plot_linearity"}

    info: dict[str, Any]

    @property
    def faithfulness(self) -> xr.DataArray:
        """The share of held-out subjects for which a map is faithful; dims ``layer, map``."""
        return self.data["faithful"].mean("subject")

    @property
    def causality(self) -> xr.DataArray:
        """The share of held-out subjects for which an edit is right; dims ``layer, edit``."""
        return self.data["causal"].mean("subject")

    def interval(self, measure: Measure = "faithfulness", *, confidence: float = 0.95, seed: int = 0) -> Interval:
        """Means and the bounds of their intervals, from a bootstrap over held-out subjects (the map stays as it is).

        >>> mean, low, high = linearity.interval("causality")
        >>> mean.shape == linearity.causality.shape
        True
        """
        values = self.data[_VALUES[measure][0]].transpose("subject", "layer", ...).values
        return mean_interval(values, confidence=confidence, seed=seed)

    def best(self, measure: Measure = "faithfulness") -> Site:
        """The state in which the relation can be read best, at the subject's last token; of equal layers the first.

        Args:
            measure: or the state through which it can be changed best, by ``causality``.

        >>> linearity.best().kind
        'resid'
        """
        values = getattr(self, measure).sel({_VALUES[measure][1]: LINEAR}).fillna(-1)
        return Site("resid", layer=int(values.idxmax("layer")))

    def plot(self, **options: Any) -> "Figure":
        """Both measures over layers; see ``locate.plots.plot_linearity``."""
        return self.draw(**options)

    def _on(self) -> str:
        return f"{self.info['relation']}, {self.data.sizes['subject']} subjects held out"

    def _found(self) -> str:
        table = self.to_dataframe().query("way == @LINEAR")
        best: Any = table[(table["measure"] == "faithfulness") & (table["layer"] == self.best().layer)].iloc[0]
        return f"faithful for a share of {spread(best['share'], best['low'], best['high'])}"

    def _rows(self) -> pd.DataFrame:
        """What the affine map does, layer by layer, the best first."""
        table: Any = self.to_dataframe().query("way == @LINEAR").drop(columns="way")
        return table.sort_values("share", ascending=False, ignore_index=True)

    def _tables(self) -> Sequence[xr.Dataset]:
        tables = []
        for measure, (_, ways) in _VALUES.items():
            dims, bounds = ("layer", "way"), self.interval(measure)
            coords = {"layer": self.data["layer"].values, "way": self.data[ways].values}
            table = xr.Dataset({of: (dims, one) for of, one in bounds._asdict().items()}, coords=coords)
            tables.append(table.expand_dims(measure=[measure]).rename(mean="share"))
        return tables


def load_relation_linearity(path: str | Path) -> RelationLinearity:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> load_relation_linearity(linearity.save("linearity.nc")).best() == linearity.best()
    True
    """
    return RelationLinearity.load(path)
