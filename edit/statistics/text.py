"""Text that the model wrote, kept so that other layers and larger collections need not write it again."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from locate.errors import DataError
from locate.store.tensors import Kind, read_tensors, write_tensors

_TEXT = Kind(name="text", noun="kept text", version=1, remedy="let the model write it again")
_Batches = Iterator[Int[Tensor, "row position"]]


@dataclass(frozen=True, kw_only=True)
class KeptText:
    """Batches of text in files, each by its number.

    Attributes:
        folder: of one model's text.
        name: says what the batches depend on besides the model, such as a seed.

    >>> kept = KeptText(folder=folder, name="zeros")
    >>> next(kept.batches(lambda number: iter([torch.zeros(2, 3, dtype=torch.long)]), 0, 1)).shape
    torch.Size([2, 3])
    >>> next(kept.batches(lambda number: iter([]), 0, 1)).shape
    torch.Size([2, 3])
    """

    folder: Path
    name: str

    def batches(
        self,
        write: Callable[[int], _Batches],
        first: int,
        step: int,
        found: Callable[[int], object] = lambda read: None,
    ) -> _Batches:
        """Every ``step``-th batch from ``first`` on, read where it is kept and written where it is not.

        Args:
            write: gives the batches from a number on, by the same step.
            first: number of the batch to begin with.
            step: how many batches to go on by.
            found: called with how many tokens were read where they are kept.
        """
        source: _Batches | None = None
        for number in count(first, step):
            path = self.folder / f"{self.name}-{number}.safetensors"
            batch = _read(path)
            if batch is not None:
                source = None  # it stands before this batch
                found(batch.numel())
            else:
                source = write(number) if source is None else source
                batch = next(source, None)
                if batch is None:
                    return
                # Without the file (a full disk, a folder that is read only) the text is only not there next time.
                with suppress(OSError, SafetensorError):
                    write_tensors(path, _TEXT, {"tokens": batch.to(torch.int32)}, {"name": self.name})
            yield batch


def _read(path: Path) -> Int[Tensor, "row position"] | None:
    try:
        return read_tensors(path, _TEXT)[0]["tokens"].long()
    except (DataError, KeyError):
        return None
