"""What a transformer block is called with, and how to call it again on part of the sequence.

This is the one place that knows how architectures differ in their blocks' arguments. It knows them by
shape, not by name: attention masks, position ids, rotary bases and alibi biases each have a shape
of their own, the cache is recognised as the object that was handed in, and what blocks hand on to each other beside
the stream as a mapping that they write into.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locate.engine.caches import is_cache
from locate.engine.rows import rows_of

Place = int | str


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """The arguments that one block received in a full run over ``batch`` rows of ``length`` positions.

    Rows of another run that began as these do are called as they are: ``owners`` says for each as which.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cache: object
    batch: int
    length: int
    owners: Int[Tensor, "row"] | None = None

    def of_rows(self, rows: Int[Tensor, "row"]) -> "BlockCall":
        """The same for other rows, each of which is called as one of these."""
        return replace(self, owners=self._called(rows))

    def kept(self) -> "BlockCall":
        """The same call to be kept: without the states, and with what it was handed beside them as it was then."""
        args = tuple(_as_it_is(value) for value in self.args)
        kwargs = {name: _as_it_is(value) for name, value in self.kwargs.items()}
        if args:
            return replace(self, args=(None, *args[1:]), kwargs=kwargs)
        return replace(self, kwargs={**kwargs, "hidden_states": None})

    def with_carried(self, carried: "Carried") -> "BlockCall":
        """The same call as another pass makes it that has come this far."""
        args = tuple(carried.as_held(place, value) for place, value in enumerate(self.args))
        return replace(self, args=args, kwargs={name: carried.as_held(name, one) for name, one in self.kwargs.items()})

    @property
    def carries(self) -> bool:
        """Whether earlier blocks have handed it anything beside the stream."""
        return any(isinstance(value, MutableMapping) and len(value) > 0 for _, value in self._beside())

    def differing(self, one: int, other: int) -> list[Place]:
        """Where in the arguments two rows of the run have something of their own at any position."""
        return [
            place for place, value in self._beside()
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 3
            and value.shape[:2] == (self.batch, self.length) and not torch.equal(value[one], value[other])
        ]  # fmt: skip

    def replay(
        self,
        block: Callable[..., Any],
        hidden: Float[Tensor, "row suffix d_model"],
        rows: Int[Tensor, "row"],
        start: int,
        cache: object,
        carried: "Carried",
    ) -> Float[Tensor, "row suffix d_model"]:
        """Call the block on positions ``start:`` of the frozen rows ``rows``, with other states and cache."""
        args, kwargs = self.arguments(rows, start, cache, carried)
        # States go in by position or by name as they came, and always with a second argument:
        # a bridge block called with states alone would wrap its output in a tuple.
        output = block(hidden, *args, **kwargs) if self.args else block(hidden_states=hidden, **kwargs)
        carried.passed(len(rows))
        return output[0] if isinstance(output, tuple) else output

    def token_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Int[Tensor, "row"], places: Set[Place],
        carried: "Carried",
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
        """A whole pass's own arguments, with those that tokens bring as the frozen run had them."""

        def own(value: Any, place: Place) -> Any:
            if isinstance(value, MutableMapping):
                carried.replace_in(place, value)
            if place not in places:
                return value
            own_rows = self._called(rows)
            return carried.token_inputs(place, self._slice(self.argument(place), own_rows, 0), len(rows), 0)

        given = tuple(own(value, place) for place, value in enumerate(args))
        return given, {name: own(value, name) for name, value in kwargs.items()}

    def arguments(
        self, rows: Int[Tensor, "row"], start: int, cache: object, carried: "Carried"
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments but the states, for positions ``start:`` of the frozen rows ``rows``."""
        rows = self._called(rows)

        def cut(value: Any, place: Place) -> Any:
            if is_cache(value, self.cache):
                return cache
            if isinstance(value, MutableMapping):
                return carried.entering(place, value, self, rows)
            if isinstance(value, Tensor):
                return carried.token_inputs(place, self._slice(value, rows, start), len(rows), start)
            if isinstance(value, tuple | list):
                return type(value)(cut(item, place) for item in value)
            return value

        cut_out = {place: cut(value, place) for place, value in self._beside()}
        named = {place: value for place, value in cut_out.items() if isinstance(place, str)}
        return tuple(value for place, value in cut_out.items() if isinstance(place, int)), named

    def argument(self, place: Place) -> Any:
        """One argument as it was given."""
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    def _called(self, rows: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """The rows that were called for these."""
        return rows if self.owners is None else self.owners.to(rows.device)[rows]

    def _beside(self) -> Iterator[tuple[Place, Any]]:
        """Every argument but the states, with its place among them."""
        yield from enumerate(self.args[1:], start=1)
        yield from ((name, value) for name, value in self.kwargs.items() if name != "hidden_states")

    def _slice(self, value: Tensor, rows: Int[Tensor, "row"], start: int) -> Tensor:
        if value.ndim >= 1 and value.shape[0] > self.batch and value.shape[0] % self.batch == 0 and value.ndim == 3:
            # Alibi: batch and heads are flattened together, and the bias is per key.
            heads = value.shape[0] // self.batch
            return value.unflatten(0, (self.batch, heads))[rows.to(value.device)].flatten(0, 1)
        if value.ndim >= 2 and self.batch > 1 and value.shape[0] == self.batch:
            value = value[rows.to(value.device)]
        match value.ndim:
            case 1 if value.shape[0] == self.length:  # cache positions
                return value[start:]
            case 2 if value.shape[1] == self.length:  # position ids
                return value[:, start:]
            case 3 if value.shape[1] == self.length:  # rotary bases, what a token brings to each block
                return value[:, start:]
            case 4 if value.shape[-2] == self.length:  # attention mask: queries, then keys
                return value[..., start:, :]
        return value


def _as_it_is(value: Any) -> Any:
    return copy(value) if isinstance(value, MutableMapping) else value


@dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """What another run's tokens bring to blocks beside the stream, at some positions.

    Attributes:
        calls: the other run's, block by block.
        places: where its tokens' own values stand among the arguments of a block.
        rows: for each row, the other run's row.
        positions: of the whole sequence.
    """

    calls: tuple[BlockCall, ...]
    places: Set[Place]
    rows: Int[Tensor, "row"]
    positions: tuple[int, ...]

    def part(self, start: int, stop: int) -> "Beside":
        """The same for some of the rows."""
        return replace(self, rows=self.rows[start:stop])


class Carried:
    """What reaches the blocks of one pass beside the stream: what they hand on to each other, and other runs' inputs.

    The rows of a pass may enter one after the other. A row finds what its frozen row was handed at the block where it
    enters, and from there on what its own blocks hand on.

    Args:
        beside: first and last row, layer of entry, and what these rows take from another run.
    """

    def __init__(self, beside: Sequence[tuple[int, int, int, Beside]] = ()) -> None:
        self._beside = beside
        self._held: dict[Place, MutableMapping[Any, Any]] = {}
        self._n_rows = 0
        self._layer = 0

    def at(self, layer: int) -> "Carried":
        """The same before a block is called."""
        self._layer = layer
        return self

    def passed(self, n_rows: int) -> None:
        """A block has run with that many rows."""
        self._n_rows = n_rows

    def entering(
        self, place: Place, frozen: MutableMapping[Any, Any], call: BlockCall, rows: Int[Tensor, "row"]
    ) -> MutableMapping[Any, Any]:
        """The mapping that a block is handed, for all rows of the pass."""
        new = rows[self._n_rows :]
        held = self._held.get(place)
        if held is None:
            held = copy(frozen)
            held.clear()
            self._held[place] = held
        if len(new):
            for key, value in frozen.items():
                added = _rows_of(value, new, call.batch)
                held[key] = _joined(held[key], added) if self._n_rows else added
        self.replace_in(place, held)
        return held

    def as_held(self, place: Place, value: Any) -> Any:
        """What the pass has at a place by now, where it hands anything on there."""
        return copy(self._held[place]) if place in self._held else value

    def replace_in(self, place: Place, held: MutableMapping[Any, Any]) -> None:
        """Put what rows that enter here take from another run into a mapping that holds all rows."""
        for first, last, layer, one in self._beside:
            if layer == self._layer:
                call = one.calls[layer]
                for key, theirs in call.argument(place).items():
                    held[key] = _with_positions(held[key], slice(first, last), theirs, one, call.batch)

    def token_inputs(self, place: Place, value: Tensor, n_rows: int, start: int) -> Tensor:
        """An argument of a block, with what some rows take from another run in it."""
        for first, last, layer, one in self._beside:
            if place not in one.places or self._layer < layer:
                continue
            call = one.calls[self._layer]
            theirs = _rows_of(call.argument(place), one.rows, call.batch)
            if value.shape[0] == 1:  # one frozen row serves them all
                value = value.expand(n_rows, *value.shape[1:])
            value = value.clone()
            columns = torch.tensor(one.positions, device=value.device)
            value[first:last, columns - start] = theirs[:, columns.to(theirs.device)].to(value)
        return value


def _rows_of(value: Any, rows: Int[Tensor, "row"], batch: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_rows_of(item, rows, batch) for item in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch:
        return value
    return rows_of(value, rows)


def _joined(before: Any, added: Any) -> Any:
    if isinstance(before, tuple | list):
        return type(before)(_joined(one, other) for one, other in zip(before, added, strict=True))
    return torch.cat([before, added.to(before.device)]) if isinstance(before, Tensor) and before.ndim else before


def _with_positions(value: Any, chosen: slice, theirs: Any, beside: Beside, batch: int) -> Any:
    """Some rows with another run's keys or values at some positions."""
    if isinstance(value, tuple | list):
        pairs = zip(value, theirs, strict=True)
        return type(value)(_with_positions(one, chosen, other, beside, batch) for one, other in pairs)
    value = value.clone()
    columns = torch.tensor(beside.positions, device=value.device)
    value[chosen, :, columns] = _rows_of(theirs, beside.rows, batch)[:, :, columns].to(value)
    return value
