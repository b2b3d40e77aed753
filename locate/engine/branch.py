"""Batches of replacement states that join a resumed run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from jaxtyping import Float, Int
from torch import Tensor

from locate.engine.calls import Beside, Carried
from locate.engine.interventions import Intervention
from locate.engine.rows import cut
from locate.errors import SiteError


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """Rows that enter a resumed run together, at one layer.

    Attributes:
        layer: the first block that the rows run through (``n_layers`` for the readout alone).
        rows: for each row, the frozen row whose prefix it attends to.
        states: residual stream entering that block, from the resume position on.
        interventions: by hook point, what the rows are made to take there, whatever the block computes.
        beside: what reaches blocks beside the stream from another run's tokens, where that is changed too.
    """

    layer: int
    rows: Int[Tensor, "row"]
    states: Float[Tensor, "row suffix d_model"]
    interventions: Mapping[str, Intervention] = field(default_factory=dict)
    beside: Beside | None = None

    def __len__(self) -> int:
        return self.states.shape[0]

    def split(self, start: int, stop: int) -> "Branch":
        """Some of the rows."""
        if (start, stop) == (0, len(self)):
            return self
        own = {name: one.part(start, stop) for name, one in self.interventions.items()}
        return Branch(
            layer=self.layer, rows=self.rows[start:stop], states=self.states[start:stop], interventions=own,
            beside=None if self.beside is None else self.beside.part(start, stop),
        )  # fmt: skip


def carried_by(branches: Sequence[Branch]) -> Carried:
    """What reaches the blocks beside the stream in a pass whose rows stand in branch order."""
    starts = accumulate([len(branch) for branch in branches], initial=0)
    return Carried([
        (start, start + len(branch), branch.layer, branch.beside)
        for start, branch in zip(starts, branches, strict=False) if branch.beside is not None
    ])  # fmt: skip


def chunks(branches: Sequence[Branch], limit: int) -> list[list[tuple[int, Branch]]]:
    """Group branches into batches of at most ``limit`` rows, in order of layer.

    Each part carries the index of its first row among all rows in the order given. Because rows
    that enter late come last, a chunk starts at the layer of its first row and repeats no work.
    """
    order = sorted(range(len(branches)), key=lambda index: branches[index].layer)
    starts = list(accumulate([len(branch) for branch in branches], initial=0))
    return [
        [(starts[order[i]] + own.start, branches[order[i]].split(own.start, own.stop)) for i, own in part]
        for part in cut([len(branches[index]) for index in order], limit)
    ]


def within(indices: Tensor, start: int, stop: int) -> bool:
    """Whether there are indices, all of them from ``start`` to before ``stop``."""
    return len(indices) > 0 and start <= int(indices.min()) and int(indices.max()) < stop


def check_branches(branches: Sequence[Branch], position: int, shape: Sequence[int], n_layers: int) -> None:
    """Whether branches fit a run of so many rows and positions.

    Raises:
        SiteError: one does not, or there are none.
    """
    n_rows, length = shape
    if not 0 <= position < length:
        raise SiteError(f"Position {position} is out of range: the prompt has {length} tokens.")
    if not branches:
        raise SiteError("Nothing to resume: give at least one branch of states.")
    for branch in branches:
        if not 0 <= branch.layer <= n_layers:
            raise SiteError(f"Layer {branch.layer} is out of range: the model has {n_layers} layers.")
        if not within(branch.rows, 0, n_rows):
            found = f"{branch.rows.min()} to {branch.rows.max()}" if len(branch) else "none"
            raise SiteError(f"A branch continues frozen rows {found}, but there are rows 0 to {n_rows - 1}.")
        if branch.states.shape[1] != length - position:
            raise SiteError(
                f"A branch at position {position} of {length} needs states of {length - position} "
                f"positions, found {branch.states.shape[1]}."
            )
