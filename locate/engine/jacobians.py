"""Jacobians: how the state that a prompt ends in answers to earlier states, all layers from one backward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from locate.engine.branch import Branch, carried_by, check_branches
from locate.engine.run import FrozenRun
from locate.errors import ModelError, SiteError, counted
from locate.model.parameters import frozen_parameters
from locate.model.running import running


def jacobians(
    run: FrozenRun,
    position: int,
    layers: Sequence[int],
    *,
    to_layer: int | None = None,
    done: Callable[[int], object] = lambda rows: None,
) -> Float[Tensor, "layer output d_model"]:
    """Of the state where a run's one row is read, with respect to the states at a position that enter some layers.

    Nothing before the position changes, and what stands between it and the readout follows. One backward pass reaches
    all layers, so that many of them cost what the lowest does.

    Args:
        run: of one row.
        position: of the states that the derivative is taken with respect to.
        layers: the blocks that these enter.
        to_layer: the block that the state enters whose derivative it is; by default the final norm (``n_layers``).
        done: told how many rows of the Jacobians have come.

    Raises:
        SiteError: a layer or position that the run does not have, or a layer that is not below ``to_layer``.
        ModelError: the architecture cannot be resumed.

    >>> run = locate.engine.freeze(model, locate.encode_fact(model, fact).tokens[None])
    >>> jacobians(run, 3, [2, 3], to_layer=4).shape == (2, model.cfg.d_model, model.cfg.d_model)
    True
    """
    to_layer = run.n_layers if to_layer is None else to_layer
    if not layers or not 0 <= min(layers) <= max(layers) < to_layer <= run.n_layers:
        raise SiteError(
            f"Jacobians lead from layers up to a later one of at most {run.n_layers}; found {list(layers)} and "
            f"{to_layer}."
        )
    if len(run.tokens) != 1 or not position <= int(run.at[1][0]):
        raise SiteError(
            f"Jacobians are of one row that is read at or after position {position}; found "
            f"{counted(len(run.tokens), 'row')}, read at {run.at[1].tolist()}."
        )
    check_branches([_branch(run, position, min(layers), 1)], position, run.tokens.shape, run.n_layers)
    if not run.resumable:
        raise ModelError(
            f"{type(run.model.original_model).__name__} cannot be resumed from the middle, so the derivative of its "
            "later states with respect to earlier ones cannot be taken. Use another model."
        )
    with ExitStack() as stack:
        stack.enter_context(running(run.model, grad=True))
        stack.enter_context(run.weights.entered(grad=True))
        stack.enter_context(frozen_parameters(run.model))
        at_once = run.rows_at_a_time(position)
        try:
            return _rows(run, position, layers, to_layer, at_once, done, copies=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):  # an operation whose backward does not take several rows at once
            return _rows(run, position, layers, to_layer, at_once, done, copies=True)


def _rows(
    run: FrozenRun, position: int, layers: Sequence[int], to_layer: int, at_once: int,
    done: Callable[[int], object], *, copies: bool,
) -> Tensor:  # fmt: skip
    """The Jacobians some rows at a time: all from one pass, or each from a copy of it."""
    output, shifts = _pass(run, position, layers, to_layer, 1)
    units = torch.eye(output.shape[-1], dtype=output.dtype, device=output.device)
    found: list[Tensor] = []
    for some in units.split(at_once):
        if copies:
            output, shifts = _pass(run, position, layers, to_layer, len(some))
            parts = torch.autograd.grad(output, shifts, some)
        else:
            parts = torch.autograd.grad(output, shifts, some[:, None], is_grads_batched=True, retain_graph=True)
            parts = [rearrange(part, "output 1 d_model -> output d_model") for part in parts]
        found.append(torch.stack([part.float().cpu() if part.dtype != torch.float64 else part.cpu() for part in parts]))
        done(len(some))
    return torch.cat(found, dim=1)


def _pass(
    run: FrozenRun, position: int, layers: Sequence[int], to_layer: int, n_rows: int
) -> tuple[Float[Tensor, "row d_model"], list[Float[Tensor, "row d_model"]]]:
    """The state where the row is read, in so many copies, and what can be added to the states in each layer."""
    branch = _branch(run, position, min(layers), n_rows)
    hidden, carried = branch.states, carried_by([branch])
    shifts: dict[int, Tensor] = {}
    for layer in range(branch.layer, to_layer):
        hidden = hidden.to(run.devices[layer])
        if layer in layers:
            # The derivative by a shift of nothing is that by the state.
            shifts[layer] = torch.zeros_like(hidden[:, 0], requires_grad=True)
            hidden = torch.cat([(hidden[:, 0] + shifts[layer])[:, None], hidden[:, 1:]], dim=1)
        hidden = run.follow(layer, hidden, branch.rows, position, carried)
    return hidden[:, int(run.at[1][0]) - position], [shifts[layer] for layer in layers]


def _branch(run: FrozenRun, position: int, layer: int, n_rows: int) -> Branch:
    rows = torch.zeros(n_rows, dtype=torch.long)
    return Branch(layer=layer, rows=rows, states=run.residuals[layer][:1, position:].expand(n_rows, -1, -1))
