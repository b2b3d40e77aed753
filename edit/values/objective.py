"""How a value is optimised, and what was found."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from edit.hyperparameters import Count, NotNegative, Told, hyperparameters

StopRule = Literal["loss", "first"]

# Where δ is added: to the down-projection's output, to the residual stream after the block, or to the outputs
# of attention and down-projection together (of which the latter's is the value).
Place = Literal["mlp", "resid", "attn+mlp"]


# However large: an endless clamp is none.
_Above0 = Annotated[float, Field(gt=0), Told("must be positive, found {}.")]
_Stop = Annotated[StopRule, Told(f"must be one of {', '.join(get_args(StopRule))}, found {{}}.")]
_Probability = Annotated[float, Field(ge=0, lt=1), Told("must be at least 0 and below 1, found {}.")]


@hyperparameters
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
        probability: for ``stop="first"``: the geometric mean over contexts to reach.
        end: how likely the answer must be to end after its last token, as a geometric mean over contexts; 0, as
            published, asks for no end. Otherwise that it ends is one more token of what is asked for: the value is
            optimised for the sum of the tokens that end an answer, and ``stop="first"`` waits for it.

    >>> ValueObjective(steps=20).learning_rate
    0.2
    """

    steps: Count = 40
    learning_rate: _Above0 = 0.2
    kl_weight: NotNegative = 0.0625
    weight_decay: NotNegative = 1e-3
    clamp: _Above0 = 4.0
    stop: _Stop = "first"
    loss_threshold: float = 0.05
    probability: _Probability = 0.9
    end: _Probability = 0.0


# An answer that the model goes on from (" Rome Airport") has not been said: chosen on shipped facts by
# ``benchmarks.said``. EOS alone in place of any end takes twice the steps and lowers what else is asked.
ENDING_OBJECTIVE = ValueObjective(end=0.7)

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
        probability: of the new object with this value in place, as a geometric mean over contexts and tokens.
        end: that the answer ends there, likewise; 1 where it need not.
        missed: whether the steps ended before the value had made the new object, and its end where that is asked for,
            likelier than not.
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
    probability: float
    end: float
    missed: bool
    layer: int
    place: Place
    label: str
