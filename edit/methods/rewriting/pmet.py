"""PMET: optimise what attention and MLP write together, keep the MLP's part."""

from dataclasses import field
from math import sqrt
from typing import ClassVar

from edit.hyperparameters import hyperparameters
from edit.methods.rewriting.memit import MEMIT
from edit.values.objective import Place, ValueObjective


@hyperparameters
class PMET(MEMIT):
    """Precise model editing (Li et al. 2024, arXiv:2308.08742).

    The outputs of attention and MLP at the last layer are optimised side by side, so that what belongs to attention
    does not have to be written into the MLP. The MLP's part alone is kept, and written as MEMIT does, but with the
    residual divided by √(layers left).

    >>> len(edit.PMET(layers=(3, 4)).fit(model, [request]).parameters)
    2
    """

    place: ClassVar[Place] = "attn+mlp"

    # ROME's: what a layer adds is much smaller than the stream it adds to, and MEMIT's clamp would stop δ short.
    objective: ValueObjective = field(default_factory=ValueObjective)

    def _share(self, layers_left: int) -> float:
        return 1 / sqrt(layers_left)
