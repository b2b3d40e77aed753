"""Which rows go through the model together: one budget of memory, one way to group, one way to pad."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.model_bridge import TransformerBridge

from locate.model.devices import input_device
from locate.names import DEFAULT_BUDGET

T = TypeVar("T")

# Whole texts run at full speed with as many tokens, and their states at every position stay few.
WHOLE_BUDGET = 4_096
# Of a text that is being written every block keeps keys and values, two to three times what a token takes in passing.
WRITING_BUDGET = 6_400
# About what a token takes while a block runs, in units of d_model floats.
_FLOATS_PER_TOKEN = 8
# A token that others attend to takes about a third: its keys and values are joined to those of every row.
_ATTENDED = 3
# A token takes about as much more memory while gradients are kept for it.
_GRADIENTS = 8
# Numbers in a table that has a distribution over the vocabulary in every row.
_TABLE = 2**25
# Padding costs a CPU as much as any token, and small passes little. An accelerator has columns to spare, and
# more passes take longer.
_PADDING = {"cpu": 64}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much one pass of the model holds at a time.

    Attributes:
        tokens: the most tokens (rows × positions).
        gradients: as how many tokens one counts while gradients are kept for it.
        logits: as how many tokens a row of logits counts.
        distributions: the most rows over the whole vocabulary that are read from one pass, or kept.
        padding: the most tokens by which one further item may pad those before it; by default any number.

    >>> Budget(tokens=100).rows(12), Budget(tokens=100).rows(12, gradients=True), Budget(tokens=100).rows(200)
    (8, 1, 1)
    """

    tokens: int = DEFAULT_BUDGET
    gradients: int = _GRADIENTS
    logits: int = 1
    distributions: int = _TABLE
    padding: int | None = None

    @classmethod
    def of(cls, model: TransformerBridge, tokens: int = DEFAULT_BUDGET) -> "Budget":
        """The budget of so many tokens, as this model's vocabulary, width and device have it.

        >>> Budget.of(model, 100).tokens
        100
        """
        vocabulary, width = int(model.cfg.d_vocab), int(model.cfg.d_model)
        return cls(
            tokens=tokens, logits=-(-vocabulary // (_FLOATS_PER_TOKEN * width)),
            distributions=max(1, _TABLE // vocabulary), padding=_PADDING.get(input_device(model).type),
        )  # fmt: skip

    @property
    def unpadded(self) -> "Budget":
        """The same for rows of one length only, each of which is then computed exactly as if it were alone."""
        return replace(self, padding=0)

    def rows(self, length: int, *, logits: bool = False, gradients: bool = False) -> int:
        """How many rows of a length fit one pass, at least one.

        Args:
            length: in positions.
            logits: whether a row of logits is read from each.
            gradients: whether gradients are kept.
        """
        each = max(length, self.logits) if logits else length
        return max(1, self.tokens // (each * (self.gradients if gradients else 1)))


def behind(length: int, before: int) -> int:
    """As how many tokens a row counts that goes on for a length behind others, whose keys and values it attends to.

    >>> behind(10, 0), behind(10, 810)
    (10, 280)
    """
    return length + before // _ATTENDED


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of a pass an item takes.

    Attributes:
        length: its positions, to which shorter items beside it are padded.
        beside: positions that it needs besides: before the column at which all rows are aligned, or still to be
            written.
        rows: how many it has.
        readouts: how many rows over the whole vocabulary are read from it.
    """

    length: int
    beside: int = 0
    rows: int = 1
    readouts: int = 0


def passes(
    items: Sequence[Extent], budget: Budget, *, gradients: bool = False, most: int | None = None
) -> list[list[int]]:
    """Indices of items that go through the model together: alike in length, the shortest first, within the budget.

    Items of one length stay in the order given. One that is larger than the budget makes a pass by itself.

    Args:
        items: what each takes.
        budget: of a pass.
        gradients: whether gradients are kept, at the items' own positions (and not at those beside).
        most: items in a pass; by default any number.

    >>> lengths = [Extent(length=4), Extent(length=9), Extent(length=3)]
    >>> passes(lengths, Budget(tokens=10)), passes(lengths, Budget(tokens=99).unpadded)
    ([[2, 0], [1]], [[2], [0], [1]])
    """
    groups: list[list[int]] = []
    rows = length = beside = readouts = 0
    for index in sorted(range(len(items)), key=lambda i: (items[i].length, items[i].beside)):
        item = items[index]
        padded = rows * (item.length - length)
        rows, readouts = rows + item.rows, readouts + item.readouts
        length, beside = item.length, max(beside, item.beside)
        fits = (
            rows * (length + beside) <= budget.tokens
            and (not gradients or rows * length * budget.gradients <= budget.tokens)
            and readouts <= budget.distributions
            and (budget.padding is None or padded <= budget.padding)
        )
        if groups and fits and (most is None or len(groups[-1]) < most):
            groups[-1].append(index)
        else:
            groups.append([index])
            rows, beside, readouts = item.rows, item.beside, item.readouts
    return groups


def cut(sizes: Sequence[int], most: int) -> list[list[tuple[int, slice]]]:
    """Items of several rows each, one after the other in parts of at most ``most`` rows: (item, which of its rows).

    >>> cut([2, 3], 4)
    [[(0, slice(0, 2, None)), (1, slice(0, 2, None))], [(1, slice(2, 3, None))]]
    """
    parts: list[list[tuple[int, slice]]] = []
    room = 0
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            if room < 1:
                parts.append([])
                room = max(1, most)
            stop = min(size, start + room)
            parts[-1].append((index, slice(start, stop)))
            room -= stop - start
            start = stop
    return parts


def in_parts(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """A sequence in parts of ``most`` items (at least one), and what is left at its end.

    >>> in_parts("abcde", 2)
    ['ab', 'cd', 'e']
    """
    size = max(1, most)
    return [items[first : first + size] for first in range(0, len(items), size)]


def padded(rows: Sequence[Int[Tensor, "_"]], fill: int = 0) -> Int[Tensor, "row position"]:
    """Texts of unequal length as one table, filled up on the right, where causality hides what is put there.

    >>> padded([torch.tensor([5]), torch.tensor([6, 7])]).tolist()
    [[5, 0], [6, 7]]
    """
    return pad_sequence(list(rows), batch_first=True, padding_value=fill)


def aligned(
    rows: Sequence[Int[Tensor, "_"]], columns: Sequence[int]
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    """Texts as one table in which a column of each is the same one, and the mask of what fills it up on the left.

    Args:
        rows: token ids.
        columns: for each row, the position that is to stand in the common column, which is the largest of them.

    >>> tokens, mask = aligned([torch.tensor([5, 6]), torch.tensor([7, 8, 9])], [0, 1])
    >>> tokens.tolist(), mask.tolist()
    ([[0, 5, 6], [7, 8, 9]], [[0, 1, 1], [1, 1, 1]])
    """
    shifts = [max(columns) - column for column in columns]
    tokens = padded([F.pad(row, (shift, 0)) for row, shift in zip(rows, shifts, strict=True)])
    return tokens, (torch.arange(tokens.shape[1]) >= torch.tensor(shifts)[:, None]).long()


def rows_of(values: Shaped[Tensor, "_ *rest"], rows: Int[Tensor, "row"]) -> Shaped[Tensor, "row *rest"]:
    """These rows of a state; a state of one row is that of all.

    >>> rows_of(torch.zeros(1, 7), torch.tensor([0, 0, 0])).shape
    torch.Size([3, 7])
    """
    if values.shape[0] == 1:
        return values.expand(len(rows), *values.shape[1:])
    return values[rows.to(values.device)]
