"""How a value is optimised, and what was found."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from edit.hyperparameters import check_whole, make_plain
from locate.errors import NumericsError

StopRule = Literal["loss", "first"]


# Where δ is added: to the down-projection's output, to the residual stream after the block, or to the outputs
# of attention and down-projection together (of which the latter's is the value).
Place = Literal["mlp", "resid", "attn+mlp"]


@dataclass(frozen=True, kw_only=True)
class ValueObjective:
    """How a value is optimised: ROME's objective (Meng et al. 2022, arXiv:2202.05262), in smaller steps.

    The published optimisation is ``ValueObjective(steps=25, learning_rate=0.5, stop="loss")``; benchmarks/RESULTS.md
    compares the two.

    Args:
        steps: the most gradient steps.
        learning_rate: of Adam.
        kl_weight: weight of the drift of ``"{subject} is a"``.
        weight_decay: weight of ‖δ‖ / ‖v₀‖².
        clamp: the largest ‖δ‖, in units of ‖v₀‖.
        stop: ``"first"`` (default) stops as soon as the new object is the first answer under every prefix,
            with at least ``probability`` on average. ``"loss"`` stops below ``loss_threshold``, as published.
        loss_threshold: for ``stop="loss"``.
        probability: for ``stop="first"``: the geometric mean over prefixes to reach.

    >>> ValueObjective(steps=20).learning_rate
    0.2
    """

    steps: int = 40
    learning_rate: float = 0.2
    kl_weight: float = 0.0625
    weight_decay: float = 1e-3
    clamp: float = 4.0
    stop: StopRule = "first"
    loss_threshold: float = 0.05
    probability: float = 0.9

    def __post_init__(self) -> None:
        make_plain(self)
        check_whole(self, "steps", least=1)
        for name in ("learning_rate", "clamp"):
            if not getattr(self, name) > 0:
                raise NumericsError(f"{name}: must be positive, found {getattr(self, name)}.")
        for name in ("kl_weight", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise NumericsError(f"{name}: must be 0 or more, found {getattr(self, name)}.")
        if self.stop not in get_args(StopRule):
            raise NumericsError(f"stop: must be one of {', '.join(get_args(StopRule))}, found {self.stop!r}.")
        if not 0 <= self.probability < 1:
            raise NumericsError(f"probability: must be at least 0 and below 1, found {self.probability}.")


# In the residual stream, where v₀ is the sum of all layers before: a larger step and a tighter clamp, as published.
RESIDUAL_OBJECTIVE = ValueObjective(learning_rate=0.5, clamp=0.75)


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """An optimised value, with the keys at which it must be written.

    Attributes:
        value: v* = v₀ + δ, what is wanted at the place of the optimisation.
        initial: v₀, what is there under the bare prompt.
        written: what the layer's MLP writes there under the bare prompt (``initial`` itself, or a part of it).
        keys: the down-projection's input there, under each prefix (the bare prompt first).
        outputs: its output there, under each prefix.
        losses: the objective at every evaluation.
        stopped: why the optimisation ended.
        layer: of the optimisation.
        place: of the optimisation.
        label: of the request, as messages name it.
    """

    value: Float[Tensor, "d_model"]
    initial: Float[Tensor, "d_model"]
    written: Float[Tensor, "d_model"]
    keys: Float[Tensor, "prefix d_mlp"]
    outputs: Float[Tensor, "prefix d_model"]
    losses: tuple[float, ...]
    stopped: str
    layer: int
    place: Place
    label: str
