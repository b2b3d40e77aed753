"""Gradients of an answer with respect to many states at once, from one backward pass, plain or by rules."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import Branch, FrozenRun, Measure, hook_points
from locate.engine.hooking import has_hook_point, listen
from locate.engine.rows import Budget
from locate.engine.rules import GRADIENT, Rules, Ruling
from locate.errors import LocateError
from locate.model.parameters import frozen_parameters
from locate.model.running import running


@dataclass(frozen=True, kw_only=True, eq=False)
class Tape:
    """A pass of some rows that a backward pass can be made of.

    Attributes:
        rows: which of the branch's rows these are.
        values: the states at hook points, from the position of the resume on.
    """

    rows: slice
    values: Mapping[str, Tensor]
    _measured: Tensor
    _shifts: Mapping[str, Tensor]
    _valve: "_Valve"
    _suffix: Callable[[str, Tensor], Tensor]

    def gradients(self, *, dropped: int | None = None) -> dict[str, Tensor]:
        """Of each row's first measure with respect to the states that were asked for.

        Args:
            dropped: a layer through whose attention and MLP no gradient flows.
        """
        self._valve.closed = dropped
        # Kept for a further backward pass, until the tape is thrown away.
        found = torch.autograd.grad(
            self._measured, list(self._shifts.values()), allow_unused=True, retain_graph=self._valve.installed
        )
        return {
            name: self._suffix(name, torch.zeros_like(shift) if gradient is None else gradient)
            for (name, shift), gradient in zip(self._shifts.items(), found, strict=True)
        }


def backward_passes(
    run: FrozenRun,
    position: int,
    branch: Branch,
    names: Sequence[str],
    measure: Measure,
    use: Callable[[Tape], None],
    *,
    seen: Sequence[str] = (),
    rules: Rules = GRADIENT,
    droppable: bool = False,
    most: int | None = None,
) -> None:
    """Resume a branch in parts that fit the budget, and let each part's gradients be used before the next is run.

    Args:
        run: the frozen run.
        position: as in ``FrozenRun.resume``.
        branch: the rows, with the states that they enter with.
        names: hook points whose states' gradients are wanted, from the branch's layer on.
        measure: of each row; of several the first counts.
        use: what is done with each part.
        seen: further hook points whose states are kept.
        rules: how gradients flow back.
        droppable: whether ``Tape.gradients`` may drop a layer.
        most: rows in a part at the most.

    Raises:
        LocateError: the measure has no gradient.
        ModelError: a rule has no meaning in this architecture.
    """
    model, length = run.model, run.tokens.shape[1] - (position if run.resumable else 0)
    at_once = min(Budget.of(model, run.budget).rows(length, gradients=True), run.rows_at_a_time(position))
    at_once = at_once if most is None else max(1, min(at_once, most))
    for start in range(0, len(branch), at_once):
        rows = slice(start, min(start + at_once, len(branch)))
        with ExitStack() as stack:
            stack.enter_context(running(model, grad=True))
            stack.enter_context(run.weights.entered(grad=True))
            stack.enter_context(frozen_parameters(model))
            values: dict[str, Tensor] = {}
            shifts: dict[str, Tensor] = {}
            valve = _Valve()
            ruling = Ruling.of(model, rules)
            # Closed before the tape is used: what is run meanwhile is no part of it.
            with ExitStack() as hooks:
                hooks.enter_context(ruling.making())
                for name, point in hook_points(model, [*names, *(one for one in seen if one not in names)]).items():
                    shifted = shifts if name in names else None
                    hooks.callback(listen(point, _listener(name, values, shifted)).remove)
                if droppable:
                    hooks.enter_context(valve.installed_in(model))
                hooks.enter_context(ruling.taking())
                measured = run.resume(
                    position, [branch.split(rows.start, rows.stop)], measure=measure, grad=True, heard=True
                )
            measured = measured[..., 0].sum()
            if not measured.requires_grad:
                raise LocateError("This needs a metric with a gradient; a rank has none. Choose another first metric.")
            suffix = partial(run.suffix_of, position=position)
            stack.enter_context(ruling.norming())
            use(
                Tape(
                    rows=rows, values={name: suffix(name, one) for name, one in values.items()}, _measured=measured,
                    _shifts=shifts, _valve=valve, _suffix=suffix,
                )
            )  # fmt: skip


def _listener(name: str, values: dict[str, Tensor], shifts: dict[str, Tensor] | None) -> Callable[[Tensor], Any]:
    def hook(output: Tensor) -> Tensor | None:
        values[name] = output.detach()
        if shifts is None:
            return None
        # The gradient of a shift of nothing is the gradient of the state, also where the state is a view.
        shifts[name] = torch.zeros_like(output, requires_grad=True)
        return output + shifts[name]

    return hook


class _Valve:
    """Lets no gradient through what one layer adds to the stream; which one is asked in the backward pass."""

    def __init__(self) -> None:
        self.closed: int | None = None
        self.installed = False

    def installed_in(self, model: TransformerBridge) -> ExitStack:
        """While the stack is open, the model's layers ask."""
        self.installed = True
        stack = ExitStack()
        for layer in range(model.cfg.n_layers):
            for part in ("attn", "mlp"):
                name = f"blocks.{layer}.hook_{part}_out"
                if has_hook_point(model, name):
                    stack.callback(listen(hook_points(model, [name])[name], self._hook(layer)).remove)
        return stack

    def _hook(self, layer: int) -> Callable[[Tensor], Tensor]:
        return lambda value: _Passed.apply(value, self, layer)


class _Passed(torch.autograd.Function):
    """A value whose gradient stops where the valve is closed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, valve: _Valve, layer: int) -> Tensor:
        ctx.valve, ctx.layer = valve, layer
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        closed = ctx.valve.closed == ctx.layer
        return torch.zeros_like(gradients[0]) if closed else gradients[0], None, None
