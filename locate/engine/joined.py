"""States of rows that begin as rows of another run do: the beginning is kept once, by that run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import torch
from jaxtyping import Int
from torch import Tensor

from locate.engine.rows import rows_of

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """What rows share with rows of another run.

    Attributes:
        rows: for each row, the other run's.
        length: up to which position, which is the first of its own.

    >>> two = Beginning(rows=torch.tensor([0, 0]), length=2)
    >>> two.followed(torch.zeros(1, 3, 7), torch.ones(2, 1, 7)).sum(2).tolist()
    [[0.0, 0.0, 7.0], [0.0, 0.0, 7.0]]
    """

    rows: Int[Tensor, "row"]
    length: int

    def axis(self, other: Tensor, own: Tensor) -> int | None:
        """Which axis of a state is that of positions; none where the two do not fit together.

        In attention patterns, keys and values, heads come before it.
        """
        for axis in (1, 2):
            wanted = list(other.shape)
            if len(wanted) > axis and own.shape[axis] + self.length == wanted[axis]:
                wanted[0], wanted[axis] = len(self.rows), own.shape[axis]
                return axis if list(own.shape) == wanted else None
        return None

    def followed(self, other: Tensor, own: Tensor) -> Tensor:
        """The other run's state up to there, and the rows' own from there on."""
        axis = self.axis(other, own)
        assert axis is not None
        return torch.cat([rows_of(other.narrow(axis, 0, self.length), self.rows), own], dim=axis)


class JoinedStates(Mapping[K, Tensor], Generic[K]):
    """States by name, each joined when it is asked for."""

    def __init__(self, beginning: Beginning, other: Mapping[K, Tensor], own: Mapping[K, Tensor]) -> None:
        self._beginning, self._other, self._own = beginning, other, own

    def __getitem__(self, key: K) -> Tensor:
        return self._beginning.followed(self._other[key], self._own[key])

    def __iter__(self) -> Iterator[K]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def __contains__(self, key: object) -> bool:
        return key in self._own


class JoinedLayers(Sequence[Tensor]):
    """States by layer, each joined when it is asked for."""

    def __init__(self, beginning: Beginning, other: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        self._beginning, self._other, self._own = beginning, other, own

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[one] for one in range(len(self))[index])
        return self._beginning.followed(self._other[index], self._own[index])

    def __len__(self) -> int:
        return len(self._own)
