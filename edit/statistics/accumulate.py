"""Adding up k kᵀ over many keys, and keeping the sum on disk while it grows."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from edit.statistics.moments import STATISTICS
from edit.statistics.shrinking import intensity
from locate.errors import DataError, NumericsError
from locate.store.tensors import read_tensors, write_tensors

# The sum is symmetric: strips of its rows from the diagonal on take little more than half of the products.
_STRIPS = 12
_SUMS = replace(STATISTICS, name="sums", noun="sums of keys")


@dataclass(kw_only=True)
class MomentSum:
    """The sum of k kᵀ over the keys of one layer so far, and where it is kept.

    Products are taken in float32 over one pass of the model and added in float64.

    Attributes:
        layer: whose keys.
        size: their dimension.
        wanted: how many batches to take.
        path: of a file to keep the unfinished sum in.
        shrinks: whether to add up what shrinking asks for as well; keys then come in rows of text.
        done: how many batches were taken.
        count: how many keys they held.
        total: the sum; only its upper half is filled.
        rows: how many rows they stood in, where it shrinks.
        squares: of each row's own sum the squares, added up, where it shrinks; only the upper half is filled.
        saved: how many batches the sum on disk holds.

    >>> moments = MomentSum(layer=4, size=2, wanted=1)
    >>> moments.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> moments.finished()
    tensor([[5., 1.],
            [1., 2.]], dtype=torch.float64)
    """

    layer: int
    size: int
    wanted: int
    path: Path | None = None
    shrinks: bool = False
    done: int = 0
    count: int = 0
    total: Tensor | None = None
    rows: int = 0
    squares: Tensor | None = None
    saved: int = 0

    def add(self, keys: Float[Tensor, "*batch d_mlp"]) -> None:
        """Add the keys of one pass."""
        keys = keys.float()
        together = keys.flatten(0, -3) if self.shrinks else keys.flatten(0, -2)[None]
        total, squares = self._sums(keys.device)
        width = -(-self.size // _STRIPS)
        for some in together:
            for start in range(0, self.size, width):
                product = some[:, start : start + width].T @ some[:, start:]
                total[start : start + width, start:] += product
                if squares is not None:
                    squares[start : start + width, start:].addcmul_(product, product)
            self.count += len(some)
        self.rows += len(together) if self.shrinks else 0

    def _sums(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The sums so far, on the device; those that were read from disk may be on another."""
        if self.total is None:
            self.total = torch.zeros(self.size, self.size, dtype=torch.float64, device=device)
            self.squares = (
                torch.zeros(self.size, self.size, dtype=torch.float32, device=device) if self.shrinks else None
            )
        self.total = self.total.to(device)
        self.squares = None if self.squares is None else self.squares.to(device)
        return self.total, self.squares

    def end_batch(self, number: int) -> None:
        """Note that a batch is complete.

        Raises:
            NumericsError: some of the keys so far were not finite.
        """
        # A value that is not finite, in any key, reaches the square of its own entry.
        if self.total is not None and not torch.isfinite(self.total.diagonal()).all():
            raise NumericsError(
                f"Keys of layer {self.layer} in batch {number} of the corpus are not finite, or too large to square in "
                "float32. Load the model in bfloat16 or float32, or check its weights."
            )
        self.done += 1

    def finished(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """The mean of k kᵀ, on the CPU."""
        assert self.total is not None
        mean = self.total.triu().cpu().div_(self.count)
        return mean + mean.triu(1).T

    def shrinkage(self, mean: Float[Tensor, "d_mlp d_mlp"]) -> float:
        """How far the mean is to be shrunk towards its diagonal; 0 where it is not.

        >>> moments = MomentSum(layer=4, size=2, wanted=1, shrinks=True)
        >>> moments.add(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> moments.shrinkage(moments.finished())
        1.0
        """
        if self.squares is None:
            return 0.0
        return intensity(mean, self.squares, self.rows, self.count // self.rows)

    def release(self) -> None:
        """Let go of the sums: wide layers take gigabytes."""
        self.total = self.squares = None

    def save(self) -> None:
        """Keep the unfinished sum, for another run to go on with."""
        if self.path is not None and self.total is not None and self.done > self.saved:
            described = {"done": self.done, "count": self.count, "rows": self.rows}
            sums = {"total": self.total, "squares": self.squares}
            held = {name: one.cpu() for name, one in sums.items() if one is not None}
            write_tensors(self.path, _SUMS, held, described)
            self.saved = self.done

    def resume(self) -> None:
        """Go on with a sum that was kept, if there is one."""
        if self.path is None or not self.path.is_file():
            return
        # A file that cannot be read costs only time: the sum begins anew.
        with suppress(DataError, KeyError, TypeError):
            tensors, described = read_tensors(self.path, _SUMS)
            squares = tensors["squares"] if self.shrinks else None
            if tensors["total"].shape == (self.size, self.size):
                self.done, self.count, self.rows = described["done"], described["count"], described.get("rows", 0)
                self.total, self.squares, self.saved = tensors["total"], squares, self.done

    def forget(self) -> None:
        """Remove the kept sum, once it is finished, and what a killed run left of one."""
        if self.path is None:
            return
        self.path.unlink(missing_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            with suppress(OSError, ValueError):
                if not _runs(int(left.suffix[1:])):
                    left.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
