"""What every editing method is asked: to fit changes, and what it can do. Nobody asks which class it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change
from edit.changes.lowrank import LowRank
from edit.hyperparameters import Whole, hyperparameters
from edit.methods.where import Each, Where, each_of, layers_at
from edit.requests.conflicts import check_conflicts
from edit.requests.requests import Cases, EditRequest, as_requests
from edit.statistics import KeyStatistics
from edit.values.contexts import check_answered
from locate.engine import DEFAULT_BUDGET

# What a method leaves behind.
Left = TypeVar("Left", bound=Change)


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

    def only(self, edits: Sequence[int]) -> "Written":
        """What some of the edits wrote."""
        return Written(layer=self.layer, keys=self.keys[edits], values=self.values[edits])


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

    def keys(self, layer: int, size: int) -> Float[Tensor, "edit d_mlp"]:
        """The keys of earlier edits in a layer whose keys have this size."""
        return self.written[layer].keys if layer in self.written else torch.zeros(0, size, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What a method is asked to fit.

    Attributes:
        model: a raw-mode bridge, with earlier edits applied if there are any.
        requests: what to change.
        layer: where to edit instead of the method's own layers.
        earlier: what edits that are in the model wrote.
        progress: whether to show bars.
    """

    model: TransformerBridge
    requests: Sequence[EditRequest]
    layer: Where | None = None
    earlier: EarlierEdits = field(default_factory=EarlierEdits)
    progress: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted(Generic[Left]):
    """A change, with what later edits need to know of it.

    Attributes:
        update: of the model as it was.
        written: by layer, what it writes.
        anchors: by the layer at which values are optimised, their mean norm before any stabiliser.
    """

    update: Left
    written: Mapping[int, Written] = field(default_factory=dict)
    anchors: Mapping[int, float] = field(default_factory=dict)


@hyperparameters
class EditingMethod(Generic[Left]):
    """Anything that finds changes for requests: one that is new fills in ``fit_with``, and says what it can.

    Args:
        seed: of what is sampled.
        budget: the most tokens in one pass.
    """

    # Whether what it leaves is a ``WeightUpdate``, as sessions add them up.
    changes_weights: ClassVar[bool] = True
    # Whether an edit depends on its fact's paraphrases: with others it is another edit.
    uses_paraphrases: ClassVar[bool] = False
    # Whether it needs the key statistics of the unedited model, and has a field ``statistics`` to be given them.
    uses_statistics: ClassVar[bool] = False
    # Whether the requests of a batch are written one after the other, so that a batch is not faster than its parts.
    one_by_one: ClassVar[bool] = False

    seed: Whole = 0
    budget: Whole = DEFAULT_BUDGET

    @property
    def name(self) -> str:
        """As files and messages name it."""
        return type(self).__name__

    @property
    def writes_again(self) -> bool:
        """Whether a batch can be written again after other edits than it was made on; see ``write_again``."""
        return False

    @property
    def adds_up(self) -> bool:
        """Whether what a batch changes is the same whatever other edits there are."""
        return False

    def fit(
        self,
        model: TransformerBridge,
        requests: Cases,
        *,
        layer: Where | None = None,
        earlier: EarlierEdits | None = None,
        progress: bool = True,
    ) -> Left:
        """Find the change that makes the model answer every request with its new target; the model stays as it was.

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
        before = earlier or EarlierEdits()
        asked = as_requests(requests)
        return self.fit_with(Job(model=model, requests=asked, layer=layer, earlier=before, progress=progress)).update

    def fit_with(self, job: Job) -> Fitted[Left]:
        """The same, with what later edits need to know."""
        raise NotImplementedError

    def fit_each(
        self, model: TransformerBridge, requests: Cases, *, layer: Each | None = None, progress: bool = True
    ) -> Iterator[Left]:
        """For each request by itself a change of the model as it is: what ``fit`` gives, one request at a time.

        Methods that optimise values do so for all requests of a layer together, which is much faster. Requests may
        repeat or contradict each other.

        Args:
            model: a raw-mode bridge.
            requests: what to change; a fact stands for its own counterfactual.
            layer: where to edit instead of the method's own layers, as ``fit`` takes it; or for each request a place
                of its own: sites, results of ``locate`` such as traces, or lists of layers.
            progress: whether to show bars.

        Raises:
            FactError, SiteError, NumericsError: as ``fit``.

        >>> updates = edit.FineTuning(steps=2).fit_each(model, [request, request], layer=[trace, [4]])
        >>> [update.info["layer"] for update in updates] == [trace.best().layer, 4]
        True
        """
        asked = as_requests(requests)
        for request, at in zip(asked, each_of(layer, len(asked)), strict=True):
            yield self.fit(model, request, layer=at, progress=progress)

    def check(self, model: TransformerBridge, requests: Sequence[EditRequest]) -> None:
        """Whether the method can make all of these edits of the unedited model.

        Raises:
            FactError: the model answers some with the new target already, or the method cannot tell its answers
                apart; the message names them.

        >>> edit.ROME(layer=4).check(model, [request])
        """
        check_answered(model, requests, budget=self.budget)

    def edited_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """The layers that ``fit`` may edit.

        >>> edit.ROME(layer=4).edited_layers(model)
        (4,)
        """
        return tuple(range(model.cfg.n_layers)) if where is None else layers_at(model, where)

    def statistics_for(
        self, model: TransformerBridge, layer: Where | None = None, *, progress: bool = True
    ) -> dict[int, KeyStatistics]:
        """The key statistics that ``fit`` would use on this model, by layer, where it uses some.

        >>> list(edit.ROME(layer=4).statistics_for(model))
        [4]
        """
        return self.statistics_at(model, self.edited_layers(model, layer), progress=progress)

    def statistics_at(
        self, model: TransformerBridge, layers: Sequence[int], *, progress: bool = True
    ) -> dict[int, KeyStatistics]:
        """Those that it would use where it edits these layers, in one pass over the text, as a sweep over layers wants.

        >>> list(edit.ROME().statistics_at(model, [3, 4]))
        [3, 4]
        """
        return {}

    def on_unedited(self, job: Job, known: Mapping[str, Any]) -> tuple["EditingMethod[Left]", dict[str, Any]]:
        """The method with all that it takes from an unedited model, so that every batch of a session takes the same.

        Args:
            job: with the unedited model.
            known: the record of the session's first batch, where there is one.

        Returns:
            The method, and what is to be noted in the record of each batch.

        >>> method, noted = edit.ROME(layer=4).on_unedited(Job(model=model, requests=[request]), {})
        >>> len(method.prefixes), list(noted["key_energies"])
        (20, ['4'])
        """
        return self, {}

    def write_again(
        self, model: TransformerBridge, written: Mapping[int, Written], earlier: EarlierEdits
    ) -> dict[str, LowRank]:
        """By parameter, the changes that give a batch's keys their wanted values after other earlier edits.

        Args:
            model: unedited.
            written: by layer, what the batch writes.
            earlier: the edits before it.
        """
        raise NotImplementedError

    def described(self, model: TransformerBridge, layer: Where | None = None) -> dict[str, Any]:
        """What its edits of a model depend on besides the requests, as a session's folder notes it.

        >>> edit.ROME(layer=4).described(model)["method"]["layers"]
        '(4,)'
        """
        own = {one.name: repr(getattr(self, one.name)) for one in fields(self) if one.name not in _NOT_DESCRIBED}
        return {"method": {"name": self.name, **own, "layers": repr(self.edited_layers(model, layer))}}


# What is described in another way, and the memory it may take: that is lowered to go on with a run that had too little.
_NOT_DESCRIBED = ("statistics", "budget", "layer", "layers")


def checked(requests: Sequence[EditRequest], *, together: bool = True) -> list[EditRequest]:
    """The requests as a list; ``together`` for those that share a model.

    Raises:
        FactError: there are none, or some contradict or repeat each other.
    """
    requests = as_requests(requests)
    if together:
        check_conflicts(requests)
    return requests
