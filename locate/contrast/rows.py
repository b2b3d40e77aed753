"""Which rows of two runs belong together."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from locate.errors import FactError


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Which rows of two runs belong together: row i of a result gives ``target[i]`` states of ``source[i]``.

    Attributes:
        target: for each row, the row of the run that is changed.
        source: for each row, the row of the run that the states come from.
        question: for each row, which of the questions both of them ask.
    """

    target: Int[Tensor, "row"]
    source: Int[Tensor, "row"]
    question: Int[Tensor, "row"]

    def __len__(self) -> int:
        return len(self.question)

    @classmethod
    def of(cls, n_target: int, n_source: int) -> "Rows":
        """Row by row, each with a question of its own; or the one row of a run with all of the other, and one question.

        Raises:
            FactError: both have several rows, and not as many.

        >>> Rows.of(1, 3).target.tolist(), Rows.of(3, 3).question.tolist()
        ([0, 0, 0], [0, 1, 2])
        """
        n, fewest = max(n_target, n_source), min(n_target, n_source)
        if fewest not in (1, n):
            raise FactError(f"Runs of {n_target} and {n_source} rows: say which of them belong together, with Rows.")
        each, alone = torch.arange(n), torch.zeros(n, dtype=torch.long)
        return cls(
            target=each if n_target > 1 else alone, source=each if n_source > 1 else alone,
            question=each if fewest > 1 else alone,
        )  # fmt: skip

    def reversed(self) -> "Rows":
        """The same with the runs' parts exchanged."""
        return Rows(target=self.source, source=self.target, question=self.question)

    def only(self, wanted: Bool[Tensor, "row"]) -> "Rows":
        """Some of the rows."""
        return Rows(target=self.target[wanted], source=self.source[wanted], question=self.question[wanted])
