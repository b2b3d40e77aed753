"""Running a prompt once and keeping what a resume needs, after checking that a resume is right."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.branch import Branch
from locate.engine.caches import Recorder, empty_cache, recorded_layers, with_cache
from locate.engine.calls import BlockCall, Carried, Place
from locate.engine.hooking import Hook, hook_points, hooked, keep_in, listen
from locate.engine.readout import only_logits_at, unembedded
from locate.engine.run import FrozenRun, Readouts
from locate.errors import LocateError, ModelError
from locate.model.context import check_room
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.held import HeldWeights
from locate.model.running import running
from locate.names import DEFAULT_BUDGET

# How far a resumed pass may differ from a full one, in standard deviations of the logits, before the
# architecture counts as one that cannot be resumed. A wrong mask, base or cache is off by about 1.
LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}


def freeze(
    model: TransformerBridge,
    tokens: Int[Tensor, "row position"],
    *,
    attention_mask: Int[Tensor, "row position"] | None = None,
    hooks: Sequence[Hook] = (),
    keep: Sequence[str] = (),
    at: Readouts | None = None,
    budget: int = DEFAULT_BUDGET,
) -> FrozenRun:
    """Run a batch once and keep what is needed to resume it anywhere.

    The first run of a model and form (precision, padding, one row or several) checks itself: the last positions are
    resumed through all layers and compared with the pass that was just made. Where they differ (or the block cannot be
    called alone), resuming falls back to whole passes, with a warning.

    Args:
        model: a raw-mode bridge.
        tokens: token ids.
        attention_mask: 1 for real tokens, 0 for padding (on the left, where rows need aligning).
        hooks: TransformerLens hooks for this pass alone.
        keep: hook points whose states to keep.
        at: rows and positions of ``FrozenRun.logits``; by default the last position of each row.
        budget: the most tokens that a resumed pass may hold at a time.

    Raises:
        SiteError: a hook point that the model does not have.
        ModelError: the model has no stack of blocks to run, or a kept state has no position axis.
        FactError: the prompt is longer than the model's context.
        LocateError: a budget of less than one token.

    >>> run = freeze(model, locate.encode_fact(model, fact).tokens[None])
    >>> run.logits.shape
    torch.Size([1, 49152])
    """
    run, problem = _frozen(model, tokens, attention_mask, tuple(hooks), keep, at, budget)
    if problem:
        warnings.warn(
            f"{type(model.original_model).__name__} cannot be resumed from the middle: {problem}. "
            "Results stay exact, but every site costs a whole forward pass.",
            stacklevel=2,
        )
    return run


def refreeze(run: FrozenRun) -> FrozenRun:
    """The same prompts, run with the weights that the model has now.

    What lies below the first block that has other weights than the run's is the same, and is shared with it. All is
    as ``freeze`` would make it.

    Raises:
        ModelError: weights were changed in place since the run was frozen, so what it shares with them is unknown.

    >>> base = freeze(model, locate.encode_fact(model, fact).tokens[None])
    >>> refreeze(base).residuals[5] is base.residuals[5]  # no weights have changed
    True
    """
    model, layer = run.model, _first_layer(run.model, run.weights.exchanged())
    if layer is None or not run.resumable or any(name.startswith("blocks.") for name, _ in run.hooks):
        fresh, _ = _frozen(model, run.tokens, run.attention_mask, run.hooks, list(run.kept), run.at, run.budget)
        # Without a warning, which the run that it comes from has given.
        return replace(fresh, resumable=fresh.resumable and run.resumable)
    kept, calls, recorder, carried = dict(run.kept), list(run.calls), Recorder(), Carried()
    rows, states = torch.arange(len(run.tokens)), list(run.residuals[: layer + 1])
    with ExitStack() as stack:
        stack.enter_context(running(model))
        stack.enter_context(hooked(model, run.hooks))
        for name, point in hook_points(model, list(run.kept)).items():
            stack.callback(listen(point, keep_in(kept, name)).remove)
        for index, block in enumerate(model.blocks[layer:], start=layer):
            entering = states[-1].to(run.residuals[len(states) - 1].device)
            cache = None if index in run.entire else recorder
            calls[index] = calls[index].with_carried(carried)
            states.append(calls[index].replay(block, entering, rows.to(entering.device), 0, cache, carried.at(index)))
        normed = model.ln_final(states[-1])
        logits = unembedded(model, normed[tuple(index.to(normed.device) for index in run.at)])
    return replace(
        run, residuals=tuple(states), kept=kept, logits=logits, weights=HeldWeights.of(model), calls=tuple(calls),
        _keys={**run._keys, **recorder.keys}, _values={**run._values, **recorder.values},
    )  # fmt: skip


def _frozen(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor | None,
    hooks: tuple[Hook, ...],
    keep: Sequence[str],
    at: Readouts | None,
    budget: int,
) -> tuple[FrozenRun, str]:
    """The run, and why it cannot be resumed; empty where it can."""
    if budget < 1:
        raise LocateError(f"budget must be at least one token, found {budget}.")
    device = input_device(model)
    tokens = tokens.to(device)
    if attention_mask is not None:
        attention_mask = attention_mask.to(device)
    points = hook_points(model, keep)
    n_rows, length = tokens.shape
    check_room(model, length)
    if at is None:
        at = (torch.arange(n_rows), torch.full((n_rows,), length - 1))
    states, calls, kept, logits, recorder = _record(model, tokens, attention_mask, hooks, points, at)
    run = FrozenRun(
        model=model, tokens=tokens, attention_mask=attention_mask, residuals=states, kept=kept, at=at, logits=logits,
        hooks=hooks, resumable=True, weights=HeldWeights.of(model), budget=budget, calls=calls,
        token_places=token_places(model), devices=tuple(state.device for state in states),
        _keys=recorder.keys, _values=recorder.values,
    )  # fmt: skip
    entire, problem = _known_ways(run)
    return replace(run, resumable=not problem, entire=entire), problem


def _first_layer(model: TransformerBridge, parameters: Sequence[Tensor]) -> int | None:
    """The first block that has any of these parameters; none where one of them stands outside of the blocks."""
    wanted = {id(parameter) for parameter in parameters}
    own = [wanted & {id(parameter) for parameter in block.parameters()} for block in model.blocks]
    if wanted - set().union(*own):
        return None
    return next((layer for layer, found in enumerate(own) if found), len(own))


_Recorded = tuple[tuple[Tensor, ...], tuple[BlockCall, ...], dict[str, Tensor], Tensor, Recorder]


def _record(
    model: TransformerBridge, tokens: Tensor, attention_mask: Tensor | None, hooks: Sequence[Hook],
    points: dict[str, nn.Module], at: Readouts,
) -> _Recorded:  # fmt: skip
    """One full pass, with the blocks' inputs and arguments, the states to keep, the logits, and keys and values of
    the layers that have them."""
    record = partial(_record_with, model, tokens, attention_mask, hooks, points, at)
    try:
        return record(len(model.blocks) * (True,))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError, LookupError):
        # Not every block does with a cache of keys and values, or the model takes none.
        return record(recorded_layers(model))


def _record_with(
    model: TransformerBridge, tokens: Tensor, attention_mask: Tensor | None, hooks: Sequence[Hook],
    points: dict[str, nn.Module], at: Readouts, with_keys: Sequence[bool],
) -> _Recorded:  # fmt: skip
    """The same, with a cache of keys and values in some layers and none in the others."""
    if not hasattr(model, "blocks") or not hasattr(model, "ln_final") or not hasattr(model, "unembed"):
        raise ModelError("The model needs blocks, a final norm and an unembedding; this one has other parts.")
    n_rows, length = tokens.shape
    states: list[Tensor] = []
    calls: list[BlockCall] = []
    kept: dict[str, Tensor] = {}
    cache, recorder = empty_cache(model), Recorder()

    def call(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = BlockCall(args=args, kwargs=kwargs, cache=cache, batch=n_rows, length=length)
        records = len(calls) < len(with_keys) and with_keys[len(calls)]
        calls.append(made.kept())
        return with_cache(args, kwargs, cache, recorder if records else None)

    def state(_module: nn.Module, _args: Any, output: Tensor) -> None:
        states.append(output)

    def final(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(calls) == len(model.blocks):  # it may serve elsewhere too, such as on the embeddings
            states.append(args[0])

    with ExitStack() as stack:
        stack.enter_context(running(model))
        stack.enter_context(hooked(model, hooks))
        for block in model.blocks:
            stack.callback(block.register_forward_pre_hook(call, with_kwargs=True).remove)
            # The hook point's output, and not the block's input: the caller's own hooks count.
            stack.callback(block.hook_in.register_forward_hook(state).remove)
        stack.callback(model.ln_final.register_forward_pre_hook(final).remove)
        for name, point in points.items():
            stack.callback(listen(point, keep_in(kept, name)).remove)
        stack.enter_context(only_logits_at(model, *at))
        extra = {} if cache is None else {"past_key_values": cache}
        logits = model(tokens, attention_mask=attention_mask, **extra)
    if len(states) != model.cfg.n_layers + 1:
        raise ModelError(f"Expected {model.cfg.n_layers} blocks to run once each, saw {len(states) - 1}.")
    for name in points:
        shape = tuple(kept[name].shape) if name in kept else None
        by_position = shape is not None and (shape[:2] == (n_rows, length) or shape[::2] == (n_rows, length))
        if not by_position:  # the second form: attention patterns, whose heads come before their queries
            silent = " TransformerLens shows some states only after a setter, such as set_use_hook_mlp_in(True)."
            raise ModelError(
                f"The state at {name!r} cannot be patched by position in this architecture: expected a tensor of shape "
                f"({n_rows}, {length}, …), found {'no tensor' if shape is None else shape}. Choose another site."
                f"{silent if shape is None else ''}"
            )
    return tuple(states), tuple(calls), kept, logits[0], recorder


def token_places(model: TransformerBridge) -> frozenset[Place]:
    """Where in the arguments of blocks tokens bring something of their own, beside the residual stream.

    In most models nowhere: a block knows the token by the stream alone. Found by two texts of other tokens.

    >>> token_places(model)
    frozenset()
    """
    return once(model, "what tokens bring beside the stream", lambda: _token_places(model))


def _token_places(model: TransformerBridge) -> frozenset[Place]:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]], device=input_device(model)) % model.cfg.d_vocab
    at = (torch.tensor([0]), torch.tensor([2]))
    _, calls, _, _, _ = _record(model, tokens, None, (), {}, at)
    return frozenset(place for call in calls for place in call.differing(0, 1))


def _known_ways(run: FrozenRun) -> tuple[frozenset[int], str]:
    """What ``_ways`` says of runs of this model and form, asked again only where one could not be resumed."""
    found: dict[tuple[Any, ...], tuple[frozenset[int], str]] = once(run.model, "ways to resume", dict)
    form = (run.logits.dtype, run.attention_mask is not None, len(run.tokens) > 1)
    # Hooks on blocks are in the whole pass and not in a resumed one.
    comparable = not any(name.startswith("blocks.") for name, _ in run.hooks)
    if comparable and (form not in found or found[form][1]):
        found[form] = _ways(run)
    if form in found:
        return found[form]
    return next(iter(found.values()), (frozenset(range(run.n_layers)).difference(run._keys), ""))


def _ways(run: FrozenRun) -> tuple[frozenset[int], str]:
    """Which blocks must be run over the whole sequence in a resume, and why a resume is not possible, if it is not."""
    if not (problem := _disagreement(run)):
        return frozenset(), ""
    try:
        entire = frozenset(layer for layer in range(run.n_layers) if not _goes_on(run, layer))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever an unknown architecture raises, whole passes still work
        entire = frozenset()
    if entire and not _disagreement(replace(run, entire=entire)):
        return entire, ""
    if bool(run.logits.isfinite().all()) and (different := _disagreement(replace(run, resumable=False))):
        raise ModelError(
            f"{type(run.model.original_model).__name__} cannot be run again from states of its own: {different}. "
            "Use another model."
        )
    return frozenset(), problem


def _goes_on(run: FrozenRun, layer: int) -> bool:
    """Whether a block gives the run's own states again when it is called on the last positions alone."""
    start, branch = _last_positions(run, layer)
    try:
        found = run.advance(start, branch, [layer, layer + 1])[layer + 1]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it needs what it is not given
        return False
    wanted = run.residuals[layer + 1][branch.rows.to(found.device), start:]
    return float((found - wanted).abs().max()) <= LOGIT_TOLERANCE.get(found.dtype, 1e-3) * float(wanted.float().std())


def _last_positions(run: FrozenRun, layer: int) -> tuple[int, Branch]:
    """A branch of the run's own states at the last readout, in two copies: some architectures only go wrong when a
    resume has several rows."""
    start = max(0, int(run.at[1][-1]) - 1)
    rows = run.at[0][-1].reshape(1).repeat(2)
    return start, Branch(layer=layer, rows=rows, states=run.residuals[layer][rows.to(run.tokens.device), start:])


def _disagreement(run: FrozenRun) -> str:
    """Why a resumed pass does not give the logits of the pass just made; empty where it does."""
    start, branch = _last_positions(run, 0)
    try:
        resumed = run.resume(start, [branch], at=(torch.arange(2), run.at[1][-1].reshape(1).repeat(2)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an unknown architecture raises
        return f"a block cannot be called on its own ({type(error).__name__}: {error})"
    expected = run.logits[-1].to(resumed.device)
    difference = float((resumed - expected).abs().max() / expected.float().std())
    tolerance = LOGIT_TOLERANCE.get(expected.dtype, 1e-3)
    if difference <= tolerance:  # also false for NaN
        return ""
    return f"a resumed pass differs from a whole one by {difference:.2g} standard deviations of the logits"
