"""What a change does to each parameter: how much, along how many directions, on which columns, and towards what."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.directions import Directions, participation
from edit.propagation.asking import Asked, asked_of
from edit.propagation.sides import Changed, Sides, sides_of
from edit.requests.probes import Probed
from locate.engine import FrozenRun
from locate.errors import LocateError, ModelError
from locate.model.anatomy import anatomy, down_module
from locate.model.running import running
from locate.model.weights import edited_layers, stored_transposed
from locate.names import DEFAULT_BUDGET
from locate.results import Result
from locate.showing import first_of
from locate.sites.contributions import passage
from locate.sites.final import Readout
from locate.sites.table import hook_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a module that writes to the stream reads, and what it gives, by the part of the block that it ends.
_READ_BY = {"mlp": ("mlp_neurons", "down_out"), "attn": ("attn_head_z", "attn_proj_out")}
# In the table: the largest columns whose share is told.
_FEW = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightFootprint(Result):
    """What a change ΔW does to each parameter.

    Attributes:
        data: by ``parameter`` (with its ``layer``, −1 outside of the layers): ``norm`` (Frobenius) and ``spectral``
            (the largest singular value) of ΔW, ``relative_norm`` and ``relative_spectral`` (over those of the weights
            before), ``rank`` (of more than rounding), ``effective_rank``; ``columns`` and ``effective_columns`` (over
            how many of equal energy it would be spread; of a down-projection a column is what one neuron writes),
            ``top_5`` (the share of the five largest), ``rows`` and ``effective_rows``, all NaN where sides are not told
            apart. By ``direction`` as well: ``singular`` values and ``alignment``: the cosine of what that direction
            writes with what raises o* over o at the logits, signed by what it writes in the first prompt; and
            ``written``, the same of all that ΔW writes there. NaN where nothing is written to the stream.
        chance: how large the cosine of a random direction is, in the mean.
        prompt: of the alignments; empty where none was given.
        info: how it was made.

    >>> found = edit.weight_footprint(model, update, request)
    >>> int(found.data["rank"][0]), round(float(found.data["effective_rank"][0]), 6)
    (1, 1.0)
    """

    stored_as = "weight_footprint"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.footprint_figures:plot_footprint"}

    chance: float
    prompt: str
    info: dict[str, Any]

    def shares(self) -> xr.DataArray:
        """Which share of ‖ΔW‖² each further direction adds; dims ``parameter, direction``.

        >>> float(edit.weight_footprint(model, update).shares()[0, 0].round(6))
        1.0
        """
        return self.data["singular"] ** 2 / self.data["norm"] ** 2

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by, means over the changed parameters; relative ones over those that were not 0.

        >>> edit.weight_footprint(model, update).summary()["rank"]
        1.0
        """
        names = ("relative_norm", "relative_spectral", "rank", "effective_rank", "effective_columns", "top_5")
        return {
            name.replace("_", " "): float(self.data[name].where(np.isfinite(self.data[name])).mean()) for name in names
        }

    def plot(self, **options: Any) -> "Figure":
        """Sizes, singular values and alignments; see ``plot_footprint`` beside this module."""
        return self.draw(**options)

    def _on(self) -> str:
        return first_of([str(name) for name in self.data["parameter"].values])

    def _tables(self) -> list[xr.Dataset]:
        first = self.data[["singular", "alignment"]].isel(direction=0, drop=True)
        return [self.data.drop_dims("direction").assign(alignment=first["alignment"])]


def weight_footprint(
    model: TransformerBridge,
    change: Changed,
    probes: Probed | None = None,
    *,
    directions: int = 16,
    budget: int = DEFAULT_BUDGET,
) -> WeightFootprint:
    """Measure what a change does to each parameter that it changes.

    Singular values come from the change's own factors where these are thin, and from the difference otherwise. A vector
    counts as one column, and a stack of matrices, as of experts, as one matrix of blocks.

    Args:
        model: a raw-mode bridge, with the change applied or not.
        change: the edit; or another model of this one's build.
        probes: the first says what o* and o are, and in which prompt; without any there are no alignments.
        directions: how many are kept, at most.
        budget: the most tokens in one pass.

    Raises:
        FactError: no token tells the first probe's answers apart.
        UpdateError: the change does not fit the model, or changes nothing.
        ModelError: the other model is of another build; or, where a prompt is given, the model reads its logits in
            another way than by a final norm and an unembedding.

    >>> found = edit.weight_footprint(model, update, request)
    >>> found.to_dataframe()["columns"].tolist()
    [96]
    """
    if directions < 1:
        raise LocateError(f"directions: keep at least one, found {directions}.")
    sides = sides_of(model, change)
    asked = None if probes is None else asked_of(sides, probes)[0]
    names = list(sides.changed)
    written = {name: place for name in names if (place := _writes(sides, name)) is not None}
    aims = {} if asked is None or not written else _aims(sides, asked, written, budget)
    rows, arrays = [], {name: np.full((len(names), directions), np.nan) for name in ("singular", "alignment")}
    for index, name in enumerate(names):
        base, found = sides.changed[name][0], sides.directions(name)
        transposed = _transposed(sides, name, base)
        rows.append(_sizes(base, found) | _spread(found.turned() if transposed else found, transposed is not None))
        values = found.values.flatten().sort(descending=True).values[:directions].cpu().numpy()
        arrays["singular"][index, : len(values)] = values
        rows[-1]["written"] = float("nan")
        if name in aims:
            own, each = _aligned(found.turned() if transposed else found, *aims[name])
            rows[-1]["written"] = own
            arrays["alignment"][index, : len(values)] = each[:directions]
    layers = [(edited_layers(model, [name]) or [-1])[0] for name in names]
    data = {key: ("parameter", [row[key] for row in rows]) for key in rows[0]}
    return WeightFootprint(
        data=xr.Dataset(
            {**data, **{key: (("parameter", "direction"), one) for key, one in arrays.items()}},
            coords={"parameter": names, "layer": ("parameter", layers), "direction": np.arange(directions) + 1},
        ),
        chance=float(np.sqrt(2 / (np.pi * model.cfg.d_model))), prompt="" if asked is None else asked.prompt.text,
        info={
            "model": str(model.cfg.model_name), "method": sides.described["method"],
            "answers": [] if asked is None else [asked.probe.new, asked.probe.old],
        },
    )  # fmt: skip


def load_weight_footprint(path: str | Path) -> WeightFootprint:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_weight_footprint(edit.weight_footprint(model, update).save("footprint.nc")).info["method"]
    'ROME'
    """
    return WeightFootprint.load(path)


def _sizes(base: Tensor, found: Directions) -> dict[str, Any]:
    norm, spectral = float(found.values.norm()), float(found.values.max())
    whole, largest = float(base.double().norm()), float(Directions.of(base).values.max())
    return {
        "norm": norm, "relative_norm": norm / whole if whole else float("inf"),
        "spectral": spectral, "relative_spectral": spectral / largest if largest else float("inf"),
        "rank": len(found), "effective_rank": found.effective,
    }  # fmt: skip


def _spread(found: Directions, known: bool) -> dict[str, Any]:
    """Over columns and rows; of ``out × in``."""
    if not known:
        return dict.fromkeys(("columns", "effective_columns", f"top_{_FEW}", "rows", "effective_rows"), float("nan"))
    columns, rows = found.columns(), found.rows()
    largest = columns.sort(descending=True).values[:_FEW].sum() / columns.sum()
    return {
        "columns": len(columns), "effective_columns": participation(columns), f"top_{_FEW}": float(largest),
        "rows": len(rows), "effective_rows": participation(rows),
    }  # fmt: skip


def _transposed(sides: Sides, name: str, base: Tensor) -> bool | None:
    """Whether it is stored ``in × out``; None where its sides are not told apart."""
    if base.ndim != 2:
        return None if base.ndim > 2 else False
    try:
        return stored_transposed(sides.model, name)
    except ModelError:
        return None


def _writes(sides: Sides, name: str) -> tuple[str, int] | None:
    """The part of a block, and the block, whose output this matrix gives; None where it writes elsewhere."""
    own = sides.changed[name][0]
    for layer in edited_layers(sides.model, [name]):
        block, shape = sides.model.blocks[layer], anatomy(sides.model).layers[layer]
        ends = {"mlp": down_module(block)}
        if shape.n_heads:
            ends["attn"] = block.attn.o.original_component
        with sides.before.entered():
            for part, module in ends.items():
                weight: Any = getattr(module, "weight", None)
                if shape.adds_up and weight is not None and weight.ndim == 2 and weight.data_ptr() == own.data_ptr():
                    return part, layer
    return None


def _aims(
    sides: Sides, asked: Asked, written: Mapping[str, tuple[str, int]], budget: int
) -> dict[str, tuple[Float[Tensor, "d_model"], Float[Tensor, "position in"]]]:
    """By matrix: what of its output raises o* over o, and what it reads in the prompt."""
    keep = [hook_name(kind, layer) for part, layer in written.values() for kind in _READ_BY[part]]
    _, edited = sides.runs(asked.prompt.tokens[None], keep=keep, budget=budget)
    found = {}
    with sides.after.entered(), running(sides.model):
        final = edited.residuals[-1][0, -1]
        towards = Readout.of(sides.model, final, edited.logits[0]).towards(final, asked.new, asked.old).direction
        for name, (part, layer) in written.items():
            read, given = (edited.kept[hook_name(kind, layer)] for kind in _READ_BY[part])
            back = passage(sides.model, layer, given, part).pulled_back(towards.expand_as(given.double()))
            found[name] = back[0, -1].double(), _flat(edited, read)[0].double()
    return found


def _flat(run: FrozenRun, read: Tensor) -> Float[Tensor, "row position in"]:
    return read.reshape(*run.tokens.shape, -1)


def _aligned(
    found: Directions, towards: Float[Tensor, "d_model"], keys: Float[Tensor, "position in"]
) -> tuple[float, np.ndarray]:
    """The cosine with what raises o* over o: of all that is written where most is, and of each direction."""
    towards = (towards / towards.norm()).to(found.left)
    doses = keys.to(found.right) @ found.right.mT  # position direction
    writes = doses * found.values @ found.left.mT
    most = writes[writes.norm(dim=-1).argmax()]
    signs = doses.gather(0, doses.abs().argmax(0, keepdim=True))[0].sign()
    each = signs * (towards @ found.left)
    return float(most @ towards / most.norm()), torch.where(found.values > found.noise, each, torch.nan).cpu().numpy()
