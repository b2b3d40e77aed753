"""What each head, MLP, neuron and bias adds to the residual stream, so that all of them sum to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import ModelError
from locate.model.anatomy import anatomy, down_module, norm_after
from locate.model.norms import NormShape
from locate.model.weights import down_projection, written_by
from locate.sites.table import hook_name

# What is read of a layer to tell its contributions apart.
_READ = ("attn_head_z", "attn_proj_out", "mlp_out")
# Of the largest output, in units of its precision: more than a sum over heads is rounded, and much less than a head.
_ROUNDING = 1000


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """What one layer adds to the stream, part by part.

    Attributes:
        heads: what each head adds.
        bias: what the biases of attention's output and of the norm after it add; it belongs to no head.
        mlp: what the MLP adds; None where the layer has none.
    """

    heads: Float[Tensor, "row position head d_model"]
    bias: Float[Tensor, "row position d_model"]
    mlp: Float[Tensor, "row position d_model"] | None


@dataclass(frozen=True, kw_only=True)
class Passage:
    """From the output projection of attention or of an MLP to the stream, for the states of one run: a linear map and
    a constant.

    Attributes:
        gain: of the norm between, divided by the scale that it has at each position; None without a norm.
        centred: whether the norm takes the mean away first.
        shift: the norm's bias.
        multiplier: of what is added.
    """

    gain: Float[Tensor, "row position d_model"] | None
    centred: bool
    shift: Float[Tensor, "d_model"] | None
    multiplier: float

    @classmethod
    def of(cls, norm: nn.Module, projected: Float[Tensor, "row position d_model"], multiplier: float) -> "Passage":
        """Through a norm with the scale that it has at some states."""
        shape = NormShape.of(norm, projected)
        gain, shift = shape.scaled(projected, norm(projected)), shape.shift.flatten()
        return cls(gain=gain, centred=shape.centred, shift=shift, multiplier=multiplier)

    def __call__(self, vectors: Float[Tensor, "row position *unit d_model"]) -> Tensor:
        """What of some parts of the projection's output arrives in the stream, the constant left out."""
        if self.gain is None:
            return vectors * self.multiplier
        gain = self.gain.unflatten(1, (-1, *[1] * (vectors.ndim - self.gain.ndim)))
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * gain.to(vectors) * self.multiplier

    @property
    def constant(self) -> Tensor | float:
        """What the norm's bias adds, whatever the output is."""
        return 0.0 if self.shift is None else self.shift * self.multiplier

    def pulled_back(self, direction: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position d_model"]:
        """A direction in the stream as one in the projection's output, along which as much of a part is found."""
        if self.gain is None:
            return direction * self.multiplier
        found = direction * self.gain.to(direction) * self.multiplier
        return found - found.mean(-1, keepdim=True) if self.centred else found


def contribution_hooks(model: TransformerBridge, layers: Sequence[int]) -> list[str]:
    """The hook points whose values ``contributions`` needs.

    Raises:
        ModelError: a layer has no heads, with those that have.

    >>> contribution_hooks(model, [5])
    ['blocks.5.attn.hook_z', 'blocks.5.attn.o.hook_out', 'blocks.5.hook_mlp_out']
    """
    found = anatomy(model).layers
    for layer in layers:
        _check_heads(model, layer)
    return [hook_name(one, layer) for layer in layers for one in _READ if one != "mlp_out" or found[layer].has_mlp]


@torch.no_grad()
def contributions(model: TransformerBridge, layer: int, kept: Mapping[str, Tensor]) -> Contributions:
    """What a layer adds to the stream, from the states of a run that kept ``contribution_hooks``.

    A head's z goes through its part of the output projection, then through the norm after attention, whose scale at
    that position is taken as it is, and is multiplied by the residual multiplier: all of it is linear in z. What
    attention would add without any z is the bias.

    Raises:
        ModelError: the layer has no heads; what it adds is not attention and one MLP, or comes about in another way.

    >>> from locate.engine import freeze
    >>> run = freeze(model, torch.tensor([[1, 2, 3]]), keep=contribution_hooks(model, [5]))
    >>> contributions(model, 5, run.kept).heads.shape[:3]
    torch.Size([1, 3, 9])
    """
    _check_heads(model, layer)
    heads, bias = attention_contributions(
        model, layer, kept[hook_name("attn_head_z", layer)], kept[hook_name("attn_proj_out", layer)]
    )
    has_mlp = anatomy(model).layers[layer].has_mlp
    return Contributions(heads=heads, bias=bias, mlp=kept[hook_name("mlp_out", layer)] if has_mlp else None)


@torch.no_grad()
def attention_contributions(
    model: TransformerBridge,
    layer: int,
    z: Float[Tensor, "row position head d_head"],
    projected: Float[Tensor, "row position d_model"],
) -> tuple[Float[Tensor, "row position head d_model"], Float[Tensor, "row position d_model"]]:
    """What each head of a layer adds to the stream, and what attention adds without any of them.

    Args:
        model: a raw-mode bridge.
        layer: of the model.
        z: the heads' outputs.
        projected: what the output projection makes of them.

    Raises:
        ModelError: as ``contributions`` does.
    """
    through = passage(model, layer, projected)
    attention = model.blocks[layer].attn
    # By the module, and not by attention's W_O: the width of a head may differ from layer to layer.
    weight = written_by(attention.o.original_component, model.cfg.d_model).to(z)
    weight = rearrange(weight, "(head d_head) d_model -> head d_head d_model", head=z.shape[-2])
    written = einsum(z, weight, "row position head d_head, head d_head d_model -> row position head d_model")
    constant = torch.zeros_like(projected) if attention.b_O is None else attention.b_O.to(z).expand_as(projected)
    _check(model, layer, written.sum(-2) + constant, projected)
    return through(written), through(constant) + torch.as_tensor(through.constant).to(constant)


@torch.no_grad()
def passage(
    model: TransformerBridge, layer: int, projected: Float[Tensor, "row position d_model"], part: str = "attn"
) -> Passage:
    """How what the output projection of ``attn`` or ``mlp`` gives reaches the stream, where it gives ``projected``.

    Raises:
        ModelError: the layer has no heads; what it adds is not attention and one MLP, or comes about in another way.
    """
    if part == "attn":
        _check_heads(model, layer)
    own = anatomy(model).layers[layer]
    if not own.adds_up:
        raise ModelError(_not_apart(model, layer))
    norm = norm_after(model.blocks[layer], part)
    if norm is None:
        return Passage(gain=None, centred=False, shift=None, multiplier=own.multiplier)
    return Passage.of(norm, projected, own.multiplier)


@torch.no_grad()
def neuron_contributions(
    model: TransformerBridge,
    layer: int,
    neurons: Float[Tensor, "row position neuron"],
    projected: Float[Tensor, "row position d_model"],
    direction: Float[Tensor, "row position d_model"],
) -> tuple[Float[Tensor, "row position neuron"], Float[Tensor, "row position"]]:
    """What each neuron of a layer's MLP adds to the stream along a direction, and what is added without any of them.

    A neuron's activation goes through its row of the down-projection, then as a head's output does through what stands
    before the stream (``contributions``).

    Args:
        model: a raw-mode bridge.
        layer: of the model.
        neurons: the activations.
        projected: what the down-projection makes of them.
        direction: in the stream.

    Raises:
        ModelError: the layer has no single MLP; or as ``contributions`` does.

    >>> from locate.engine import freeze
    >>> names = ["blocks.5.mlp.out.hook_in", "blocks.5.mlp.out.hook_out"]
    >>> kept = freeze(model, torch.tensor([[1, 2, 3]]), keep=names).kept
    >>> each, bias = neuron_contributions(model, 5, *kept.values(), torch.ones(1, 3, model.cfg.d_model))
    >>> each.shape == (1, 3, model.cfg.d_mlp)
    True
    """
    weight = down_weight(model, layer)
    through = passage(model, layer, projected, "mlp")
    constant = down_module(model.blocks[layer])(torch.zeros_like(neurons))  # type: ignore[misc]
    _check(model, layer, neurons @ weight.to(neurons) + constant, projected)
    own = through.pulled_back(direction)
    along = einsum(own, weight.to(own), "row position d_model, neuron d_model -> row position neuron")
    each = neurons.to(along) * along
    shift = (direction * torch.as_tensor(through.constant).to(direction)).sum(-1)
    return each, (own * constant.to(own)).sum(-1) + shift


def down_weight(model: TransformerBridge, layer: int) -> Float[Tensor, "neuron d_model"]:
    """What each neuron of a layer writes, before anything that stands between the MLP and the stream.

    Raises:
        ModelError: the layer has no single MLP.

    >>> down_weight(model, 5).shape == (model.cfg.d_mlp, model.cfg.d_model)
    True
    """
    module = down_module(model.blocks[layer])
    if module is None:
        down_projection(model, layer)  # says why
    assert module is not None
    return written_by(module, model.cfg.d_model)


def _check_heads(model: TransformerBridge, layer: int) -> None:
    layers = anatomy(model).layers
    if layers[layer].n_heads:
        return
    kind = type(model.original_model).__name__
    having = [str(one) for one, own in enumerate(layers) if own.n_heads]
    where = (
        f"Choose among those that have: {', '.join(having)}." if having else f"No layer of {kind} has: use another one."
    )
    raise ModelError(
        f"Layer {layer} has no attention heads that TransformerLens shows (attn.hook_z), so what it adds to the "
        f"residual stream cannot be told apart by head. {where}"
    )


def _check(model: TransformerBridge, layer: int, total: Tensor, projected: Tensor) -> None:
    error = float((total - projected).abs().max())
    if not error <= _ROUNDING * torch.finfo(projected.dtype).eps * float(projected.abs().max()):
        raise ModelError(_not_apart(model, layer))


def _not_apart(model: TransformerBridge, layer: int) -> str:
    return (
        f"What layer {layer} of {type(model.original_model).__name__} adds to the residual stream is not the sum of "
        "heads and one MLP, each through a norm and a multiplier at most, so it cannot be told apart. Use another "
        "model."
    )
