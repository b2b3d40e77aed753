"""What all editing methods share: the record of what was written, and what a method must do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Count, Told, Whole, hyperparameters, refused
from edit.methods.rewriting.stabilisers import Stabiliser
from edit.methods.where import Where
from edit.requests.conflicts import check_conflicts
from edit.requests.requests import Cases, EditRequest, as_requests
from edit.values.contexts import check_answered, sample_prefixes
from locate.engine import DEFAULT_BUDGET
from locate.errors import NumericsError
from locate.model.weights import DownProjection


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What edits wrote into one layer: at these keys the down-projection's matrix gives these values.

    Attributes:
        layer: whose down-projection.
        keys: one per edit.
        values: what was wanted of W k, without the bias that some models add.
    """

    layer: int
    keys: Float[Tensor, "edit d_mlp"]
    values: Float[Tensor, "edit d_model"]

    def joined(self, other: "Written") -> "Written":
        """Both, these first."""
        return Written(
            layer=self.layer, keys=torch.cat([self.keys, other.keys]), values=torch.cat([self.values, other.values])
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlierEdits:
    """What a fit needs to know of the edits that are in the model already.

    Attributes:
        written: by layer, the keys and values of earlier edits.
        changes: by parameter, what they have changed.
        anchors: by the layer at which values are optimised, the mean norm of those found on the unedited model.
    """

    written: Mapping[int, Written] = field(default_factory=dict)
    changes: Mapping[str, LowRank] = field(default_factory=dict)
    anchors: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """An update, with what later edits need to know of it.

    Attributes:
        update: for the model as it was.
        written: by layer, what it writes.
        anchors: by the layer at which values are optimised, their mean norm before any stabiliser.
    """

    update: WeightUpdate
    written: Mapping[int, Written]
    anchors: Mapping[int, float] = field(default_factory=dict)


# Of sampled prefixes: pairs of a length and a count.
Lengths = Annotated[
    tuple[tuple[Count, Count], ...],
    Told("give pairs of a length and a count, both 1 or more, such as ((5, 10), (10, 10)); found {}."),
]


def _several(prefixes: Any) -> Any:
    if isinstance(prefixes, str):
        raise refused("give several texts, or one as ({},).")
    return None if prefixes is None else tuple(prefixes)  # a generator gives them once only


@hyperparameters
class EditingMethod:
    """Anything that finds updates for requests.

    Args:
        prefix_lengths: (length, count) of the sampled prefixes.
        prefixes: texts to use instead of sampled ones, each put before the prompt as it is (so that it should end in
            a space); the bare prompt is added.
        stabilisers: what keeps many edits from breaking the model: ``NAS``, ``ENCORE``, ``BLUE``, ``PRUNE``, ``RECT``.
        seed: of what is sampled.
        budget: the most tokens in one pass.
    """

    prefix_lengths: Lengths = ((10, 5),)
    prefixes: Annotated[tuple[str, ...] | None, BeforeValidator(_several)] = None
    stabilisers: Annotated[tuple[Stabiliser, ...], Told("give several, or one as (edit.NAS(),); found {}.")] = ()
    seed: Whole = 0
    budget: Whole = DEFAULT_BUDGET

    def fit(
        self,
        model: TransformerBridge,
        requests: Cases,
        *,
        layer: Where | None = None,
        earlier: EarlierEdits | None = None,
        progress: bool = True,
    ) -> WeightUpdate:
        """Find the update that makes the model answer every request with its new target; the model stays as it was.

        Args:
            model: a raw-mode bridge, with earlier edits applied if there are any.
            requests: one or several; a fact stands for its own counterfactual.
            layer: where to edit instead of the method's own layers: a layer, several, a ``Site``, or a result of
                ``locate`` such as a ``Trace``.
            earlier: what edits that are in the model wrote; an ``EditSession`` keeps it. The method then needs the
                unedited model's ``statistics``, and its ``prefixes`` to be the same as before.
            progress: whether to show bars.

        Raises:
            FactError: no requests, some that contradict or repeat each other, or one whose new target is already
                the model's answer.
            SiteError: the model has no such layer.
            DataError: the statistics given are of other layers, or of keys of another size.
            NumericsError: an optimisation or solve went wrong; the message names the request or the layer.
        """
        return self.fit_with(model, requests, layer=layer, earlier=earlier, progress=progress).update

    def fit_with(
        self,
        model: TransformerBridge,
        requests: Cases,
        *,
        layer: Where | None = None,
        earlier: EarlierEdits | None = None,
        progress: bool = True,
    ) -> Fitted:
        """The same, with what later edits need to know."""
        raise NotImplementedError

    def fit_each(
        self,
        model: TransformerBridge,
        requests: Sequence[EditRequest],
        *,
        layer: Where | None = None,
        progress: bool = True,
    ) -> Iterator[WeightUpdate]:
        """For each request by itself an update of the model as it is: what ``fit`` gives, one request at a time.

        Methods that optimise values do so for all requests together, which is much faster. Requests may repeat or
        contradict each other.

        Raises:
            FactError, SiteError, NumericsError: as ``fit``.

        >>> len(list(edit.ROME(layer=4).fit_each(model, [request])))
        1
        """
        for request in requests:
            yield self.fit(model, request, layer=layer, progress=progress)

    def check(self, model: TransformerBridge, requests: Sequence[EditRequest]) -> None:
        """Whether the method can make all of these edits of the unedited model.

        Raises:
            FactError: the model answers some with the new target already, or the method cannot tell its answers
                apart; the message names them.

        >>> edit.ROME(layer=4).check(model, [request])
        """
        check_answered(model, requests, budget=self.budget)

    def texts_before(self, model: TransformerBridge) -> list[str]:
        """The prefixes, of which the first is empty.

        >>> edit.ROME(prefixes=("I am here. ",)).texts_before(model)
        ['', 'I am here. ']
        """
        if self.prefixes is None:
            return sample_prefixes(model, self.prefix_lengths, self.seed)
        return ["", *self.prefixes]

    def stabilised(self, delta: LowRank, down: DownProjection, earlier: EarlierEdits) -> LowRank:
        """The change of a layer after all stabilisers.

        Raises:
            NumericsError: it is not finite.
        """
        for stabiliser in self.stabilisers:
            delta = stabiliser.change(delta, down.parameter, earlier.changes.get(down.name))
        if not delta.is_finite():
            raise NumericsError(
                f"The change of layer {down.layer} holds NaN or infinite values; nothing was changed. Collect more key "
                "statistics, or lower the learning rate."
            )
        return delta


def checked(requests: Cases, *, together: bool = True) -> list[EditRequest]:
    """The requests as a list; ``together`` for those that share a model.

    Raises:
        FactError: there are none, or some contradict or repeat each other.
    """
    requests = as_requests(requests)
    if together:
        check_conflicts(requests)
    return requests


def stored(left: Float[Tensor, "d_model rank"], right: Float[Tensor, "rank d_mlp"], down: DownProjection) -> LowRank:
    """Factors of a change of W in the orientation in which the model keeps it."""
    # With orthonormal columns on one side rounding harms neither: where keys are alike, the factors are large and
    # cancel.
    left, triangle = torch.linalg.qr(left.double())
    left, right = left.float(), (triangle @ right.double()).float()
    return LowRank(left=right.T, right=left.T) if down.transposed else LowRank(left=left, right=right)


def matrix_of(down: DownProjection) -> Float[Tensor, "d_model d_mlp"]:
    """W in float64 on the CPU."""
    weight = down.parameter.detach().cpu().double()
    return weight.T if down.transposed else weight
