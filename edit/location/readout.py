"""What the columns that an edit changes most say in the vocabulary, before and after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import without
from edit.changes.updates import WeightUpdate
from edit.location.matrices import changed_down_projections
from edit.methods.rewriting.rewriting import matrix_of
from edit.requests.requests import Cases, EditRequest, as_requests
from locate.contrast.bootstrap import mean_interval
from locate.errors import FactError, UpdateError
from locate.facts.answers import first_difference
from locate.facts.prompts import encode_fact, encode_target
from locate.model.anatomy import norm_after
from locate.model.norms import NormShape
from locate.model.running import running
from locate.model.weights import down_projection
from locate.results import Result
from locate.showing import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES = ("before", "after")
_FIRST = (1, 10, 50)


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnReadout(Result):
    """Where the new object stands among the tokens that the most changed columns say.

    Attributes:
        data: ``rank`` of the new object's token, by ``fact``, ``state`` (before and after the edit) and ``column``, the
            most changed first; ``layer`` and ``neuron`` of each, and the ``share`` of ‖ΔW‖² that it has.
        info: of the edits.

    >>> found = edit.column_readout(model, update, [request])
    >>> found.data["rank"].sizes["column"]
    5
    """

    stored_as = "column_readout"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.location.readout_figures:plot_column_readout"}

    info: dict[str, Any]

    @classmethod
    def join(cls, parts: Sequence["ColumnReadout"]) -> "ColumnReadout":
        """Those of several facts as one.

        >>> found = edit.column_readout(model, update, [request])
        >>> edit.ColumnReadout.join([found, found]).data.sizes["fact"]
        2
        """
        return cls(data=xr.concat([one.data for one in parts], "fact"), info=parts[0].info)

    def hits(self, first: int) -> xr.DataArray:
        """Whether the new object is among the first tokens of any of the columns; dims ``fact, state``.

        >>> found.hits(50).dims                                                      # doctest: +SKIP
        ('fact', 'state')
        """
        return (self.data["rank"] <= first).any("column")

    def rates(
        self, first: Sequence[int] = _FIRST, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> pd.DataFrame:
        """Hit@n over facts before and after the edit, and the difference of both, with bootstrap intervals over facts.

        Args:
            first: the n.
            confidence: of the intervals, which are missing (NaN) for a single fact.
            resamples: of the bootstrap.
            seed: of the bootstrap.

        >>> edit.column_readout(model, update, [request]).rates().columns.tolist()
        ['first', 'before', 'before low', 'before high', 'after', 'after low', 'after high', 'gain', 'gain low', 'gain high']
        """  # noqa: E501
        rows = []
        for n in first:
            before, after = self.hits(n).transpose("state", "fact").values.astype(float)
            row: dict[str, Any] = {"first": n}
            for name, values in (("before", before), ("after", after), ("gain", after - before)):
                found = mean_interval(values, confidence=confidence, resamples=resamples, seed=seed)
                row |= {name: float(found.mean), f"{name} low": float(found.low), f"{name} high": float(found.high)}
            rows.append(row)
        return pd.DataFrame(rows)

    def _found(self) -> str:
        last = self.rates().iloc[-1]
        ends = [spread(*(last[f"{state}{end}"] for end in ("", " low", " high"))) for state in STATES]
        return f"new object among the first {int(last['first'])} tokens of a column: {' → '.join(ends)}"

    def _rows(self) -> pd.DataFrame:
        return self.rates()

    def plot(self, **options: Any) -> "Figure":
        """Hit@n before and after; see ``edit.plot_column_readout``."""
        return self.draw(**options)


@torch.no_grad()
def column_readout(
    model: TransformerBridge, changes: WeightUpdate | Sequence[WeightUpdate], requests: Cases, *, columns: int = 5
) -> ColumnReadout:
    """Read the columns that edits change most in the vocabulary (Zhang, Yao et al. 2024, §5).

    The columns of ΔW of the largest norm are taken, over all down-projections that a change adds to. The same columns
    of W and of W + ΔW go through the gain of the norm after the MLP, where there is one, and of the final norm, and
    through the unembedding.

    Args:
        model: that the changes were made for; whether they are applied now makes no difference.
        changes: one for all requests, or one for each.
        requests: whose new objects are looked for.
        columns: how many of each change.

    Raises:
        UpdateError: a change has no down-projection, or fewer columns than asked for.
        FactError: there are no requests, or not as many as changes.

    >>> found = edit.column_readout(model, update, [request], columns=3)
    >>> found.data["layer"].values.tolist()
    [[4, 4, 4]]
    """
    asked = as_requests(requests)
    own = [changes] * len(asked) if isinstance(changes, WeightUpdate) else list(changes)
    if not asked or len(own) != len(asked):
        raise FactError(
            f"column_readout: give one change for all requests, or one for each; found {len(own)} for {len(asked)}."
        )
    if columns < 1:
        raise UpdateError(f"columns: must be 1 or more, found {columns}.")
    reader = _Reader(model)
    known: dict[int, _Columns] = {}
    ranks = np.zeros((len(asked), len(STATES), columns), dtype=int)
    for index, (change, request) in enumerate(zip(own, asked, strict=True)):
        if id(change) not in known:
            known[id(change)] = _Columns.of(model, change, columns)
        found, token = known[id(change)], _own_token(model, request)
        for place, vectors in enumerate((found.before, found.before + found.added)):
            ranks[index, place] = reader.ranks(vectors, found.layers.tolist(), token)
    taken = [known[id(change)] for change in own]
    data = {
        "rank": (("fact", "state", "column"), ranks),
        "layer": (("fact", "column"), np.stack([one.layers for one in taken])),
        "neuron": (("fact", "column"), np.stack([one.neurons for one in taken])),
        "share": (("fact", "column"), np.stack([one.shares for one in taken])),
    }
    coords = {"fact": [one.describe() for one in asked], "state": list(STATES), "column": np.arange(columns)}
    info = {"method": " + ".join(dict.fromkeys(one.method for one in own)), "model": str(model.cfg.model_name)}
    return ColumnReadout(data=xr.Dataset(data, coords=coords), info=info)


def load_column_readout(path: str | Path) -> ColumnReadout:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> found = edit.column_readout(model, update, [request])
    >>> edit.load_column_readout(found.save("readout.nc")).data.sizes["fact"]
    1
    """
    return ColumnReadout.load(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Columns:
    """The columns of a change of the largest norm, with what they are before it."""

    layers: Int[np.ndarray, "column"]
    neurons: Int[np.ndarray, "column"]
    shares: Float[np.ndarray, "column"]
    before: Float[Tensor, "column d_model"]
    added: Float[Tensor, "column d_model"]

    @classmethod
    def of(cls, model: TransformerBridge, change: WeightUpdate, columns: int) -> "_Columns":
        matrices = changed_down_projections(model, change)
        if not matrices:
            raise UpdateError(
                f"This change by {change.method} adds to no down-projection, whose columns could be read: "
                f"{', '.join(change.parameters)}."
            )
        deltas = {one.layer: one.delta.dense().double() for one in matrices if one.layer is not None}
        norms = torch.cat([delta.norm(dim=0) for delta in deltas.values()])
        if columns > len(norms):
            raise UpdateError(f"columns: this change has {len(norms)}, found {columns}.")
        places = [(layer, neuron) for layer, delta in deltas.items() for neuron in range(delta.shape[1])]
        top = [places[index] for index in norms.argsort(descending=True, stable=True)[:columns].tolist()]
        with without(model, change):
            weights = {layer: matrix_of(down_projection(model, layer)) for layer in {layer for layer, _ in top}}
        largest = norms.sort(descending=True, stable=True).values[:columns]
        return cls(
            layers=np.array([layer for layer, _ in top]), neurons=np.array([neuron for _, neuron in top]),
            shares=(largest.square() / norms.square().sum()).numpy(),
            before=torch.stack([weights[layer][:, neuron] for layer, neuron in top]),
            added=torch.stack([deltas[layer][:, neuron] for layer, neuron in top]),
        )  # fmt: skip


class _Reader:
    """From what a neuron writes to the tokens that it makes likelier; scales make no difference."""

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model
        self.like = next(model.unembed.parameters())
        self.final = self._shape(model.ln_final)
        self.zero = self._unembedded(torch.zeros(1, model.cfg.d_model, dtype=torch.float64))

    def ranks(
        self, vectors: Float[Tensor, "column d_model"], layers: Sequence[int], token: int
    ) -> Int[np.ndarray, "column"]:
        """The rank of a token for each column."""
        arriving = torch.stack([self._arriving(one, layer) for one, layer in zip(vectors, layers, strict=True)])
        logits = self._unembedded(self.final.unscaled(arriving)) - self.zero
        return (1 + (logits > logits[:, token, None]).sum(1)).cpu().numpy()

    def _arriving(self, vector: Tensor, layer: int) -> Tensor:
        norm = norm_after(self.model.blocks[layer], "mlp")
        return vector if norm is None else self._shape(norm).unscaled(vector)

    def _unembedded(self, vectors: Tensor) -> Tensor:
        size = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        with running(self.model):
            return self.model.unembed((vectors / size).to(self.like)[None])[0].float()

    def _shape(self, norm: nn.Module) -> NormShape:
        with running(self.model):
            return NormShape.of(norm, self.like.new_zeros(1, 1, self.model.cfg.d_model))


def _own_token(model: TransformerBridge, request: EditRequest) -> int:
    """The first token of the new object that the old one does not begin with as well."""
    prompt = encode_fact(model, request.fact)
    new, old = (encode_target(model, prompt, one).tolist() for one in (request.target_new, request.fact.target))
    place = first_difference(new, old)
    return new[min(len(new) - 1, len(old)) if place is None else place]
