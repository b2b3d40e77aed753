"""What a branch's rows are made to take at a hook point, whatever the block computes there."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Intervention(Protocol):
    """A change of some rows of a hook point's value, made in place while the rows run."""

    def apply(self, value: Tensor, offset: int) -> None:
        """Change the branch's rows. Column 0 of the resumed suffix stands at ``offset`` in ``value``."""
        ...

    def part(self, start: int, stop: int) -> "Intervention":
        """The same for some of the rows."""
        ...


def _part(values: Tensor | None, start: int, stop: int) -> Tensor | None:
    return values if values is None or values.shape[0] == 1 else values[start:stop]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pin:
    """Values that rows take at some positions.

    Attributes:
        values: one per row, or one for all rows.
        columns: positions, counted from the position of the resume.
        units: for each row, the one head or neuron (the axis after the position) that is pinned;
            by default all of them.
        only: units that are pinned in all rows, in the order of the values' third axis.

    >>> value = torch.zeros(2, 3, 4)
    >>> Pin(values=torch.ones(1, 1, 4), columns=(1,)).apply(value, offset=0)
    >>> value.sum(-1).tolist()
    [[0.0, 4.0, 0.0], [0.0, 4.0, 0.0]]
    """

    values: Float[Tensor, "row_or_1 column *unit"]
    columns: tuple[int, ...] = (0,)
    units: Int[Tensor, "row"] | None = None
    only: tuple[int, ...] | None = None

    def apply(self, value: Float[Tensor, "row position *unit"], offset: int) -> None:
        """Write the values."""
        columns = torch.tensor(self.columns, device=value.device) + offset
        if self.only is not None:
            value[:, columns[:, None], torch.tensor(self.only, device=value.device)[None]] = self.values.to(value)
        elif self.units is None:
            value[:, columns] = self.values.to(value)
        else:
            rows = torch.arange(len(value), device=value.device)[:, None]
            value[rows, columns[None], self.units.to(value.device)[:, None]] = self.values.to(value)

    def part(self, start: int, stop: int) -> "Pin":
        """The same for some of the rows."""
        units = None if self.units is None else self.units[start:stop]
        return replace(self, values=_part(self.values, start, stop), units=units)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """A vector that is added to each row at one position; gradients reach it.

    Attributes:
        values: one per row.
        column: the position, counted from the position of the resume.

    >>> value = torch.zeros(2, 3, 4)
    >>> Shift(values=torch.ones(2, 4)).apply(value, offset=1)
    >>> value.sum(-1).tolist()
    [[0.0, 4.0, 0.0], [0.0, 4.0, 0.0]]
    """

    values: Float[Tensor, "row d_model"]
    column: int = 0

    def apply(self, value: Float[Tensor, "row position d_model"], offset: int) -> None:
        """Add the vectors."""
        value[:, self.column + offset] += self.values[: len(value)].to(value)

    def part(self, start: int, stop: int) -> "Shift":
        """The same for some of the rows."""
        return replace(self, values=self.values[start:stop])


@dataclass(frozen=True, kw_only=True, eq=False)
class Added:
    """What is added to rows at all positions of the resume.

    Attributes:
        values: one for each row.
        units: for each row, the one head (the axis after the position) that it is added to; by default the values are
            of all units.

    >>> value = torch.zeros(2, 3, 4, 5)
    >>> Added(values=torch.ones(2, 3, 5), units=torch.tensor([0, 3])).apply(value, offset=0)
    >>> value.sum((1, 3)).tolist()
    [[15.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 15.0]]
    """

    values: Float[Tensor, "row column *unit"]
    units: Int[Tensor, "row"] | None = None

    def apply(self, value: Float[Tensor, "row position *unit"], offset: int) -> None:
        """Add the values."""
        late = value[:, offset:]
        if self.units is None:
            late += self.values.to(value)
        else:
            rows = torch.arange(len(value), device=value.device)
            late[rows, :, self.units.to(value.device)] += self.values.to(value)

    def part(self, start: int, stop: int) -> "Added":
        """The same for some of the rows."""
        units = None if self.units is None else self.units[start:stop]
        return replace(self, values=self.values[start:stop], units=units)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """Units of single rows that are multiplied by factors, whatever their values are there.

    Attributes:
        rows: place by place, which of the branch's rows.
        units: which unit (the axis after the position).
        factors: by what.
        columns: positions, counted from the position of the resume; by default all from there on.

    >>> value = torch.ones(2, 3, 4)
    >>> one, other = torch.tensor([0, 1]), torch.tensor([2, 2])
    >>> Scaled(rows=one, units=other, factors=torch.tensor([0.0, 5.0]), columns=(1,)).apply(value, offset=0)
    >>> value[:, :, 2].tolist()
    [[1.0, 0.0, 1.0], [1.0, 5.0, 1.0]]
    """

    rows: Int[Tensor, "place"]
    units: Int[Tensor, "place"]
    factors: Float[Tensor, "place"]
    columns: tuple[int, ...] | None = None

    def apply(self, value: Float[Tensor, "row position unit"], offset: int) -> None:
        """Multiply the values."""
        own = range(value.shape[1] - offset) if self.columns is None else self.columns
        columns = torch.tensor(list(own), device=value.device)[None] + offset
        rows, units = (one.to(value.device)[:, None] for one in (self.rows, self.units))
        value[rows, columns, units] *= self.factors.to(value)[:, None]

    def part(self, start: int, stop: int) -> "Scaled":
        """The same for some of the rows."""
        mine = (self.rows >= start) & (self.rows < stop)
        return replace(self, rows=self.rows[mine] - start, units=self.units[mine], factors=self.factors[mine])


@dataclass(frozen=True, kw_only=True, eq=False)
class PatternPin:
    """Attention patterns that rows take, in one head each or in several alike.

    Attributes:
        values: from each of the queries to every key of the whole sequence.
        queries: positions, counted from the position of the resume.
        heads: for each row, the head; by default those in ``only``.
        only: heads that are pinned in all rows, in the order of the values' second axis.

    >>> value = torch.zeros(1, 3, 2, 2)
    >>> PatternPin(values=torch.ones(1, 2, 1, 2), queries=(1,), only=(0, 2)).apply(value, offset=0)
    >>> value.sum((0, 3)).tolist()
    [[0.0, 2.0], [0.0, 0.0], [0.0, 2.0]]
    """

    values: Float[Tensor, "row_or_1 *head query key"]
    queries: tuple[int, ...]
    heads: Int[Tensor, "row"] | None = None
    only: tuple[int, ...] = ()

    def apply(self, value: Float[Tensor, "row head query key"], offset: int) -> None:
        """Write the patterns."""
        queries = torch.tensor(self.queries, device=value.device) + offset
        if self.heads is None:
            value[:, torch.tensor(self.only, device=value.device)[:, None], queries[None]] = self.values.to(value)
        else:
            rows = torch.arange(len(value), device=value.device)[:, None]
            value[rows, self.heads.to(value.device)[:, None], queries[None]] = self.values.to(value)

    def part(self, start: int, stop: int) -> "PatternPin":
        """The same for some of the rows."""
        heads = None if self.heads is None else self.heads[start:stop]
        return replace(self, values=_part(self.values, start, stop), heads=heads)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockedAttention:
    """Attention scores that are set to −∞, so that nothing flows from some positions to others.

    Attributes:
        queries: where attention looks from, counted from the position of the resume.
        keys: where it may not look, counted in the whole sequence.
        heads: for each row, the one head that is blocked; by default all heads.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: Int[Tensor, "row"] | None = None

    def apply(self, value: Float[Tensor, "row head query key"], offset: int) -> None:
        """Block the pairs. A query that may not look anywhere keeps itself: attending to nothing has no meaning."""
        lowest = torch.finfo(value.dtype).min
        before = value.shape[-1] - value.shape[-2]  # the suffix's queries stand at the end of the keys
        for query in self.queries:
            at = query + offset
            # Neither what comes later nor what lies before a sliding window: the mask has left its mark there.
            open_keys = (value[:, :, at].amax((0, 1)) > lowest / 2).nonzero()[:, 0].tolist()
            blocked = sorted(set(self.keys) & set(open_keys))
            if len(blocked) == len(open_keys):
                blocked.remove(at + before)
            keys = torch.tensor(blocked, dtype=torch.long, device=value.device)
            if self.heads is None:
                value[:, :, at, keys] = lowest
            else:
                rows = torch.arange(len(value), device=value.device)[:, None]
                value[rows, self.heads.to(value.device)[:, None], at, keys[None]] = lowest

    def part(self, start: int, stop: int) -> "BlockedAttention":
        """The same for some of the rows."""
        return self if self.heads is None else replace(self, heads=self.heads[start:stop])
