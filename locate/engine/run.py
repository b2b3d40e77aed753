"""The resume engine: run a prompt once, then run again only what a change can reach.

A causal model computes the state at (layer, position) from earlier layers and positions alone. So a
change there leaves all of them as they are, and everything that follows needs only later blocks on
later positions, attending to keys and values that never change.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from locate.engine.branch import Branch, chunks
from locate.engine.calls import BlockCall, PrefixCache
from locate.engine.readout import only_logits_at, read_logits
from locate.errors import ModelError, SiteError, suggest

Hook = tuple[str, Callable[..., Any]]
Readouts = tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
Measure = Callable[[Float[Tensor, "row vocab"]], Tensor]

DEFAULT_BUDGET = 16_384

# How far a resumed pass may differ from a full one, in standard deviations of the logits, before the
# architecture counts as one that cannot be resumed. A wrong mask, base or cache is off by about 1.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenRun:
    """A finished forward pass, from which any suffix can be run again with other states.

    Attributes:
        tokens: the token ids that were run, shape ``row position``.
        residuals: the residual stream entering each block, and last the final norm.
        kept: the states asked for by hook point.
        logits: the model's own logits at the readouts (by default the last position of each row).
        resumable: whether suffixes can be run alone; if not, ``resume`` runs whole passes.
        budget: the most tokens (rows × positions) that one resumed pass holds at a time.
    """

    model: TransformerBridge
    tokens: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"] | None
    residuals: tuple[Float[Tensor, "row position d_model"], ...]
    kept: dict[str, Tensor]
    logits: Float[Tensor, "readout vocab"]
    resumable: bool
    budget: int
    _calls: tuple[BlockCall, ...]
    _keys: tuple[Tensor, ...]
    _values: tuple[Tensor, ...]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.residuals) - 1

    def resume(
        self,
        position: int,
        branches: Sequence[Branch],
        *,
        hooks: Sequence[Hook] = (),
        at: Readouts | None = None,
        measure: Measure | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Run the given states through the rest of the model, on positions from ``position`` on.

        Rows that enter at different layers share one growing batch: each block runs once over all
        rows that have entered by then.

        Args:
            position: first position that changes; earlier ones keep their frozen keys and values.
            branches: the rows, in groups that enter at one layer.
            hooks: TransformerLens hooks, live during the run. Tensors there end at the prompt's last
                position and begin at ``position``; where the architecture cannot be resumed, at 0.
            at: rows (counted over all branches) and positions (counted in the whole sequence) of
                the logits; by default the last position of each row, in the order given.
            measure: reduces logits, so that a large vocabulary need not be kept for all rows.
            grad: whether gradients flow back to the states and through the hooks.

        Returns:
            Logits ``readout vocab``, or what ``measure`` makes of them.
        """
        self._check(position, branches)
        suffix = self.tokens.shape[1] - position
        total = sum(len(branch) for branch in branches)
        if at is None:
            at = (torch.arange(total), torch.full((total,), self.tokens.shape[1] - 1))
        elif not _within(at[0], 0, total) or not _within(at[1], position, self.tokens.shape[1]):
            raise SiteError(
                f"A readout is out of range: rows are 0 to {total - 1}, "
                f"positions {position} to {self.tokens.shape[1] - 1}."
            )
        results: list[Tensor] = []
        order: list[Tensor] = []
        with torch.set_grad_enabled(grad), self.model.hooks(fwd_hooks=list(hooks)):
            for parts in chunks(branches, max(1, self.budget // suffix)):
                indices = torch.cat([torch.arange(start, start + len(part)) for start, part in parts])
                local = torch.full((total,), -1)
                local[indices] = torch.arange(len(indices))
                mine = (local[at[0]] >= 0).nonzero().squeeze(1)
                if len(mine) == 0:
                    continue
                places = (local[at[0][mine]], at[1][mine] - position)
                run = self._suffix_pass if self.resumable else self._whole_passes
                logits = run(position, [part for _, part in parts], places)
                results.append(logits if measure is None else measure(logits))
                order.append(mine)
        inverse = torch.cat(order).argsort()
        return torch.cat(results)[inverse.to(results[0].device)]

    def _suffix_pass(self, position: int, branches: list[Branch], at: Readouts) -> Tensor:
        waiting = sorted(branches, key=lambda branch: branch.layer)
        hidden: Tensor | None = None
        rows = torch.empty(0, dtype=torch.long)
        with pinned(self.model, waiting, column=0):
            for layer in range(waiting[0].layer, self.n_layers + 1):
                device = self.residuals[layer].device
                entering = [branch for branch in waiting if branch.layer == layer]
                states = [branch.states.to(device) for branch in entering]
                hidden = torch.cat([*([] if hidden is None else [hidden.to(device)]), *states])
                rows = torch.cat([rows, *[branch.rows for branch in entering]])
                if layer == self.n_layers:
                    break
                cache = PrefixCache(self._prefix(rows.to(device), position))
                hidden = self._calls[layer].replay(
                    self.model.blocks[layer], hidden, rows.to(device), position, cache
                )
            assert hidden is not None
            places = hidden[at[0].to(hidden.device), at[1].to(hidden.device)]
            return read_logits(self.model, places)

    def _prefix(self, rows: Tensor, position: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        def at_layer(layer: int) -> tuple[Tensor, Tensor]:
            key, value = self._keys[layer], self._values[layer]
            if key.shape[0] == 1:
                shape = (len(rows), -1, -1, -1)
                return key[:, :, :position].expand(shape), value[:, :, :position].expand(shape)
            return key[:, :, :position][rows], value[:, :, :position][rows]

        return at_layer

    def _whole_passes(self, position: int, branches: list[Branch], at: Readouts) -> Tensor:
        """The same by full forward passes, for architectures whose suffix cannot be run alone."""
        waiting = sorted(branches, key=lambda branch: branch.layer)
        logits: list[Tensor] = []
        order: list[Tensor] = []
        start = 0
        for branch in waiting:
            mine = ((at[0] >= start) & (at[0] < start + len(branch))).nonzero().squeeze(1)
            if len(mine):
                order.append(mine)
                places = (at[0][mine] - start, at[1][mine] + position)
                logits.append(self._whole_pass(position, branch, places))
            start += len(branch)
        return torch.cat(logits)[torch.cat(order).argsort()]

    def _whole_pass(self, position: int, branch: Branch, at: Readouts) -> Tensor:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            joined = torch.cat([hidden[:, :position], branch.states.to(hidden)], dim=1)
            return ((joined, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": joined})

        module = self.model.ln_final if branch.layer == self.n_layers else self.model.blocks[branch.layer]
        mask = None if self.attention_mask is None else self.attention_mask[branch.rows]
        handle = module.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with pinned(self.model, [branch], column=position), only_logits_at(self.model, *at):
                return self.model(self.tokens[branch.rows], attention_mask=mask)[0]
        finally:
            handle.remove()

    def _check(self, position: int, branches: Sequence[Branch]) -> None:
        length = self.tokens.shape[1]
        if not 0 <= position < length:
            raise SiteError(f"Position {position} is out of range: the prompt has {length} tokens.")
        if not branches:
            raise SiteError("Nothing to resume: give at least one branch of states.")
        for branch in branches:
            if not 0 <= branch.layer <= self.n_layers:
                raise SiteError(f"Layer {branch.layer} is out of range: the model has {self.n_layers} layers.")
            if not _within(branch.rows, 0, len(self.tokens)):
                found = f"{branch.rows.min()} to {branch.rows.max()}" if len(branch) else "none"
                raise SiteError(
                    f"A branch continues frozen rows {found}, but there are rows 0 to {len(self.tokens) - 1}."
                )
            if branch.states.shape[1] != length - position:
                raise SiteError(
                    f"A branch at position {position} of {length} needs states of {length - position} "
                    f"positions, found {branch.states.shape[1]}."
                )


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

    Every frozen run checks itself: one position is resumed through all layers and compared with
    the pass that was just made. Where they differ (or the block cannot be called alone), resuming
    falls back to whole passes, with a warning.

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
        ModelError: the model has no stack of blocks to run.

    >>> run = freeze(model, encode_fact(model, fact).tokens[None])
    >>> run.logits.shape
    torch.Size([1, 49152])
    """
    device = next(model.original_model.parameters()).device
    tokens = tokens.to(device)
    if attention_mask is not None:
        attention_mask = attention_mask.to(device)
    points = hook_points(model, keep)
    n_rows, length = tokens.shape
    if at is None:
        at = (torch.arange(n_rows), torch.full((n_rows,), length - 1))
    problem = ""
    try:
        states, calls, kept, logits, cache = _record(
            model, tokens, attention_mask, hooks, points, at, DynamicCache()
        )
        keys = tuple(layer.keys for layer in cache.layers)
        values = tuple(layer.values for layer in cache.layers)
        if len(keys) != len(calls) or any(key is None or key.shape[-2] != length for key in keys):
            problem = "its blocks do not all keep keys and values for every position"
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        problem = f"it does not take a plain key-value cache ({error})"
        states, calls, kept, logits, _ = _record(model, tokens, attention_mask, hooks, points, at, None)
        keys = values = ()
    run = FrozenRun(
        model=model, tokens=tokens, attention_mask=attention_mask, residuals=states, kept=kept, logits=logits,
        resumable=not problem, budget=budget, _calls=calls, _keys=keys, _values=values,
    )  # fmt: skip
    if not problem and not any(name.startswith("blocks.") for name, _ in hooks):
        problem = _disagreement(run, at)
    if problem:
        warnings.warn(
            f"{type(model.original_model).__name__} cannot be resumed from the middle: {problem}. "
            "Results stay exact, but every site costs a whole forward pass.",
            stacklevel=2,
        )
        run = FrozenRun(**{**vars(run), "resumable": False})
    return run


def hook_points(model: TransformerBridge, names: Sequence[str]) -> dict[str, nn.Module]:
    """The hook point modules of these names.

    Raises:
        SiteError: a name that the model does not have; the nearest names are suggested.
    """
    if not names:
        return {}
    known = model.hook_dict
    for name in names:
        if name not in known:
            raise SiteError(f"The model has no hook point {name!r}. {suggest(name, known)}")
    return {name: known[name] for name in names}


@contextmanager
def pinned(model: TransformerBridge, branches: Sequence[Branch], column: int) -> Iterator[None]:
    """Hold the branches' pinned values at one column of the running batch (rows in branch order)."""
    wanted: dict[str, list[tuple[int, int, Tensor]]] = {}
    start = 0
    for branch in branches:
        for name, values in branch.pins.items():
            wanted.setdefault(name, []).append((start, start + len(branch), values))
        start += len(branch)

    def overwrite(places: list[tuple[int, int, Tensor]]) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            for first, last, values in places:
                changed[first:last, column] = values.to(changed)
            return changed

        return hook

    with ExitStack() as stack:
        for name, point in hook_points(model, list(wanted)).items():
            handle = point.register_forward_hook(overwrite(wanted[name]))
            stack.callback(handle.remove)
        yield


def _within(indices: Tensor, start: int, stop: int) -> bool:
    return len(indices) > 0 and start <= int(indices.min()) and int(indices.max()) < stop


def _record(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor | None,
    hooks: Sequence[Hook],
    points: dict[str, nn.Module],
    at: Readouts,
    cache: Any,
) -> tuple[tuple[Tensor, ...], tuple[BlockCall, ...], dict[str, Tensor], Tensor, Any]:
    """One full pass, with the blocks' inputs and arguments, the states to keep and the logits."""
    if not hasattr(model, "blocks") or not hasattr(model, "ln_final") or not hasattr(model, "unembed"):
        raise ModelError("The model needs blocks, a final norm and an unembedding; this one has other parts.")
    n_rows, length = tokens.shape
    states: list[Tensor] = []
    calls: list[BlockCall] = []
    kept: dict[str, Tensor] = {}

    def call(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        made = BlockCall(args=args, kwargs=kwargs, cache=cache, batch=n_rows, length=length)
        calls.append(made.without_states())

    def state(_module: nn.Module, _args: Any, output: Tensor) -> None:
        states.append(output)

    def final(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0])

    def keeper(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            kept[name] = output

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(model.hooks(fwd_hooks=list(hooks)))
        for block in model.blocks:
            stack.callback(block.register_forward_pre_hook(call, with_kwargs=True).remove)
            # The hook point's output, and not the block's input: the caller's own hooks count.
            stack.callback(block.hook_in.register_forward_hook(state).remove)
        stack.callback(model.ln_final.register_forward_pre_hook(final).remove)
        for name, point in points.items():
            stack.callback(point.register_forward_hook(keeper(name)).remove)
        stack.enter_context(only_logits_at(model, *at))
        extra = {} if cache is None else {"past_key_values": cache}
        logits = model(tokens, attention_mask=attention_mask, **extra)
    if len(states) != model.cfg.n_layers + 1:
        raise ModelError(f"Expected {model.cfg.n_layers} blocks to run once each, saw {len(states) - 1}.")
    return tuple(states), tuple(calls), kept, logits[0], cache


def _disagreement(run: FrozenRun, at: Readouts) -> str:
    """Why a resumed pass does not give the logits of the pass just made; empty where it does."""
    row, position = at[0][-1], int(at[1][-1])
    branch = Branch(
        layer=0, rows=row.reshape(1), states=run.residuals[0][row.to(run.tokens.device)][None, position:]
    )
    try:
        resumed = run.resume(position, [branch], at=(torch.tensor([0]), torch.tensor([position])))[0]
    except Exception as error:  # whatever an unknown architecture raises, whole passes still work
        return f"a block cannot be called on its own ({type(error).__name__}: {error})"
    expected = run.logits[-1]
    difference = float((resumed - expected).abs().max() / expected.float().std())
    tolerance = _TOLERANCE.get(expected.dtype, 1e-3)
    if difference <= tolerance:  # also false for NaN
        return ""
    return f"a resumed pass differs from a whole one by {difference:.2g} standard deviations of the logits"
