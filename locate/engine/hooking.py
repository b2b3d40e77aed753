"""Reaching into a running model: hook points by name, interventions, columns left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.branch import Branch
from locate.engine.interventions import Intervention
from locate.errors import SiteError, suggest

Hook = tuple[str, Callable[..., Any]]


def hook_points(model: TransformerBridge, names: Sequence[str]) -> dict[str, nn.Module]:
    """The hook point modules of these names.

    Raises:
        SiteError: a name that the model does not have; the nearest names are suggested.
    """
    return {name: _hook_point(model, name) for name in names}


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


@contextmanager
def intervening(model: TransformerBridge, branches: Sequence[Branch], offset: int) -> Iterator[None]:
    """Carry out the branches' interventions on the running batch, whose rows stand in branch order.

    Column 0 of the resumed suffix is column ``offset`` of the batch.
    """
    wanted: dict[str, list[tuple[int, int, Intervention]]] = {}
    start = 0
    for branch in branches:
        for name, one in branch.interventions.items():
            wanted.setdefault(name, []).append((start, start + len(branch), one))
        start += len(branch)

    def change(places: list[tuple[int, int, Intervention]]) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            for first, last, one in places:
                if first < len(changed):  # later rows have not entered yet
                    one.apply(changed[first:last], offset)
            return changed

        return hook

    with ExitStack() as stack:
        for name, point in hook_points(model, list(wanted)).items():
            handle = point.register_forward_hook(change(wanted[name]))
            stack.callback(handle.remove)
        yield


@contextmanager
def only_columns(module: nn.Module, columns: Sequence[int], length: int) -> Iterator[None]:
    """While active, a position-wise module computes these columns of its input alone; the others are zero."""

    def narrow(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            a[:, columns] if isinstance(a, Tensor) and a.ndim == 3 and a.shape[1] == length else a for a in args
        )

    def widen(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        full = output.new_zeros(output.shape[0], length, *output.shape[2:])
        full[:, columns] = output
        return full

    handles = [module.register_forward_pre_hook(narrow), module.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
