"""The weights that a computation belongs to: held by reference, put in place for a while, or exchanged for good.

A parameter object is the model's; what it points to can be another tensor in no time and with nothing copied. So
an edit exchanges what its parameters point to, and whoever holds the tensors from before can still compute with them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version, saved_tensors_hooks
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import ModelError
from locate.model.found import once
from locate.model.weights import hf_modules, hf_parameters

# On a parameter: how much of its version comes from exchanges, and not from changes of the values that it points to.
_EXCHANGES = "_locate_exchanges"


class _Held(NamedTuple):
    """What a parameter pointed to, and where the parameter stands in the model."""

    module: nn.Module
    name: str
    parameter: Tensor
    data: Tensor
    pointer: int
    changes: int


class HeldWeights:
    """What all parameters of a model hold at one time. Nothing is copied.

    Values that are changed in place afterwards are lost, and ``entered`` says so. A change through ``parameter.data``
    (as in ``parameter.data.add_(…)``) leaves no trace that could be seen; change weights under ``torch.no_grad()``.

    >>> held = HeldWeights.of(model)
    >>> with held.entered():
    ...     logits = model("The Eiffel Tower is located in the city of")
    """

    def __init__(self, model: TransformerBridge, held: Sequence[_Held]) -> None:
        self._model = model
        self._held = tuple(held)

    @classmethod
    def of(cls, model: TransformerBridge) -> "HeldWeights":
        """The weights that the model has now."""
        # Offloaded parameters come and go with every pass, and those made in inference mode count no changes.
        return cls(model, [
            _Held(module, name, parameter, parameter.data, parameter.data_ptr(), _changes(parameter))
            for module, name, parameter in _parameters(model) if not parameter.is_meta and not parameter.is_inference()
        ])  # fmt: skip

    @classmethod
    def of_other(cls, model: TransformerBridge, other: TransformerBridge) -> "HeldWeights":
        """What another model of this model's build holds, for this one to compute with.

        What both have alike is this model's own, so that runs of the two share all that comes before a difference.

        Raises:
            ModelError: the other's parameters have other places, shapes, dtypes or devices.

        >>> with HeldWeights.of_other(model, model).entered():
        ...     logits = model("The Eiffel Tower is located in the city of")
        """
        check_same_build(model, other)
        return cls(model, [
            _Held(module, name, own, data, data.data_ptr(), _changes(own))
            for (module, name, own), (_, _, theirs) in zip(_parameters(model), _parameters(other), strict=True)
            for data in [own.data if own is theirs or torch.equal(own, theirs) else theirs.data]
        ])  # fmt: skip

    @contextmanager
    def entered(self, *, grad: bool = False) -> Iterator[None]:
        """While active, the model computes with these weights, whatever it has before and afterwards.

        Args:
            grad: whether gradients of what is computed are asked for once this has ended.

        Raises:
            ModelError: a parameter's values were changed in place since, or another parameter stands in its place.
        """
        elsewhere = [one for one in self._held if self._moved(one)]
        now: list[tuple[_Held, Tensor]] = []
        try:
            for one in elsewhere:
                now.append((one, one.parameter.data))
                one.parameter.data = one.data
            with _kept_for_backward(elsewhere) if grad and elsewhere else nullcontext():
                yield
        finally:
            # Backwards: a tied parameter stands in two places, and was found with its own values in the first.
            for one, data in reversed(now):
                one.parameter.data = data

    def exchanged(self) -> list[Tensor]:
        """The parameters that point to other values now.

        Raises:
            ModelError: as ``entered`` does.
        """
        return [one.parameter for one in self._held if self._moved(one)]

    def differing(self, other: "HeldWeights") -> list[Tensor]:
        """The parameters that point to one tensor here and to another one there.

        Raises:
            ModelError: the two are not of the same parameters.

        >>> held = HeldWeights.of(model)
        >>> held.differing(HeldWeights.of(model))
        []
        """
        found = {id(one.parameter): one.parameter for one, _ in self._changed(other)}
        return list(found.values())

    def mixed(self, other: "HeldWeights", share: float) -> "HeldWeights":
        """Weights on the way from these to others: of what differs, a share of the others' and the rest of these.

        Nothing else is copied. Where the bridge computes with views of a parameter, they are views of what is made.

        Args:
            other: weights of the same model.
            share: from 0 (these) to 1 (the others).

        Raises:
            ModelError: the two are not of the same parameters, or what differs are no floating-point numbers.

        >>> held = HeldWeights.of(model)
        >>> with held.mixed(held, 0.5).entered():
        ...     logits = model("The Eiffel Tower")
        """
        return self.between(other, lambda one, its: torch.lerp(one, its.to(one), share))

    @torch.no_grad()
    def between(self, other: "HeldWeights", make: Callable[[Tensor, Tensor], Tensor]) -> "HeldWeights":
        """The same of whatever is made of what differs.

        Args:
            other: weights of the same model.
            make: gives the new values of a parameter, of those it has here and there.

        Raises:
            ModelError: as ``mixed`` does.

        >>> held = HeldWeights.of(model)
        >>> held.differing(held.between(held, torch.add))
        []
        """
        made: dict[int, tuple[_Held, _Held, Tensor]] = {}
        # The largest first: a view comes after what it lies in. A tied parameter is found twice, and made once.
        for one, its in sorted(self._changed(other), key=lambda pair: -pair[0].data.numel()):
            if id(one.parameter) in made:
                continue
            if not one.data.is_floating_point():
                raise ModelError(
                    f"{self._name(one)} holds {one.data.dtype}, which nothing lies between. Load the model without "
                    "quantisation."
                )
            around = [
                (whole, new) for whole, theirs, new in made.values()
                if _lies_in(one.data, whole.data) and _lies_in(its.data, theirs.data)
            ]  # fmt: skip
            if around:
                whole, new = around[0]
                start = new.storage_offset() + one.data.storage_offset() - whole.data.storage_offset()
                data = new.as_strided(one.data.shape, one.data.stride(), start)
            else:
                data = torch.empty_like(one.data).copy_(make(one.data, its.data))
            made[id(one.parameter)] = one, its, data
        held = []
        for one in self._held:
            data = made[id(one.parameter)][2] if id(one.parameter) in made else one.data
            held.append(one._replace(data=data, pointer=data.data_ptr()))
        return HeldWeights(self._model, held)

    def _changed(self, other: "HeldWeights") -> list[tuple[_Held, _Held]]:
        """What is held in both, where that is not the same."""
        ours, theirs = ({(id(one.module), one.name): one for one in side._held} for side in (self, other))
        odd = [
            ours[place] for place in ours if place not in theirs or ours[place].parameter is not theirs[place].parameter
        ]
        if odd or len(ours) != len(theirs):
            raise ModelError(
                f"{self._name(odd[0]) if odd else 'A parameter'} is another parameter in the other weights, so the two "
                "cannot be held against each other. Freeze both runs on one model."
            )
        return [(one, theirs[place]) for place, one in ours.items() if one.pointer != theirs[place].pointer]

    def _moved(self, one: _Held) -> bool:
        """Whether a parameter points to another tensor now."""
        if one.module._parameters.get(one.name) is not one.parameter:
            raise ModelError(
                f"{self._name(one)} is another parameter than when this run was frozen, so the run cannot be taken up "
                "again. Freeze it again."
            )
        if _changes(one.parameter) != one.changes:
            raise ModelError(
                f"{self._name(one)} was changed in place since this run was frozen, so the weights that the run "
                "belongs to are gone. Freeze it again, or change weights by a WeightUpdate, which keeps them."
            )
        return one.parameter.data_ptr() != one.pointer

    def _name(self, one: _Held) -> str:
        by_place = [prefix + one.name for prefix, module in hf_modules(self._model) if module is one.module]
        by_view = [name for name, whole in hf_parameters(self._model).items() if _lies_in(one.parameter, whole)]
        return [*by_place, *by_view, f"A parameter {one.name!r} of {type(one.module).__name__}"][0]


def check_same_build(model: TransformerBridge, other: TransformerBridge) -> None:
    """Whether two models are of one build, so that one computes with the other's weights.

    Raises:
        ModelError: they are not; the message names the first parameter that differs.

    >>> check_same_build(model, model)
    """
    ours, theirs = ([(name, one) for _, name, one in _parameters(each)] for each in (model, other))
    named = [hf_parameters(each) for each in (model, other)]
    if odd := sorted(set(named[0]) ^ set(named[1])):
        raise ModelError(
            f"The two models are not of one build: only one of them has {odd[0]}. Give models of one shape."
        )
    for name, one in named[0].items():
        _check_alike(name, one, named[1][name])
    if len(ours) != len(theirs):
        raise ModelError("The two models are not of one build: give models of one architecture, loaded alike.")
    for (name, one), (_, two) in zip(ours, theirs, strict=True):
        _check_alike(name, one, two)


def _check_alike(name: str, one: Tensor, two: Tensor) -> None:
    for what in ("shape", "dtype", "device"):
        found = [getattr(each, what) for each in (one, two)]
        if found[0] != found[1]:
            shown = [tuple(each) if what == "shape" else each for each in found]
            raise ModelError(
                f"The two models are not of one build: {name} has {what} {shown[0]} in the first and {shown[1]} in the "
                "second. Give models of one shape, loaded with one dtype on one device."
            )
    if one.is_meta:
        raise ModelError(f"The values of {name} are offloaded. Load both models on a device that holds all of them.")
    if one.stride() != two.stride():
        raise ModelError(f"The two models store {name} in other strides. Load both in the same way.")


def exchange(model: TransformerBridge, pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    """Let parameters point to other tensors of their shape, dtype and strides from now on.

    Where the bridge computes with views of a parameter (the query, key and value in a fused matrix), they follow it.

    >>> parameter = model.ln_final.weight
    >>> exchange(model, [(parameter, parameter.data.clone())])
    """
    everything = {id(parameter): parameter for _, _, parameter in _parameters(model)}.values()
    versions = [parameter._version for parameter in everything]
    try:
        for parameter, data in pairs:
            old = parameter.detach()
            views = [one for one in everything if one is not parameter and _lies_in(one, old)]
            # The parameter first: if this is interrupted, exchanging it again finds the views that have followed.
            for one in (parameter, *views):
                start = data.storage_offset() + one.storage_offset() - old.storage_offset()
                one.data = data.as_strided(one.shape, one.stride(), start)
                # A gradient that was to be taken through the old values is an error then, and not a wrong number.
                increment_version(one)
    finally:
        for parameter, version in zip(everything, versions, strict=True):
            if parameter._version != version:
                setattr(parameter, _EXCHANGES, getattr(parameter, _EXCHANGES, 0) + parameter._version - version)


def _parameters(model: TransformerBridge) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """All parameters that the model computes with, the bridge's views and copies among them, place by place."""

    def find() -> list[tuple[nn.Module, str]]:
        original: Any = model.original_model
        return [(module, name) for module in original.modules() for name in module._parameters]

    for module, name in once(model, "places of parameters", find):
        parameter = module._parameters.get(name)
        if parameter is not None:
            yield module, name, parameter


def _changes(parameter: Tensor) -> int:
    """How often the values that a parameter points to were changed in place."""
    return parameter._version - getattr(parameter, _EXCHANGES, 0)


def _lies_in(view: Tensor, whole: Tensor) -> bool:
    if view.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return False
    return whole.storage_offset() <= view.storage_offset() < whole.storage_offset() + whole.numel()


def _kept_for_backward(held: Sequence[_Held]) -> saved_tensors_hooks:
    """While active, what a gradient needs of these parameters is kept as they are now.

    Autograd keeps the parameter object, which will point elsewhere by the time of the backward pass.
    """
    known = {id(one.parameter) for one in held}
    return saved_tensors_hooks(lambda saved: saved.detach() if id(saved) in known else saved, lambda kept: kept)
