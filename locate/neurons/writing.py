"""What single neurons and heads write to the stream at the last position, each a vector that adds up to the layer's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import FrozenRun
from locate.errors import ModelError
from locate.model.anatomy import anatomy, down_module
from locate.model.weights import written_by
from locate.sites.contributions import Passage, down_weight, passage
from locate.sites.table import hook_name

# Of the largest value, in units of its precision: more than a long sum is rounded, and much less than a part of it.
_ROUNDING = 1000
_OF_HEADS = ("attn_head_v", "attn_head_pattern", "attn_head_z", "attn_proj_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class Neurons:
    """What the neurons of a layer write at some positions of one run.

    Attributes:
        stream: what stands in the stream before the MLP writes there.
        activations: of the neurons.
        rows: of the down-projection, one for each neuron: what it would write at an activation of 1.
        passage: how that reaches the stream.
    """

    stream: Float[Tensor, "position d_model"]
    activations: Float[Tensor, "position neuron"]
    rows: Float[Tensor, "neuron d_model"]
    passage: Passage

    def through(self, vectors: Float[Tensor, "1 1 neuron d_model"], position: int) -> Float[Tensor, "neuron d_model"]:
        """What of parts of the down-projection's output at one of the positions arrives in the stream."""
        own = self.passage
        gain = None if own.gain is None else own.gain[:, position][:, None]
        return replace(own, gain=gain, shift=None)(vectors)[0, 0]

    def at(self, position: int, which: Int[Tensor, "neuron"] | None = None) -> Float[Tensor, "neuron d_model"]:
        """What each neuron writes at one of the positions, or only some of them."""
        rows, factors = self.rows, self.activations[position]
        if which is not None:
            rows, factors = (one[which.to(one.device)] for one in (rows, factors))
        return self.through(factors[None, None, :, None] * rows.to(factors), position)


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """What a layer's heads write at the last position, from each position that they attend to.

    Attributes:
        stream: what stands in the stream before attention writes there.
        vectors: what is added to it.
    """

    stream: Float[Tensor, "d_model"]
    vectors: Float[Tensor, "head source d_model"]


def neuron_hooks(model: TransformerBridge, layers: Sequence[int]) -> list[str]:
    """The hook points whose values ``neurons_written`` needs.

    >>> neuron_hooks(model, [0])
    ['blocks.0.mlp.out.hook_in', 'blocks.0.mlp.out.hook_out', 'blocks.0.hook_attn_out']
    """
    found = anatomy(model).layers
    return [
        hook_name(one, layer) for layer in layers for one in ("neuron", "down_out", "attn_out")
        if one != "attn_out" or found[layer].n_heads
    ]  # fmt: skip


def head_hooks(model: TransformerBridge, layers: Sequence[int]) -> list[str]:
    """The hook points whose values ``heads_written`` needs.

    >>> head_hooks(model, [0])[0]
    'blocks.0.attn.hook_v'
    """
    return [hook_name(one, layer) for layer in layers for one in _OF_HEADS]


def layers_of_heads(model: TransformerBridge) -> list[int]:
    """The layers with attention heads."""
    return [layer for layer, own in enumerate(anatomy(model).layers) if own.n_heads]


@torch.no_grad()
def neurons_written(run: FrozenRun, layer: int, positions: slice) -> Neurons:
    """What the neurons of a layer write, from a run that kept ``neuron_hooks``.

    Raises:
        ModelError: the layer has no single MLP, or what it adds is not what its neurons write, through a norm and a
            multiplier at most.

    >>> from locate.engine import freeze
    >>> run = freeze(model, torch.tensor([[1, 2, 3]]), keep=neuron_hooks(model, [5]))
    >>> neurons_written(run, 5, slice(-1, None)).at(0).shape == (model.cfg.d_mlp, model.cfg.d_model)
    True
    """
    model, own = run.model, anatomy(run.model).layers[layer]
    rows = down_weight(model, layer).detach()
    projected = run.kept[hook_name("down_out", layer)][:, positions]
    activations = run.kept[hook_name("neuron", layer)][0, positions]
    constant = down_module(model.blocks[layer])(torch.zeros_like(activations))  # type: ignore[misc]
    _check(model, layer, activations @ rows.to(activations) + constant, projected[0])
    stream = run.residuals[layer][0, positions]
    if own.n_heads:
        stream = stream + run.kept[hook_name("attn_out", layer)][0, positions].to(stream)
    return Neurons(
        stream=stream.float(), activations=activations.float(), rows=rows,
        passage=passage(model, layer, projected, "mlp"),
    )  # fmt: skip


@torch.no_grad()
def heads_written(run: FrozenRun, layer: int) -> Heads:
    """What the heads of a layer write at the last position, from a run that kept ``head_hooks``.

    Raises:
        ModelError: a head's output is not its pattern times its values, or as ``contributions`` does.

    >>> from locate.engine import freeze
    >>> run = freeze(model, torch.tensor([[1, 2, 3]]), keep=head_hooks(model, [5]))
    >>> heads_written(run, 5).vectors.shape[:2]
    torch.Size([9, 3])
    """
    model = run.model
    values, pattern, z, projected = (run.kept[hook_name(one, layer)] for one in _OF_HEADS)
    by_source = head_values(values[0], pattern[0, :, -1])
    _check(model, layer, by_source.sum(1), z[0, -1])
    through = passage(model, layer, projected[:, -1:])
    weight = written_by(model.blocks[layer].attn.o.original_component, model.cfg.d_model).detach().to(z)
    weight = rearrange(weight, "(head d_head) d_model -> head d_head d_model", head=z.shape[-2])
    written = einsum(by_source, weight, "head source d_head, head d_head d_model -> head source d_model")
    return Heads(stream=run.residuals[layer][0, -1].float(), vectors=through(written[None, None])[0, 0].float())


def head_values(
    values: Float[Tensor, "source kv_head d_head"], pattern: Float[Tensor, "head source"]
) -> Float[Tensor, "head source d_head"]:
    """What each head takes from each position; key-value heads serve groups of heads.

    >>> head_values(torch.ones(3, 1, 4), torch.full((2, 3), 0.5)).shape
    torch.Size([2, 3, 4])
    """
    group = len(pattern) // values.shape[1]
    of_head = values.repeat_interleave(group, dim=1)
    return einsum(of_head, pattern.to(of_head), "source head d_head, head source -> head source d_head")


def _check(model: TransformerBridge, layer: int, made: Tensor, found: Tensor) -> None:
    size = max(float(found.abs().max()), 1e-30)
    if made.shape != found.shape or not (
        float((made - found).abs().max()) <= _ROUNDING * torch.finfo(found.dtype).eps * size
    ):
        raise ModelError(_not_apart(model, layer))


def _not_apart(model: TransformerBridge, layer: int) -> str:
    return (
        f"What layer {layer} of {type(model.original_model).__name__} adds to the residual stream is not the sum of "
        "what neurons write and of what heads take from each position, each through a norm and a multiplier at most, "
        "so it cannot be told apart by them. Use another model, or knowledge_neurons."
    )
