"""Methods that write all requests together, spread over several layers; a method fills in its solve."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Unchecked, hyperparameters
from edit.methods.base import Fitted, Written
from edit.methods.rewriting.locate_then_edit import LocateThenEdit, Prepared
from edit.methods.rewriting.record import described_edit, record
from edit.methods.rewriting.rewriting import matrix_of, stored, under
from edit.methods.rewriting.solves import Problem, mean_over_prefixes
from edit.methods.rewriting.stabilisers import reference_norm
from edit.methods.where import Where, layers_at
from edit.requests.conflicts import warn_of_shared_keys
from edit.values.contexts import Contexts
from edit.values.objective import RESIDUAL_OBJECTIVE, Place, Value, ValueObjective
from edit.values.states import read_at_sites
from locate.errors import NumericsError, SiteError
from locate.model.weights import down_projection
from locate.sites.table import hook_name


def _several(layers: Any) -> Any:
    if layers is not None and not isinstance(layers, tuple):
        raise SiteError(f"layers: give several, or one as (4,); found {layers!r}.")
    return layers


@hyperparameters
class Spreading(LocateThenEdit):
    """Values of all requests at the last layer, reached by writing a part of what is missing into each layer.

    Where a norm follows the MLP (Gemma 3, OLMo 2), what a layer adds keeps its length whatever is written. A value
    that is found in the residual stream (MEMIT, AlphaEdit) is then reached in direction and not in full; one that is
    found in the MLP's output (EMMET, PMET) is.

    Args:
        layers: whose down-projections to edit, in ascending order; by default the method's share of the depth.
    """

    # Where values are optimised, and the layers by default, in shares of the depth.
    place: ClassVar[Place] = "resid"
    depth: ClassVar[tuple[float, float]] = (4 / 32, 8 / 32)

    objective: ValueObjective = RESIDUAL_OBJECTIVE
    layers: Annotated[tuple[int, ...] | None, Unchecked, BeforeValidator(_several)] = None

    def resolve_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """The layers that will be edited."""
        first, last = (min(round(share * model.cfg.n_layers), model.cfg.n_layers - 1) for share in self.depth)
        usual = tuple(range(first, last + 1)) if self.layers is None else self.layers
        return layers_at(model, usual if where is None else where, span=len(usual))

    def edited_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """The layers that ``fit`` would edit, with what stabilisers make of them."""
        return tuple(layer for stage in self._stages(model, where) for layer in stage)

    def _stages(self, model: TransformerBridge, where: Where | None) -> tuple[tuple[int, ...], ...]:
        """Layers in groups that share a value."""
        stages: tuple[tuple[int, ...], ...] = (self.resolve_layers(model, where),)
        for stabiliser in self.stabilisers:
            stages = tuple(stage for own in stages for stage in stabiliser.stages(own))
        return stages

    def value_layer(self, model: TransformerBridge, where: Where | None) -> int:
        """The last layer of the first stage."""
        return self._stages(model, where)[0][-1]

    def write(self, prepared: Prepared) -> Fitted[WeightUpdate]:
        """Write the requests stage by stage, and layer by layer."""
        job, contexts, requests = prepared.job, prepared.contexts, prepared.job.requests
        model, earlier, known = job.model, job.earlier, list(prepared.values)
        edits: list[dict[str, Any]] = []
        deltas: dict[str, LowRank] = {}
        written: dict[int, Written] = {}
        anchors: dict[int, float] = {}
        for stage in self._stages(model, job.layer):
            with under(model, deltas):
                values = known or self._values(job, contexts, stage[-1])
            known = []
            edits = [described_edit(*one) for one in zip(requests, contexts, values, strict=True)]
            anchors[stage[-1]] = reference_norm(values)
            for stabiliser in self.stabilisers:
                values = stabiliser.values(values, earlier.anchors.get(stage[-1]))
            bar = tqdm(stage, f"{self.name} layers", disable=not job.progress, delay=1)
            for index, one in enumerate(bar):
                down = down_projection(model, one)
                with under(model, deltas):
                    keys, residuals = self._missing(model, contexts, values, one, stage[-1])
                    residuals = residuals * self._share(len(stage) - index)
                    before = earlier.keys(one, down.key_size)
                    if not written:
                        warn_of_shared_keys(requests, keys, before)
                    problem = Problem(
                        keys=keys, residuals=residuals, statistics=prepared.statistics[one], earlier=before
                    )
                    try:
                        factors = self.solve(problem)
                    except NumericsError as error:
                        raise NumericsError(f"Layer {one}: {error}") from error
                    delta = self.stabilised(stored(*factors, down), down, earlier)
                    wanted = keys.double() @ matrix_of(down).T + residuals.double()
                written[one] = Written(layer=one, keys=keys.float(), values=wanted.float())
                deltas[down.name] = delta
        update = WeightUpdate.make(model, deltas, method=self.name, info=record(self, prepared, edits))
        # Those of the unedited model are handed on, also past a first batch that is taken back.
        return Fitted(update=update, written=written, anchors={**anchors, **earlier.anchors})

    def _missing(
        self, model: TransformerBridge, contexts: Sequence[Contexts], values: Sequence[Value], layer: int, last: int
    ) -> tuple[Float[Tensor, "edit d_mlp"], Float[Tensor, "edit d_model"]]:
        """The requests' keys at a layer, and what its down-projection would have to add to reach their values."""
        key, end = hook_name("down_in", layer), hook_name("resid" if self.place == "resid" else "down_out", last)
        outputs = [hook_name(name, one) for one in (layer, last) for name in ("down_out", "mlp_out")]
        bare = dict.fromkeys([end, *outputs])
        found = read_at_sites(
            model, contexts, [key, *([end] if self._mean_output else [])], last,
            bare=[name for name in bare if not (self._mean_output and name == end)], budget=self.budget,
        )  # fmt: skip
        keys = torch.stack([mean_over_prefixes(own) for own in found[key]])
        now = torch.stack([mean_over_prefixes(own) for own in found[end]])
        residuals = torch.stack([value.value.cpu() for value in values]) - now
        if self.place == "resid":
            scale = _scale(found, layer)
        else:
            scale = torch.ones(1, dtype=torch.float32) if layer == last else _scale(found, layer) / _scale(found, last)
        return keys, residuals * scale

    # Whether what is there now is averaged over prefixes as the key is, so that W'k̄ can be exact.
    _mean_output: ClassVar[bool] = False

    def _share(self, layers_left: int) -> float:
        """How much of what is missing a layer writes."""
        return 1 / layers_left


def _scale(found: Any, layer: int) -> Float[Tensor, "edit d_model"]:
    """What the down-projection must add for the residual stream to gain one.

    It is 1 unless the MLP's output is normalised before it is added: then the scale and gain of that norm are
    undone, with the scale that it has now. Where the gain is zero nothing can be written.
    """
    # Under the bare prompt, which is the first row where there are more.
    outputs = torch.stack([own[0] for own in found[hook_name("down_out", layer)]])
    added = torch.stack([own[0] for own in found[hook_name("mlp_out", layer)]])
    if torch.equal(outputs, added):
        return torch.ones_like(outputs)
    return torch.where(added == 0, 0, outputs / added)
