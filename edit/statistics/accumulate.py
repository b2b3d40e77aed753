"""Adding up k kᵀ over many keys, and keeping the sum on disk while it grows."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from edit.statistics.moments import STATISTICS
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
        done: how many batches were taken.
        count: how many keys they held.
        total: the sum; only its upper half is filled.
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
    done: int = 0
    count: int = 0
    total: Tensor | None = None
    saved: int = 0

    def add(self, keys: Float[Tensor, "*batch d_mlp"]) -> None:
        """Add the keys of one pass."""
        keys = keys.flatten(0, -2).float()
        if self.total is None:
            self.total = torch.zeros(self.size, self.size, dtype=torch.float64, device=keys.device)
        elif self.total.device != keys.device:  # a sum that was read from disk
            self.total = self.total.to(keys.device)
        width = -(-self.size // _STRIPS)
        for start in range(0, self.size, width):
            self.total[start : start + width, start:] += keys[:, start : start + width].T @ keys[:, start:]
        self.count += len(keys)

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

    def save(self) -> None:
        """Keep the unfinished sum, for another run to go on with."""
        if self.path is not None and self.total is not None and self.done > self.saved:
            described = {"done": self.done, "count": self.count}
            write_tensors(self.path, _SUMS, {"total": self.total.cpu()}, described)
            self.saved = self.done

    def resume(self) -> None:
        """Go on with a sum that was kept, if there is one."""
        if self.path is None or not self.path.is_file():
            return
        # A file that cannot be read costs only time: the sum begins anew.
        with suppress(DataError, KeyError, TypeError):
            tensors, described = read_tensors(self.path, _SUMS)
            if tensors["total"].shape == (self.size, self.size):
                self.done, self.count = described["done"], described["count"]
                self.total, self.saved = tensors["total"], self.done

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
