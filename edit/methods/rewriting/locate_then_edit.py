"""What all locate-then-edit methods share: from requests to contexts, values and statistics."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, fields
from typing import Annotated, Any, ClassVar

from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Count, Unchecked, hyperparameters
from edit.methods.base import EarlierEdits, EditingMethod, checked
from edit.methods.where import Where
from edit.names import SAMPLED
from edit.requests.requests import Cases, EditRequest
from edit.statistics import KeyStatistics, collect_statistics
from edit.values.contexts import Contexts, build_contexts, check_answered
from edit.values.objective import Place, Value, ValueObjective
from edit.values.optimisation import optimise_values
from locate.errors import DataError, FactError, NumericsError
from locate.model.precision import Precision, check_precision
from locate.model.weights import DownProjection, down_projection, model_fingerprint


def _known(precision: Any) -> Any:
    check_precision(precision)
    return precision


@hyperparameters
class LocateThenEdit(EditingMethod):
    """A method that finds values for its requests and writes them at their keys.

    Args:
        objective: how values are optimised.
        statistics: key statistics to use, by layer where there are several; by default they are collected and cached.
        corpus: for collecting them: ``"sampled"``, a text file or a ``datasets`` name.
        statistics_tokens: how many keys to collect; the method's own number by default.
        precision: of the matrix products while values are optimised.
    """

    # How many keys the statistics take, per dimension of a key, and where values are optimised.
    keys_per_dimension: ClassVar[int] = 20
    place: ClassVar[Place] = "mlp"
    # Whether the requests of a batch are written one after the other.
    one_by_one: ClassVar[bool] = False

    objective: ValueObjective = field(default_factory=ValueObjective)
    statistics: Annotated[KeyStatistics | Mapping[int, KeyStatistics] | None, Unchecked] = field(
        default=None, hash=False
    )
    corpus: str = SAMPLED
    statistics_tokens: Count | None = None
    precision: Annotated[Precision, BeforeValidator(_known)] = "model"

    def solve(
        self,
        keys: Float[Tensor, "edit d_mlp"],
        residuals: Float[Tensor, "edit d_model"],
        statistics: KeyStatistics,
        earlier: Float[Tensor, "before d_mlp"],
    ) -> tuple[Float[Tensor, "d_model edit"], Float[Tensor, "edit d_mlp"]]:
        """The change of a layer that adds residuals to what its down-projection gives at keys, as two factors.

        Args:
            keys: where to write.
            residuals: what to add.
            statistics: of the layer's keys.
            earlier: keys of earlier edits.
        """
        raise NotImplementedError

    def statistics_for(
        self, model: TransformerBridge, layer: Where | None = None, *, progress: bool = True
    ) -> dict[int, KeyStatistics]:
        """The key statistics that ``fit`` would use on this model, by layer.

        >>> list(edit.ROME(layer=4).statistics_for(model))
        [4]
        """
        return self._statistics(model, self._downs(model, layer), EarlierEdits(), progress)

    def _downs(self, model: TransformerBridge, where: Where | None) -> dict[int, DownProjection]:
        return {one: down_projection(model, one) for one in self.edited_layers(model, where)}

    def edited_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """The layers that ``fit`` would edit.

        >>> edit.ROME(layer=4).edited_layers(model)
        (4,)
        """
        raise NotImplementedError

    def values_for(
        self,
        model: TransformerBridge,
        requests: Sequence[EditRequest],
        *,
        layer: Where | None = None,
        progress: bool = True,
    ) -> list[Value]:
        """The values that ``fit_each`` would write, to hand to other methods that optimise the same objective.

        Methods share values where they agree in the place and layer of the optimisation, the objective and the
        prefixes: ROME in both forms, or MEMIT and AlphaEdit at the same layers.

        Raises:
            FactError, SiteError, NumericsError: as ``fit``.

        >>> method = edit.ROME(layer=4)
        >>> len(method.values_for(model, [request]))
        1
        """
        _, contexts, _ = self._prepared(model, requests, EarlierEdits(), together=False)
        return self._values(model, contexts, self._value_layer(model, layer), progress)

    def fit_each(
        self,
        model: TransformerBridge,
        requests: Sequence[EditRequest],
        *,
        layer: Where | None = None,
        values: Sequence[Value] | None = None,
        progress: bool = True,
    ) -> Iterator[WeightUpdate]:
        """See ``EditingMethod.fit_each``; ``values`` are those of ``values_for``, where they are known already."""
        at, downs = self._value_layer(model, layer), self._downs(model, layer)
        own, contexts, prefixes = self._prepared(model, requests, EarlierEdits(), together=False)
        statistics = self._statistics(model, downs, EarlierEdits(), progress)
        found = self._known_values(model, contexts, at, values, progress)
        for request, context, value in zip(own, contexts, found, strict=True):
            yield self._fit_one(model, request, context, prefixes, statistics, value, layer)

    def _fit_one(
        self, model: TransformerBridge, request: EditRequest, context: Contexts, prefixes: list[str],
        statistics: Mapping[int, KeyStatistics], value: Value, where: Where | None,
    ) -> WeightUpdate:  # fmt: skip
        """The update of one request alone, from its value."""
        raise NotImplementedError

    def _value_layer(self, model: TransformerBridge, where: Where | None) -> int:
        """The layer at which values are optimised first."""
        raise NotImplementedError

    def _prepared(
        self, model: TransformerBridge, requests: Cases, earlier: EarlierEdits, *,
        together: bool = True,
    ) -> tuple[list[EditRequest], list[Contexts], list[str]]:  # fmt: skip
        """Checked requests, their contexts, and the prefixes; ``together`` for those that share a model."""
        requests = checked(requests, together=together)
        prefixes = self.texts_before(model)
        contexts = [build_contexts(model, request, prefixes) for request in requests]
        # One that earlier edits have made true is written all the same, so that later edits leave it alone.
        if not earlier.changes:
            check_answered(model, requests, contexts, budget=self.budget)
        return requests, contexts, prefixes

    def _value_objective(self) -> ValueObjective:
        objective = self.objective
        for stabiliser in self.stabilisers:
            objective = stabiliser.objective(objective)
        return objective

    def _values(
        self, model: TransformerBridge, contexts: Sequence[Contexts], layer: int, progress: bool
    ) -> list[Value]:
        return optimise_values(
            model, contexts, layer, self._value_objective(), place=self.place, budget=self.budget,
            precision=self.precision, progress=progress,
        )  # fmt: skip

    def _known_values(
        self, model: TransformerBridge, contexts: Sequence[Contexts], layer: int,
        known: Sequence[Value] | None, progress: bool,
    ) -> Sequence[Value]:  # fmt: skip
        """The values given, checked, or found."""
        if known is None:
            return self._values(model, contexts, layer, progress)
        if len(known) != len(contexts):
            raise FactError(
                f"values: one per request is needed, found {len(known)} for {len(contexts)} requests. "
                "Find them with values_for(model, requests)."
            )
        for value, context in zip(known, contexts, strict=True):
            if (value.label, value.layer, value.place) != (context.label, layer, self.place):
                raise FactError(
                    f"values: for {context.label!r} at layer {layer} ({self.place}) there is one found for "
                    f"{value.label!r} at layer {value.layer} ({value.place}). Find them with values_for."
                )
        return known

    def _extra_ridge(self, diagonal: Float[Tensor, "d"]) -> float:
        return sum((stabiliser.ridge(diagonal) for stabiliser in self.stabilisers), start=0.0)

    def _with_ridge(self, preserved: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        ridge = self._extra_ridge(preserved.diagonal())
        if not ridge:
            return preserved
        preserved = preserved.clone()
        preserved.diagonal().add_(ridge)
        return preserved

    def _statistics(
        self, model: TransformerBridge, downs: Mapping[int, DownProjection], earlier: EarlierEdits, progress: bool
    ) -> dict[int, KeyStatistics]:
        """Statistics of each layer: those given, checked, or collected."""
        if self.statistics is None and earlier.changes:
            raise NumericsError(
                "After earlier edits the key statistics must be those of the unedited model. Give the method "
                "statistics=method.statistics_for(model) from before they were made, or use an EditSession."
            )
        if self.statistics is None:
            size = next(iter(downs.values())).key_size
            tokens = self.statistics_tokens or self.keys_per_dimension * size
            collected = collect_statistics(
                model, list(downs), corpus=self.corpus, tokens=tokens, seed=self.seed, progress=progress
            )
            for one in collected.values():
                one.check_rank()
            return collected
        given = self.statistics
        if isinstance(given, KeyStatistics):
            given = dict.fromkeys(downs, given)
        for layer, down in downs.items():
            if layer not in given or given[layer].layer != layer:
                of = given[layer].layer if layer in given else ", ".join(map(str, given)) or "none"
                raise DataError(
                    f"The statistics are of layer {of}, the edit is in layer {layer}. "
                    f"Collect them with edit.key_statistics(model, {layer})."
                )
            given[layer].check_rank()
            found = len(given[layer].second_moment)
            if found != down.key_size:
                raise DataError(
                    f"The statistics are of keys of dimension {found}, layer {layer} of this model has keys "
                    f"of dimension {down.key_size}. Collect them with edit.key_statistics(model, {layer})."
                )
        # Those of the unedited model are the right ones for one with earlier edits.
        fingerprint = None if earlier.changes else model_fingerprint(model)
        if fingerprint and any(given[layer].fingerprint != fingerprint for layer in downs):
            warnings.warn(
                "The key statistics were collected on another model, or on this one before its weights changed. The "
                f"edit is only as good as they fit. Collect them with edit.key_statistics(model, {next(iter(downs))}).",
                stacklevel=4,
            )
        return {layer: given[layer] for layer in downs}

    def _info(
        self, layers: Sequence[int], prefixes: Sequence[str], statistics: Mapping[int, KeyStatistics],
        edits: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:  # fmt: skip
        one = next(iter(statistics.values()))
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_INFO}
        return {
            **own, "layers": list(layers), "objective": _plain(self._value_objective()), "prefixes": list(prefixes[1:]),
            "stabilisers": [{"name": type(s).__name__, **_plain(s)} for s in self.stabilisers],
            "statistics": {"corpus": one.corpus, "count": one.count, "seed": one.seed}, "edits": list(edits),
        }  # fmt: skip


_NOT_INFO = (
    "layer",
    "objective",
    "prefixes",
    "statistics",
    "stabilisers",
    "corpus",
    "statistics_tokens",
    "budget",
    "layers",
)


def described_edit(request: EditRequest, value: Value) -> dict[str, Any]:
    """What an update's file says of one request."""
    return {
        "request": request.describe(), "prompt": request.fact.prompt, "subject": request.fact.subject,
        "target": request.fact.target, "target_new": request.target_new, "losses": value.losses,
        "stopped": value.stopped, "value_norm": float(value.value.norm()), "initial_norm": float(value.initial.norm()),
    }  # fmt: skip


def mean_over_prefixes(rows: Float[Tensor, "prefix d"], bare_weight: float | None = 0.5) -> Float[Tensor, "d"]:
    """The mean of rows of which the first, the bare prompt's, has a weight of its own; None for a plain mean.

    >>> mean_over_prefixes(Tensor([[0.0], [4.0], [8.0]])).item()
    3.0
    """
    if bare_weight is None or len(rows) == 1:
        return rows.mean(0)
    return bare_weight * rows[0] + (1 - bare_weight) * rows[1:].mean(0)


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}
