"""Reaching into a running model: hook points by name, interventions, columns left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.branch import Branch
from locate.engine.interventions import Intervention
from locate.errors import SiteError, suggest
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.running import running

Hook = tuple[str, Callable[..., Any]]


def hook_points(model: TransformerBridge, names: Sequence[str]) -> dict[str, nn.Module]:
    """The hook point modules of these names.

    Raises:
        SiteError: a name that the model does not have; the nearest names are suggested.
    """
    return {name: _hook_point(model, name) for name in names}


def has_hook_point(model: TransformerBridge, name: str) -> bool:
    """Whether the model has a hook point of this name.

    >>> has_hook_point(model, "blocks.0.attn.hook_q"), has_hook_point(model, "blocks.0.attn.hook_other")
    (True, False)
    """
    try:
        _hook_point(model, name)
    except SiteError:
        return False
    return True


def _hook_point(model: TransformerBridge, name: str) -> nn.Module:
    found: Any = model
    try:
        # By attribute, because the model's own dictionary of hook points is built anew on each use.
        for part in name.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
    except (AttributeError, IndexError, KeyError, TypeError):
        found = None
    if isinstance(found, HookPoint):
        return found
    known = model.hook_dict
    if name not in known:
        raise SiteError(f"The model has no hook point {name!r}. {suggest(name, known)}")
    return known[name]


class Listener:
    """A function that hears a hook point, until it is removed."""

    def __init__(self, point: HookPoint, hook: Callable[..., Tensor | None]) -> None:
        # Through the library's own call: some points only fire for what was added by it.
        self._point, self._handle = point, point.add_hook(hook)

    def remove(self) -> None:
        """Hear no more."""
        self._handle.hook.remove()
        self._point.fwd_hooks = [one for one in self._point.fwd_hooks if one is not self._handle]


def listen(point: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Listener:
    """Call a function with the value at a hook point, in the form that users of TransformerLens see but for its axes,
    of which positions are always the second; what it returns, if anything, takes the value's place.

    Some values pass in another form, such as heads side by side in one axis. Where heads or channels come before the
    positions the hook point says so; patterns, which have one position for each of two axes, stay as they are.
    """
    assert isinstance(point, HookPoint)
    axis = point.pos_dim if point.pos_dim is not None and point.pos_dim > 1 else 1

    def hook(value: Tensor, hook: object) -> Tensor | None:
        changed = function(value.movedim(axis, 1))
        return None if changed is None else changed.movedim(1, axis)

    return Listener(point, hook)


def keep_in(kept: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    """A function for ``listen`` that keeps the value."""

    def keep(output: Tensor) -> None:
        kept[name] = output

    return keep


def check_live(model: TransformerBridge, name: str) -> None:
    """Whether the model takes what is put in a hook point's place: some show a state after it was used.

    Raises:
        SiteError: it does not, in this architecture.
    """
    if not once(model, f"{name} is live", lambda: _is_live(model, name)):
        raise SiteError(
            f"{type(model.original_model).__name__} shows {name!r} only after it was used, so changing it changes "
            "nothing. Choose another site."
        )


def _is_live(model: TransformerBridge, name: str) -> bool:
    tokens = torch.tensor([[1, 2, 3, 4]], device=input_device(model))
    generator = torch.Generator().manual_seed(0)

    def disturb(value: Tensor) -> Tensor:
        return value + torch.rand(value.shape, generator=generator, dtype=torch.float32).to(value)

    with running(model):
        before = model(tokens)
        handle = listen(hook_points(model, [name])[name], disturb)
        try:
            after = model(tokens)
        finally:
            handle.remove()
    return not torch.equal(before, after)


@contextmanager
def hooked(model: TransformerBridge, hooks: Sequence[Hook]) -> Iterator[None]:
    """While active, TransformerLens hooks; a name that is no hook point's is a module's, whose output it takes."""
    points: list[Hook] = []
    with ExitStack() as stack:
        for name, function in hooks:
            module = _plain_module(model, name)
            if module is None:
                points.append((name, function))
            else:
                stack.callback(module.register_forward_hook(partial(_of_output, function)).remove)
        stack.enter_context(model.hooks(fwd_hooks=points))
        yield


def _plain_module(model: TransformerBridge, name: str) -> nn.Module | None:
    """The model's own module of this name; none where it is a hook point's."""
    try:
        module = model.original_model.get_submodule(name)
    except AttributeError:
        return None
    return None if isinstance(module, HookPoint) else module


def _of_output(function: Callable[..., Any], module: nn.Module, _args: Any, output: Tensor) -> Any:
    return function(output, hook=module)


@contextmanager
def intervening(model: TransformerBridge, branches: Sequence[Branch], offset: Callable[[str], int]) -> Iterator[None]:
    """Carry out the branches' interventions on the running batch, whose rows stand in branch order.

    Column 0 of the resumed suffix is column ``offset(name)`` of the value at a hook point.
    """
    wanted: dict[str, list[tuple[int, int, Intervention]]] = {}
    start = 0
    for branch in branches:
        for name, one in branch.interventions.items():
            wanted.setdefault(name, []).append((start, start + len(branch), one))
        start += len(branch)

    def change(places: list[tuple[int, int, Intervention]], column: int) -> Callable[[Tensor], Tensor]:
        def hook(output: Tensor) -> Tensor:
            changed = output.clone()
            for first, last, one in places:
                if first < len(changed):  # later rows have not entered yet
                    one.apply(changed[first:last], column)
            return changed

        return hook

    with ExitStack() as stack:
        for name, point in hook_points(model, list(wanted)).items():
            stack.callback(listen(point, change(wanted[name], offset(name))).remove)
        yield


@contextmanager
def only_columns(module: nn.Module, columns: Sequence[int], length: int) -> Iterator[None]:
    """While active, a position-wise module computes these columns of its input alone; the others are zero."""

    def narrow(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            a[:, columns] if isinstance(a, Tensor) and a.ndim == 3 and a.shape[1] == length else a for a in args
        )

    def widen(_module: nn.Module, _args: Any, output: Any) -> Any:
        made, *beside = output if isinstance(output, tuple) else (output,)  # experts say beside it how they routed
        full = made.new_zeros(made.shape[0], length, *made.shape[2:])
        full[:, columns] = made
        return (full, *beside) if isinstance(output, tuple) else full

    handles = [module.register_forward_pre_hook(narrow), module.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
