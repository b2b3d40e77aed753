"""How gradients flow back through what is not linear: as they are, or by the rules of relevance propagation.

The forward pass is the model's own. Each rule replaces the backward pass of one kind of place: a norm, an activation
function, a product, a softmax.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.hooking import Listener, hook_points, listen
from locate.engine.multiplying import how_mlps_multiply
from locate.errors import LocateError, ModelError
from locate.model.norms import NormShape
from locate.model.precision import at_least_float32

Pattern = Literal["gradient", "half", "frozen"]
Heard = tuple[str, Callable[[Tensor], Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What gradients become on their way back.

    Attributes:
        frozen_norms: a norm's scale is a constant.
        identity: an activation function f is the constant factor f(x) / x.
        halves: each side of an MLP's product of gate and linear part gets half of the gradient.
        pattern: of attention's product of pattern and values each side gets its gradient, or half of it, or the
            pattern is a constant.
        temperature: of the softmax of attention, as its derivative has it; 1 is its own.
        query_key: factor of gradients through queries and through keys.
        value: factor of those through values.

    >>> Rules(frozen_norms=True).plain, Rules().plain
    (False, True)
    """

    frozen_norms: bool = False
    identity: bool = False
    halves: bool = False
    pattern: str = "gradient"
    temperature: float = 1.0
    query_key: float = 1.0
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise LocateError(f"pattern must be one of {', '.join(get_args(Pattern))}, found {self.pattern!r}.")

    @property
    def plain(self) -> bool:
        """Whether gradients stay as they are."""
        return self == Rules()


GRADIENT = Rules()
# Rezaei Jafari et al. 2025 (arXiv:2508.21258): norms, activations and gates by their rules, attention as it is.
RELP = Rules(frozen_norms=True, identity=True, halves=True)
# arXiv:2505.17630, with the gates of its published code.
GIM = Rules(frozen_norms=True, halves=True, temperature=2.0, query_key=0.25, value=0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ruling:
    """The hooks of some rules, in two parts: what stands between sees both the states and their gradients by the rules.

    Attributes:
        norms: those with a constant scale.
        made: what makes a value anew, of the same numbers and with another gradient.
        taken: what takes values on their way to that, or weighs their gradients.
    """

    model: TransformerBridge
    norms: tuple["_Norm", ...]
    made: tuple[Heard, ...]
    taken: tuple[Heard, ...]

    @classmethod
    def of(cls, model: TransformerBridge, rules: Rules) -> "Ruling":
        """The hooks of these rules in this model."""
        made: list[Heard] = []
        taken: list[Heard] = []
        if rules.identity or rules.halves:
            kinds = how_mlps_multiply(model)
            _say_what_is_left(model, kinds)
            for layer, kind in enumerate(kinds):
                if kind is not None:
                    _of_mlp(f"blocks.{layer}.mlp", kind == "gated", rules, made, taken)
        for layer, block in enumerate(model.blocks):
            if hasattr(block, "attn"):
                _of_attention(f"blocks.{layer}.attn", block.attn, rules, made, taken)
        norms = tuple(map(_Norm, _norms(model))) if rules.frozen_norms else ()
        return cls(model=model, norms=norms, made=tuple(made), taken=tuple(taken))

    @contextmanager
    def making(self) -> Iterator[None]:
        """While active, values are made with the gradients of the rules; to be entered first."""
        with self._of_norms(made=True), _heard(self.model, self.made):
            yield

    @contextmanager
    def taking(self) -> Iterator[None]:
        """While active, values are taken on their way; to be entered last."""
        with self._of_norms(made=False), _heard(self.model, self.taken):
            yield

    @contextmanager
    def norming(self) -> Iterator[None]:
        """While active, norms alone have the gradients of the rules, whenever they are called."""
        with self._of_norms(made=True), self._of_norms(made=False):
            yield

    @contextmanager
    def _of_norms(self, made: bool) -> Iterator[None]:
        # What a norm takes and gives may be a state that is listened to, such as what a block adds to the stream.
        with ExitStack() as stack:
            for one in self.norms:
                listener = Listener(one.norm.hook_out, one.make) if made else Listener(one.norm.hook_in, one.take)
                stack.callback(listener.remove)
            yield


@contextmanager
def ruled(model: TransformerBridge, rules: Rules) -> Iterator[None]:
    """While active, gradients flow back by these rules.

    Raises:
        ModelError: a rule has no meaning in this architecture, as a state shows that is met.

    >>> with ruled(model, RELP):
    ...     logits = model("The Eiffel Tower is located in the city of")
    """
    ruling = Ruling.of(model, rules)
    with ruling.making(), ruling.taking():
        yield


@contextmanager
def _heard(model: TransformerBridge, hooks: Sequence[Heard]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, function in hooks:
            stack.callback(listen(hook_points(model, [name])[name], function).remove)
        yield


def _say_what_is_left(model: TransformerBridge, kinds: Sequence[str | None]) -> None:
    left = [layer for layer, kind in enumerate(kinds) if kind is None and hasattr(model.blocks[layer], "mlp")]
    if left:
        warnings.warn(
            f"The MLPs of {type(model.original_model).__name__} in layers {', '.join(map(str, left))} are no function "
            "of one projection, nor of one times another, as in mixtures of experts: no rule is known there, and "
            "gradients pass them as they are.",
            stacklevel=2,
        )


def _norms(model: TransformerBridge) -> list[nn.Module]:
    """All that show a scale and what was normalised by it."""
    whole: Any = model
    return [one for one in whole.modules() if hasattr(one, "hook_scale") and hasattr(one, "hook_normalized")]


class _Norm:
    """One whose scale is a constant: from what it takes to what it makes of it."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm
        self._taken: list[Tensor] = []
        self._shape: NormShape | None = None

    def take(self, states: Tensor, hook: object) -> None:
        """Its input, as all hooks have left it."""
        self._taken.append(states)

    def make(self, made: Tensor, hook: object) -> Tensor:
        """Its output, before any other hook."""
        states = self._taken.pop()
        if self._shape is None:
            self._shape = NormShape.of(self.norm.original_component, states.detach())
        gain = self._shape.scaled(states.detach(), made.detach())
        return _FrozenNorm.apply(states, made.detach(), gain, self._shape.centred)


def _of_attention(prefix: str, attention: nn.Module, rules: Rules, made: list[Heard], taken: list[Heard]) -> None:
    factors = {"q": rules.query_key, "k": rules.query_key, "v": rules.value, "pattern": 1.0}
    if rules.pattern != "gradient":
        factors["pattern"] = 0.5 if rules.pattern == "half" else 0.0
        factors["v"] *= 0.5 if rules.pattern == "half" else 1.0
    if rules.temperature != 1:
        _of_softmax(prefix, rules.temperature, made, taken)
    for name, factor in factors.items():
        if factor != 1 and hasattr(attention, f"hook_{name}"):
            taken.append((f"{prefix}.hook_{name}", _scaler(factor)))


def _of_mlp(prefix: str, gated: bool, rules: Rules, made: list[Heard], taken: list[Heard]) -> None:
    inputs = [f"{prefix}.gate.hook_out", f"{prefix}.in.hook_out"] if gated else [f"{prefix}.in.hook_out"]
    share = 0.5 if gated and rules.halves else 1.0
    if not rules.identity:
        taken += [(name, _scaler(share)) for name in inputs if share != 1]
        return
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Callable[[Tensor], None]:
        return lambda value: seen.__setitem__(name, value)

    def product(value: Tensor) -> Tensor:
        return _Product.apply(value.detach(), share, *[seen.pop(name) for name in inputs])

    taken += [(name, look(name)) for name in inputs]
    made.append((f"{prefix}.out.hook_in", product))


def _of_softmax(prefix: str, temperature: float, made: list[Heard], taken: list[Heard]) -> None:
    seen: list[Tensor] = []

    def pattern(value: Tensor) -> Tensor:
        scores = seen.pop()
        if not torch.allclose(scores.detach().float().softmax(-1), value.detach().float(), rtol=1e-2, atol=1e-3):
            raise ModelError(
                "The attention pattern of this model is not the softmax of its scores alone, so that its derivative "
                "at another temperature has no meaning here. Use another method."
            )
        return _Softmax.apply(scores, value.detach(), temperature)

    taken.append((f"{prefix}.hook_attn_scores", seen.append))
    made.append((f"{prefix}.hook_pattern", pattern))


def _scaler(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda value: _Scaled.apply(value, factor)


class _FrozenNorm(torch.autograd.Function):
    """What a norm made of its input, as a linear map of it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, made: Tensor, gain: Tensor, centred: bool) -> Tensor:
        ctx.save_for_backward(gain)
        ctx.centred, ctx.dtype = centred, states.dtype
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gain,) = ctx.saved_tensors
        given = gradients[0].to(gain) * gain
        if ctx.centred:
            given = given - given.mean(-1, keepdim=True)
        return given.to(ctx.dtype), None, None, None


class _Product(torch.autograd.Function):
    """What was made of one or two factors, as a constant times each of them."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, share: float, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(made, *factors)
        ctx.share = share
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made, *factors = ctx.saved_tensors
        # Where a factor is 0 so is what was made of it, and there is nothing to hand back.
        each = [torch.where(one == 0, 0, ctx.share * made / one) for one in factors]
        return None, None, *[gradients[0] * one for one in each]


class _Softmax(torch.autograd.Function):
    """A softmax with the derivative that it has at another temperature."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, made: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.temperature = temperature
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scores,) = ctx.saved_tensors
        softer = (at_least_float32(scores) / ctx.temperature).softmax(-1)
        given = gradients[0].to(softer)
        back = softer * (given - (given * softer).sum(-1, keepdim=True))
        return back.to(scores.dtype), None, None


class _Scaled(torch.autograd.Function):
    """A value whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.factor, None
