"""What all locate-then-edit methods share: from requests to contexts, values and statistics, and to solving again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Count, Unchecked, hyperparameters, refused
from edit.methods.base import EarlierEdits, EditingMethod, Fitted, Job, Written, checked
from edit.methods.rewriting.given import checked_statistics, warn_of_others
from edit.methods.rewriting.rewriting import Rewriting, matrix_of, stored
from edit.methods.rewriting.solves import Factors, Problem
from edit.methods.where import Each, Where, each_of
from edit.names import AMOUNTS, QUICK_KEYS, SAMPLED, Amount
from edit.requests.requests import Cases, EditRequest, as_requests
from edit.statistics import KeyStatistics, collect_statistics
from edit.values.contexts import Contexts, build_contexts, check_answered
from edit.values.objective import Place, Value, ValueObjective
from edit.values.optimisation import optimise_values
from edit.values.progress import StepBar
from locate.errors import FactError, NumericsError, listed, tell
from locate.model.precision import Precision, check_precision
from locate.model.weights import DownProjection, down_projection, fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A job with what has to be known before anything is written.

    Attributes:
        job: what was asked; its requests are checked.
        contexts: of each request.
        prefixes: the texts before its prompt, the empty one first.
        statistics: by layer that is edited, of the unedited model.
        values: those of the layer at which values are optimised first, where they are known already.
    """

    job: Job
    contexts: Sequence[Contexts]
    prefixes: Sequence[str]
    statistics: Mapping[int, KeyStatistics]
    values: Sequence[Value] = ()

    def alone(self, index: int, value: Value, where: Where | None, layers: Sequence[int]) -> "Prepared":
        """One of the requests by itself, with its value, at the layers of its own."""
        job = replace(self.job, requests=[self.job.requests[index]], layer=where, progress=False)
        statistics = {layer: self.statistics[layer] for layer in layers}
        return replace(self, job=job, contexts=[self.contexts[index]], values=[value], statistics=statistics)


def _known(precision: Any) -> Any:
    check_precision(precision)
    return precision


def _amount(statistics: Any) -> Any:
    if isinstance(statistics, str) and statistics not in AMOUNTS:
        raise refused('give "quick", "full", or key statistics, found {}.')
    return statistics


@hyperparameters
class LocateThenEdit(Rewriting):
    """A method that finds values for its requests and writes them at their keys.

    Args:
        objective: how values are optimised.
        statistics: key statistics to use, by layer where there are several, or how many to collect and cache:
            ``"full"`` is the method's own number of keys (20 for each of their dimensions; AlphaEdit: 40),
            which is the default; ``"quick"`` a small one (4), shrunk by as much as they are few, for a first look at a
            model whose text takes long to write. The same call gives the same numbers, whatever was collected before.
        corpus: for collecting them: ``"sampled"``, a text file or a ``datasets`` name.
        statistics_tokens: how many keys to collect; they are not shrunk unless ``statistics="quick"``.
        precision: of the matrix products while values are optimised.
    """

    uses_statistics: ClassVar[bool] = True
    # How many keys full statistics take, per dimension of a key; where values are optimised.
    keys_per_dimension: ClassVar[int] = 20
    place: ClassVar[Place] = "mlp"

    objective: ValueObjective = field(default_factory=ValueObjective)
    statistics: Annotated[
        KeyStatistics | Mapping[int, KeyStatistics] | Amount | None, Unchecked, BeforeValidator(_amount)
    ] = field(default=None, hash=False)
    corpus: str = SAMPLED
    statistics_tokens: Count | None = None
    precision: Annotated[Precision, BeforeValidator(_known)] = "model"

    @property
    def given_statistics(self) -> KeyStatistics | Mapping[int, KeyStatistics] | None:
        """The key statistics that it was given; None where it collects them."""
        return None if isinstance(self.statistics, str) else self.statistics

    @property
    def amount(self) -> Amount:
        """How many keys it collects, where it is given none.

        >>> edit.ROME().amount, edit.ROME(statistics="quick").amount
        ('full', 'quick')
        """
        return self.statistics if isinstance(self.statistics, str) else "full"

    @property
    def writes_again(self) -> bool:
        """Wherever the keys that are written are those that are solved for."""
        return True

    def solve(self, problem: Problem) -> Factors:
        """The change of a layer that adds residuals to what its down-projection gives at keys, as two factors."""
        raise NotImplementedError

    def write(self, prepared: Prepared) -> Fitted[WeightUpdate]:
        """Find the values that are not known, and write them."""
        raise NotImplementedError

    def value_layer(self, model: TransformerBridge, where: Where | None) -> int:
        """The layer at which values are optimised first."""
        raise NotImplementedError

    def value_objective(self) -> ValueObjective:
        """How values are optimised, with what stabilisers make of it."""
        objective = self.objective
        for stabiliser in self.stabilisers:
            objective = stabiliser.objective(objective)
        return objective

    def contexts_of(self, model: TransformerBridge, request: EditRequest, prefixes: Sequence[str]) -> Contexts:
        """The texts under which a request's value must hold."""
        return build_contexts(model, request, prefixes, ends=self.value_objective().end > 0)

    @torch.inference_mode(False)  # also what is made on the way is part of gradients
    def fit_with(self, job: Job) -> Fitted[WeightUpdate]:
        """See ``EditingMethod.fit``."""
        layers = self.edited_layers(job.model, job.layer)
        prepared = self._prepared(job)
        return self.write(replace(prepared, statistics=self._statistics(job, layers)))

    @torch.inference_mode(False)
    def fit_each(
        self, model: TransformerBridge, requests: Cases, *, layer: Each | None = None,
        values: Sequence[Value] | None = None, progress: bool = True,
    ) -> Iterator[WeightUpdate]:  # fmt: skip
        """See ``EditingMethod.fit_each``; ``values`` are those of ``values_for``, where they are known already."""
        job = Job(model=model, requests=as_requests(requests), progress=progress)
        places = each_of(layer, len(job.requests))
        edited, at = self._layers_of(model, places)
        prepared = self._prepared(job, together=False)
        every = tuple(sorted({one for layers in edited for one in layers}))
        prepared = replace(prepared, statistics=self._statistics(job, every))
        if values is None:
            values = self._values_at(job, prepared.contexts, at)
        else:
            self._check_values(values, prepared.contexts, at)
        for index, value in enumerate(values):
            yield self.write(prepared.alone(index, value, places[index], edited[index])).update

    def values_for(
        self, model: TransformerBridge, requests: Cases, *, layer: Each | None = None, progress: bool = True
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
        job = Job(model=model, requests=as_requests(requests), progress=progress)
        _, at = self._layers_of(model, each_of(layer, len(job.requests)))
        return self._values_at(job, self._prepared(job, together=False).contexts, at)

    def statistics_at(
        self, model: TransformerBridge, layers: Sequence[int], *, progress: bool = True
    ) -> dict[int, KeyStatistics]:
        """See ``EditingMethod.statistics_at``."""
        return self._statistics(Job(model=model, requests=(), progress=progress), tuple(layers))

    def on_unedited(self, job: Job, known: Mapping[str, Any]) -> tuple[EditingMethod[WeightUpdate], dict[str, Any]]:
        """See ``EditingMethod.on_unedited``; statistics that differ from those of the record are warned of."""
        method, _ = super().on_unedited(job, known)
        if self.given_statistics is not None:
            return method, {"key_energies": {}}
        statistics = self.statistics_for(job.model, job.layer, progress=job.progress)
        energies = {str(layer): one.mean_energy for layer, one in statistics.items()}
        warn_of_others(energies, known.get("key_energies", {}))
        return replace(method, statistics=statistics), {"key_energies": energies}

    def write_again(
        self, model: TransformerBridge, written: Mapping[int, Written], earlier: EarlierEdits
    ) -> dict[str, LowRank]:
        """See ``EditingMethod.write_again``."""
        given = self.given_statistics
        assert given is not None  # a session gives them, before its first batch
        statistics = checked_statistics(given, model, tuple(written), edited=True)
        downs = {layer: down_projection(model, layer) for layer in written}
        return {
            down.name: self._written_again(written[layer], down, statistics[layer], earlier)
            for layer, down in downs.items()
        }

    def _written_again(
        self, own: Written, down: DownProjection, statistics: KeyStatistics, earlier: EarlierEdits
    ) -> LowRank:
        original, changes, total = matrix_of(down), dict(earlier.changes), None
        everything = list(range(len(own.keys)))
        for group in [[one] for one in everything] if self.one_by_one else [everything]:
            weight = original
            if down.name in changes:
                change = changes[down.name].dense().double()
                weight = weight + (change.T if down.transposed else change)
            part = own.only(group)
            residuals = part.values.double() - part.keys.double() @ weight.T
            factors = self.solve(
                Problem(
                    keys=part.keys, residuals=residuals, statistics=statistics,
                    earlier=earlier.keys(down.layer, down.key_size),
                )
            )  # fmt: skip
            # A stabiliser sees the weights as they are when it comes to them.
            now = (weight.T if down.transposed else weight).to(down.parameter.dtype)
            before = replace(down, parameter=nn.Parameter(now, requires_grad=False))
            delta = self.stabilised(stored(*factors, down), before, replace(earlier, changes=changes))
            changes[down.name] = changes[down.name].joined(delta) if down.name in changes else delta
            total = delta if total is None else total.joined(delta)
        assert total is not None
        return total

    def described(self, model: TransformerBridge, layer: Where | None = None) -> dict[str, Any]:
        """See ``EditingMethod.described``; statistics that were given count by their numbers."""
        given = self.given_statistics
        if given is None:
            # Full ones go without saying: so they did when there were no others.
            return {**super().described(model, layer), **({"statistics": "quick"} if self.amount == "quick" else {})}
        several = [given] if isinstance(given, KeyStatistics) else given.values()
        return {**super().described(model, layer), "statistics": [fingerprint(one.second_moment) for one in several]}

    def _prepared(self, job: Job, *, together: bool = True) -> Prepared:
        """A job with its contexts, without statistics; ``together`` for requests that share a model."""
        requests = checked(job.requests, together=together)
        prefixes = self.texts_before(job.model)
        contexts = [self.contexts_of(job.model, request, prefixes) for request in requests]
        # One that earlier edits have made true is written all the same, so that later edits leave it alone.
        if not job.earlier.changes:
            check_answered(job.model, requests, contexts, budget=self.budget)
        return Prepared(job=replace(job, requests=requests), contexts=contexts, prefixes=prefixes, statistics={})

    def _layers_of(
        self, model: TransformerBridge, places: Sequence[Where | None]
    ) -> tuple[list[tuple[int, ...]], list[int]]:
        """Of each place the layers that are edited, and the one at which values are optimised first."""
        return [self.edited_layers(model, one) for one in places], [self.value_layer(model, one) for one in places]

    def _values_at(self, job: Job, contexts: Sequence[Contexts], layers: Sequence[int]) -> list[Value]:
        """The values of requests that each have a layer, those of one layer together."""
        found: dict[int, Value] = {}
        for layer in sorted({*layers}):
            own = [index for index, one in enumerate(layers) if one == layer]
            found |= zip(own, self._values(job, [contexts[index] for index in own], layer), strict=True)
        return [found[index] for index in range(len(layers))]

    def _values(self, job: Job, contexts: Sequence[Contexts], layer: int, bar: StepBar | None = None) -> list[Value]:
        values = optimise_values(
            job.model, contexts, layer, self.value_objective(), place=self.place, budget=self.budget,
            precision=self.precision, progress=job.progress if bar is None else bar,
        )  # fmt: skip
        warn_of_missed(values)
        return values

    def _check_values(self, known: Sequence[Value], contexts: Sequence[Contexts], layers: Sequence[int]) -> None:
        """Whether values that were given are of these requests, and were found where this method would find them."""
        if len(known) != len(contexts):
            raise FactError(
                f"values: one per request is needed, found {len(known)} for {len(contexts)} requests. "
                "Find them with values_for(model, requests)."
            )
        for value, context, layer in zip(known, contexts, layers, strict=True):
            if (value.label, value.layer, value.place) != (context.label, layer, self.place):
                raise FactError(
                    f"values: for {context.label!r} at layer {layer} ({self.place}) there is one found for "
                    f"{value.label!r} at layer {value.layer} ({value.place}). Find them with values_for."
                )

    def _extra_ridge(self, diagonal: Float[Tensor, "d"]) -> float:
        return sum((stabiliser.ridge(diagonal) for stabiliser in self.stabilisers), start=0.0)

    def _with_ridge(self, preserved: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        ridge = self._extra_ridge(preserved.diagonal())
        if not ridge:
            return preserved
        preserved = preserved.clone()
        preserved.diagonal().add_(ridge)
        return preserved

    def _statistics(self, job: Job, layers: tuple[int, ...]) -> dict[int, KeyStatistics]:
        """Statistics of each layer: those given, checked, or collected."""
        edited = bool(job.earlier.changes)
        if (given := self.given_statistics) is not None:
            return checked_statistics(given, job.model, layers, edited=edited)
        if edited:
            raise NumericsError(
                "After earlier edits the key statistics must be those of the unedited model. Give the method "
                "statistics=method.statistics_for(model) from before they were made, or use an EditSession."
            )
        size, quick = down_projection(job.model, layers[0]).key_size, self.amount == "quick"
        tokens = self.statistics_tokens or (QUICK_KEYS if quick else self.keys_per_dimension) * size
        collected = collect_statistics(
            job.model, layers, corpus=self.corpus, tokens=tokens, seed=self.seed, shrink=quick, progress=job.progress
        )
        for one in collected.values():
            one.check_rank()
        return collected


def warn_of_missed(values: Sequence[Value]) -> None:
    """Say so where values do not make their objects likely, so that edits to them will not be said.

    >>> warn_of_missed([])
    """
    if missed := [value for value in values if value.missed]:
        told = [
            f"{value.label}: {value.probability:.2g}" + f" (that it ends there: {value.end:.2g})" * (value.end < 1)
            + f" {value.stopped} in layer {value.layer}" for value in missed
        ]  # fmt: skip
        tell(
            f"{len(missed)} of {len(values)} values did not reach their targets (the probability of the new answer in "
            "the texts that the value is optimised for); these edits are written, and may not be said. Give the "
            "objective more steps, another layer, or a target that this model can say:\n" + listed(told)
        )
