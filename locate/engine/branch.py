"""Batches of replacement states that join a resumed run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """Rows that enter a resumed run together, at one layer.

    Attributes:
        layer: the first block that the rows run through (``n_layers`` for the readout alone).
        rows: for each row, the frozen row whose prefix it attends to.
        states: residual stream entering that block, from the resume position on.
        pins: by hook point, the value that the rows' state takes there at the resume position,
            whatever the block computes (``1 d_model`` for the same value in all rows).
    """

    layer: int
    rows: Int[Tensor, "row"]
    states: Float[Tensor, "row suffix d_model"]
    pins: Mapping[str, Float[Tensor, "_ d_model"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.states.shape[0]

    def split(self, start: int, stop: int) -> "Branch":
        """Some of the rows."""
        pins = {name: v if v.shape[0] == 1 else v[start:stop] for name, v in self.pins.items()}
        return Branch(layer=self.layer, rows=self.rows[start:stop], states=self.states[start:stop], pins=pins)


def chunks(branches: Sequence[Branch], limit: int) -> list[list[tuple[int, Branch]]]:
    """Group branches into batches of at most ``limit`` rows, in order of layer.

    Each part carries the index of its first row among all rows in the order given. Because rows
    that enter late come last, a chunk starts at the layer of its first row and repeats no work.
    """
    offsets = torch.tensor([0, *[len(branch) for branch in branches]]).cumsum(0).tolist()
    parts: list[list[tuple[int, Branch]]] = [[]]
    room = limit
    for index in sorted(range(len(branches)), key=lambda i: branches[i].layer):
        branch, done = branches[index], 0
        while done < len(branch):
            if room == 0:
                parts.append([])
                room = limit
            take = min(room, len(branch) - done)
            whole = take == len(branch)
            part = branch if whole else branch.split(done, done + take)
            parts[-1].append((offsets[index] + done, part))
            done += take
            room -= take
    return parts
