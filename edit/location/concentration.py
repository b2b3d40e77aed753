"""How a change is spread over the weights: on a few columns of one layer, or over all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.directions import effective_rank
from edit.changes.updates import WeightUpdate
from edit.location.matrices import changed_matrices
from locate.errors import LocateError, UpdateError
from locate.results import Result
from locate.showing import first_of, numbers_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Side = Literal["column", "row"]
Measured = Literal["energy", "size"]
# In the table: the largest columns whose share is told.
_FEW = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Concentration(Result):
    """How much of a change each column and row of each matrix has.

    Attributes:
        data: by ``matrix`` and ``column`` (of a down-projection, what one neuron writes) or ``row``: ``column_energy``,
            ``row_energy`` (sums of squares of ΔW), ``column_size``, ``row_size`` (of its absolute values), NaN where a
            matrix has fewer than others; and ``effective_rank``: into how many directions of equal energy it would go.
        info: of the change.

    >>> found = edit.concentration(update, model)
    >>> float(found.data["effective_rank"][0])
    1.0
    """

    stored_as = "concentration"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.location.concentration_figures:plot_concentration"}

    info: dict[str, Any]

    @property
    def layers(self) -> list[int]:
        """The layer of each matrix, -1 outside of the layers."""
        return [int(layer) for layer in self.data["layer"].values]

    def shares(self, by: Side = "column", of: Measured = "energy") -> xr.DataArray:
        """Of each matrix's change, the share of every column or row; dims ``matrix`` and the side.

        Args:
            by: column or row.
            of: of the sum of squares (``"energy"``), or of the sum of absolute values (``"size"``).

        >>> float(found.shares().sum())                                              # doctest: +SKIP
        1.0
        """
        values = self._sums(by, of)
        return values / values.sum(by)

    def layer_shares(self, of: Measured = "energy") -> xr.DataArray:
        """Of the whole change, the share of every matrix.

        >>> edit.concentration(update, model).layer_shares().values.tolist()
        [1.0]
        """
        total = self._sums("column", of).sum("column")
        return total / total.sum()

    def top_share(self, n: int, by: Side = "column", of: Measured = "energy") -> xr.DataArray:
        """Of each matrix's change, how much its ``n`` largest columns or rows have.

        >>> round(edit.concentration(update, model).top_share(96).item(), 6)
        1.0
        """
        if n < 1:
            raise LocateError(f"n: must be 1 or more, found {n}.")
        ordered = np.sort(np.nan_to_num(self.shares(by, of).transpose("matrix", by).values))[:, ::-1]
        return xr.DataArray(ordered[:, :n].sum(1).clip(max=1), coords=self._matrices, dims="matrix")

    def effective(self, by: Side = "column") -> xr.DataArray:
        """On how many columns or rows of equal energy each matrix's change would be: (Σe)² / Σe² (participation).

        >>> bool(edit.concentration(update, model).effective() < model.cfg.d_mlp)
        True
        """
        return 1 / (self.shares(by) ** 2).sum(by)

    def curve(self) -> Float[np.ndarray, "matrix column"]:
        """Of each matrix, the share of energy that its largest columns have together, from one to all of them."""
        shares = self.shares().transpose("matrix", "column").values
        return np.cumsum(np.sort(np.nan_to_num(shares))[:, ::-1], 1)

    def plot(self, **options: Any) -> "Figure":
        """A heat map of columns, and how much the largest hold; see ``edit.location.plot_concentration``."""
        return self.draw(**options)

    def _on(self) -> str:
        return first_of([str(name) for name in self.data["matrix"].values])

    def _found(self) -> str:
        rank, columns, top = self.data["effective_rank"], self.effective(), self.top_share(_FEW)
        numbers = {"effective rank": rank[0], "effective columns": columns[0], f"share of the top {_FEW}": top[0]}
        return numbers_in({name: float(value) for name, value in numbers.items()})

    @property
    def _matrices(self) -> dict[str, Any]:
        return {"matrix": self.data["matrix"].values, "layer": ("matrix", self.data["layer"].values)}

    def _sums(self, by: Side, of: Measured) -> xr.DataArray:
        return self.data[f"{by}_{of}"]

    def _tables(self) -> list[xr.Dataset]:
        sizes = {side: self.data[f"{side}_energy"].count(side) for side in ("column", "row")}
        return [xr.Dataset({
            "norm": np.sqrt(self.data["column_energy"].sum("column")), "share": self.layer_shares(),
            "columns": sizes["column"], "effective_columns": self.effective(), f"top_{_FEW}": self.top_share(_FEW),
            "rows": sizes["row"], "effective_rows": self.effective("row"),
            "effective_rank": self.data["effective_rank"],
        })]  # fmt: skip


def concentration(change: WeightUpdate, model: TransformerBridge) -> Concentration:
    """How a change is spread over the matrices that it adds to, their columns and rows (Zhang, Yao et al. 2024, §5).

    Args:
        change: of weights, of any rank and number of layers.
        model: that it is a change of.

    Raises:
        UpdateError: it adds nothing to one of its parameters.
        ModelError: a matrix whose sides are not told apart.

    >>> found = edit.concentration(update, model)
    >>> list(found.to_dataframe()[["columns", "rows"]].iloc[0])
    [96, 36]
    """
    matrices = changed_matrices(model, change)
    columns, rows = (max(one.delta.shape[side] for one in matrices) for side in (1, 0))
    sums = {
        f"{side}_{of}": np.full((len(matrices), size), np.nan)
        for side, size in (("column", columns), ("row", rows)) for of in ("energy", "size")
    }  # fmt: skip
    ranks = []
    for index, one in enumerate(matrices):
        dense = one.delta.dense().double()
        if not dense.any():
            raise UpdateError(f"The change of {one.name} is zero everywhere, so there is nothing to be concentrated.")
        for side, axis in (("column", 0), ("row", 1)):
            for of, values in (("energy", dense.square()), ("size", dense.abs())):
                own = values.sum(axis).numpy()
                sums[f"{side}_{of}"][index, : len(own)] = own
        ranks.append(effective_rank(dense, factors=one.delta))
    coords = {
        "matrix": [one.name for one in matrices],
        "layer": ("matrix", [-1 if one.layer is None else one.layer for one in matrices]),
        "column": np.arange(columns), "row": np.arange(rows),
    }  # fmt: skip
    data = {name: (("matrix", name.split("_")[0]), values) for name, values in sums.items()}
    info = {"method": change.method, "model": str(model.cfg.model_name)}
    return Concentration(data=xr.Dataset({**data, "effective_rank": ("matrix", ranks)}, coords=coords), info=info)


def load_concentration(path: str | Path) -> Concentration:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_concentration(edit.concentration(update, model).save("spread.nc")).info["method"]
    'ROME'
    """
    return Concentration.load(path)
