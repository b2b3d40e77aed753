"""The resume engine: run a prompt once, then run again only what a change can reach.

A causal model computes the state at (layer, position) from earlier layers and positions alone. So a change there leaves
all of them as they are, and all that follows needs later blocks on later positions alone, and keys that never change.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.branch import Branch, carried_by, check_branches, chunks, within
from locate.engine.caches import PrefixCache, Recorder
from locate.engine.calls import BlockCall, Carried, Place
from locate.engine.hooking import Hook, hook_points, intervening, keep_in, listen, only_columns
from locate.engine.readout import only_logits_at, read_logits
from locate.engine.rows import Budget, behind, rows_of
from locate.errors import ModelError, SiteError
from locate.model.held import HeldWeights
from locate.model.running import running

Readouts = tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
# From logits, and the frozen row that each of them continues, to one or more numbers per row.
Measure = Callable[[Float[Tensor, "row vocab"], Int[Tensor, "row"]], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenRun:
    """A finished forward pass, from which any suffix can be run again with other states.

    Attributes:
        tokens: the token ids that were run, shape ``row position``.
        residuals: the residual stream entering each block, and last the final norm.
        kept: the states asked for by hook point.
        at: rows and positions of the readouts (by default the last position of each row).
        logits: the model's own logits there.
        hooks: the TransformerLens hooks that this pass had of its own.
        resumable: whether suffixes can be run alone; if not, ``resume`` runs whole passes.
        weights: what the model's parameters held; a resume computes with these, whatever the model has by then.
        budget: the most tokens (rows × positions) that one resumed pass holds at a time; those before the position
            where it is resumed count a third.
        calls: what each block was called with.
        token_places: where in that tokens bring something of their own, beside the stream.
        devices: where each of the residuals lies.
        entire: layers whose blocks keep more than keys and values, such as the state of a convolution: a resume runs
            them over the whole sequence.
    """

    model: TransformerBridge
    tokens: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"] | None
    residuals: Sequence[Float[Tensor, "row position d_model"]]
    kept: Mapping[str, Tensor]
    at: Readouts
    logits: Float[Tensor, "readout vocab"]
    hooks: tuple[Hook, ...]
    resumable: bool
    weights: HeldWeights
    budget: int
    calls: tuple[BlockCall, ...]
    token_places: frozenset[Place]
    devices: tuple[torch.device, ...]
    entire: frozenset[int] = frozenset()
    _keys: Mapping[int, Tensor]
    _values: Mapping[int, Tensor]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.residuals) - 1

    @property
    def reads(self) -> int:
        """How often each row is read: of whole answers, once a token."""
        return len(self.at[0]) // len(self.tokens)

    @property
    def carries(self) -> bool:
        """Whether blocks hand on to each other anything beside the stream."""
        return any(call.carries for call in self.calls)

    def resume(
        self,
        position: int,
        branches: Sequence[Branch],
        *,
        hooks: Sequence[Hook] = (),
        at: Readouts | None = None,
        measure: Measure | None = None,
        grad: bool = False,
        heard: bool = False,
    ) -> Tensor:
        """Run the given states through the rest of the model, on positions from ``position`` on.

        Rows that enter at different layers share one growing batch: each block runs once over all
        rows that have entered by then.

        Args:
            position: first position that changes; earlier ones keep their frozen keys and values.
            branches: the rows, in groups that enter at one layer.
            hooks: TransformerLens hooks, live during the run. Tensors there end at the prompt's last
                position and begin at ``position``; where the architecture cannot be resumed, at 0.
            at: rows (counted over all branches) and positions (counted in the whole sequence) of the logits; by
                default each row is read where the frozen row is that it continues, in the order given.
            measure: reduces logits (given the frozen row that each continues), so that a large vocabulary need not
                be kept for all rows; of rows that are read several times it may make one value each.
            grad: whether gradients flow back to the states and through the hooks.
            heard: whether somebody listens at hook points besides, so that nothing may be left out there.

        Returns:
            Logits ``readout vocab``, or what ``measure`` makes of them.

        Raises:
            SiteError: a branch or a readout does not fit the run.
            ModelError: the model's weights were changed in place since the run was frozen.
        """
        check_branches(branches, position, self.tokens.shape, self.n_layers)
        total = sum(len(branch) for branch in branches)
        if at is None:
            frozen = torch.cat([branch.rows for branch in branches]).cpu()
            at = (torch.arange(total).repeat_interleave(self.reads), self.at[1].view(-1, self.reads)[frozen].flatten())
        elif not within(at[0], 0, total) or not within(at[1], position, self.tokens.shape[1]):
            raise SiteError(
                f"A readout is out of range: rows are 0 to {total - 1}, "
                f"positions {position} to {self.tokens.shape[1] - 1}."
            )
        results: list[Tensor] = []
        order: list[Tensor] = []
        in_place = self.weights.entered(grad=grad)
        with running(self.model, grad=grad), in_place, self.model.hooks(fwd_hooks=list(hooks)):
            for parts in chunks(branches, self.rows_at_a_time(position)):
                indices = torch.cat([torch.arange(start, start + len(part)) for start, part in parts])
                local = torch.full((total,), -1)
                local[indices] = torch.arange(len(indices))
                mine = (local[at[0]] >= 0).nonzero().squeeze(1)
                if len(mine) == 0:
                    continue
                rows, late = local[at[0][mine]], at[1][mine] >= position
                places = (rows[late], at[1][mine][late] - position)
                own = [part for _, part in parts]
                if self.resumable:
                    logits = self._suffix_pass(position, own, places, hooked=heard or bool(hooks))
                else:
                    logits = self._whole_passes(position, own, places)
                frozen = torch.cat([part.rows for part in own])[rows]
                if not late.all():  # what is read before the change is as it was
                    known = self.logits[frozen.cpu() * self.reads + mine % self.reads]
                    logits = known.index_put((late.nonzero()[:, 0].to(known.device),), logits.to(known))
                results.append(logits if measure is None else measure(logits, frozen))
                order.append(mine[:: len(mine) // len(results[-1])])
        inverse = torch.cat(order).argsort()
        return torch.cat(results)[inverse.to(results[0].device)]

    def advance(self, position: int, branch: Branch, layers: Sequence[int]) -> dict[int, Tensor]:
        """Run a branch up to some layers only, and return the states with which it enters each of them.

        Branches that have their first steps in common can enter later from here, instead of each
        taking those steps: not where blocks hand on anything beside the stream (``carries``).

        Raises:
            SiteError: the branch does not fit the run.
            ModelError: the architecture cannot be resumed, or as ``resume`` does.
        """
        check_branches([branch], position, self.tokens.shape, self.n_layers)
        self._check_resumable()
        states: dict[int, Tensor] = {}
        carried = carried_by([branch])
        with running(self.model), self.weights.entered(), intervening(self.model, [branch], self._offsets(position)):
            hidden = branch.states
            for layer in range(branch.layer, max(layers) + 1):
                if layer in layers:
                    states[layer] = hidden
                if layer < max(layers):
                    hidden = self.follow(layer, hidden, branch.rows, position, carried)
        return states

    def record(self, position: int, branch: Branch, names: Sequence[str]) -> dict[str, Tensor]:
        """Run a branch as far as needed and return its states at some hook points.

        Args:
            position: as in ``resume``.
            branch: the rows.
            names: hook points from the branch's layer on; ``ln_final.hook_in`` for the last block's output.

        Raises:
            SiteError: the branch does not fit the run, or there is no such hook point.
            ModelError: the architecture cannot be resumed, or as ``resume`` does.
        """
        check_branches([branch], position, self.tokens.shape, self.n_layers)
        self._check_resumable()
        parts: list[dict[str, Tensor]] = []
        stops = [int(name.split(".")[1]) + 1 for name in names if name.startswith("blocks.")]
        final = [name for name in names if not name.startswith("blocks.")]
        stop = self.n_layers if final else max(stops)
        for ((_, part),) in chunks([branch], self.rows_at_a_time(position)):
            kept: dict[str, Tensor] = {}
            with running(self.model), self.weights.entered(), ExitStack() as stack:
                for name, point in hook_points(self.model, [name for name in names if name not in final]).items():
                    stack.callback(listen(point, keep_in(kept, name)).remove)
                # Entered last, so that what is recorded is what a block computes, and not what it is made to say.
                stack.enter_context(intervening(self.model, [part], self._offsets(position)))
                hidden, carried = part.states, carried_by([part])
                for layer in range(part.layer, stop):
                    hidden = self.follow(layer, hidden, part.rows, position, carried)
            own = {name: self.suffix_of(name, value, position) for name, value in kept.items()}
            parts.append({**own, **dict.fromkeys(final, hidden)})
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def rows_at_a_time(self, position: int) -> int:
        """How many rows that are resumed at a position fit one pass of the budget, at least one."""
        budget = Budget.of(self.model, self.budget)
        return budget.rows(max(behind(self.tokens.shape[1] - position, position), self.reads * budget.logits))

    def follow(
        self, layer: int, hidden: Tensor, rows: Tensor, position: int, carried: Carried,
        recorder: Recorder | None = None,
    ) -> Tensor:  # fmt: skip
        """What one block makes of states that follow frozen rows from a position on; a recorder keeps their keys."""
        rows, block, call = rows.to(hidden.device), self.model.blocks[layer], self.calls[layer]
        if layer in self.entire:
            whole = torch.cat([rows_of(self.residuals[layer], rows)[:, :position].to(hidden), hidden], dim=1)
            return call.replay(block, whole, rows, 0, None, carried.at(layer))[:, position:]
        cache = PrefixCache(self._prefix(rows, position), recorder)
        return call.replay(block, hidden, rows, position, cache, carried.at(layer))

    def suffix_of(self, name: str, value: Tensor, position: int) -> Tensor:
        """Of a value at a hook point, as a resume at a position has it, what is from there on."""
        if not (start := self._offsets(position)(name)):
            return value
        # The second form: attention patterns, whose heads come before their queries.
        return value[:, start:] if value.shape[1] == self.tokens.shape[1] else value[:, :, start:]

    def _check_resumable(self) -> None:
        if not self.resumable:
            raise ModelError("This architecture cannot be resumed, so no branch can be run part of the way.")

    def _suffix_pass(self, position: int, branches: list[Branch], at: Readouts, hooked: bool) -> Tensor:
        waiting = sorted(branches, key=lambda branch: branch.layer)
        hidden: Tensor | None = None
        rows = torch.empty(0, dtype=torch.long)
        carried = carried_by(waiting)
        with intervening(self.model, waiting, self._offsets(position)):
            for layer in range(waiting[0].layer, self.n_layers + 1):
                device = self.devices[layer]
                entering = [branch for branch in waiting if branch.layer == layer]
                states = [branch.states.to(device) for branch in entering]
                hidden = torch.cat([*([] if hidden is None else [hidden.to(device)]), *states])
                rows = torch.cat([rows, *[branch.rows for branch in entering]])
                if layer == self.n_layers:
                    break
                with self._read_columns(layer, waiting, at, hooked):
                    hidden = self.follow(layer, hidden, rows, position, carried)
            assert hidden is not None
            places = hidden[at[0].to(hidden.device), at[1].to(hidden.device)]
            return read_logits(self.model, places)

    def _offsets(self, position: int) -> Callable[[str], int]:
        """Where the resumed position stands in the value at a hook point."""
        return lambda name: position if not self.resumable or _layer_of(name) in self.entire else 0

    def _read_columns(self, layer: int, branches: list[Branch], at: Readouts, hooked: bool) -> Any:
        """In the last block, nothing but the columns that are read needs to pass the MLP."""
        block, length = self.model.blocks[layer], branches[0].states.shape[1]
        columns = at[1].unique().tolist()
        touched = hooked or any(
            name.startswith(f"blocks.{layer}.") for branch in branches for name in branch.interventions
        )
        last = layer == self.n_layers - 1 and layer not in self.entire
        if not last or len(columns) == length or touched or not hasattr(block, "mlp"):
            return nullcontext()
        return only_columns(block.mlp, columns, length)

    def _prefix(self, rows: Tensor, position: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        def at_layer(layer: int) -> tuple[Tensor, Tensor]:
            key, value = self._keys[layer], self._values[layer]
            if key.shape[0] == 1:
                shape = (len(rows), -1, -1, -1)
                return key[:, :, :position].expand(shape), value[:, :, :position].expand(shape)
            rows_here = rows.to(key.device)
            return key[:, :, :position][rows_here], value[:, :, :position][rows_here]

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
        carried, entered = carried_by([branch]), set[int]()

        def enter(layer: int) -> Callable[..., Any]:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                if layer == self.n_layers and len(entered) < self.n_layers:
                    return None  # a norm that is used elsewhere too
                if layer < self.n_layers:
                    # What the frozen run's own hooks made of its tokens comes with the stream, and beside it.
                    rows, call = branch.rows.to(hidden.device), self.calls[layer]
                    args, kwargs = call.token_arguments(args, kwargs, rows, self.token_places, carried.at(layer))
                entered.add(layer)
                if layer not in (0, branch.layer):
                    return args, kwargs
                joined = rows_of(self.residuals[layer], branch.rows).to(hidden)
                if layer == branch.layer:
                    joined = torch.cat([joined[:, :position], branch.states.to(hidden)], dim=1)
                return ((joined, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": joined})

            return hook

        mask = None if self.attention_mask is None else self.attention_mask[branch.rows]
        # Under bfloat16 the mask of padding would overflow to −∞, and padded rows have nothing to attend to.
        device = self.tokens.device.type
        exact = nullcontext() if mask is None else torch.autocast(device, enabled=False)
        with ExitStack() as stack:
            for layer, module in enumerate([*self.model.blocks, self.model.ln_final]):
                stack.callback(module.register_forward_pre_hook(enter(layer), with_kwargs=True).remove)
            stack.enter_context(exact)
            stack.enter_context(intervening(self.model, [branch], self._offsets(position)))
            stack.enter_context(only_logits_at(self.model, *at))
            return self.model(self.tokens[branch.rows], attention_mask=mask)[0]


def _layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else None
