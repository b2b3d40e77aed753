"""Gradients of an answer with respect to many states at once, from one backward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import FrozenRun, hook_points
from locate.engine.hooking import hooked, listen
from locate.engine.readout import only_logits_at
from locate.errors import LocateError
from locate.model.parameters import frozen_parameters
from locate.model.running import running


def state_gradients(
    run: FrozenRun, names: Sequence[str], measure: Callable[..., Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states at some hook points of a run, and the gradients of its rows' first measure with respect to them.

    Raises:
        LocateError: the measure has no gradient.
    """
    values: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}

    def shifter(name: str) -> Callable[[Tensor], Tensor]:
        def hook(output: Tensor) -> Tensor:
            # The gradient of a shift of nothing is the gradient of the state, also where the state is a view.
            values[name] = output.detach()
            shifts[name] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[name]

        return hook

    model: TransformerBridge = run.model
    with ExitStack() as stack:
        stack.enter_context(running(model, grad=True))
        stack.enter_context(run.weights.entered())
        stack.enter_context(frozen_parameters(model))
        stack.enter_context(hooked(model, run.hooks))
        for name, point in hook_points(model, list(names)).items():
            stack.callback(listen(point, shifter(name)).remove)
        stack.enter_context(only_logits_at(model, *run.at))
        logits = model(run.tokens, attention_mask=run.attention_mask)[0]
        measured = measure(logits, run.at[0])[..., 0].sum()
        if not measured.requires_grad:
            raise LocateError("Screening needs a metric with a gradient; a rank has none. Choose another first metric.")
        found = torch.autograd.grad(measured, [shifts[name] for name in names], allow_unused=True)
    gradients = {
        name: torch.zeros_like(values[name]) if gradient is None else gradient
        for name, gradient in zip(names, found, strict=True)
    }
    return values, gradients
