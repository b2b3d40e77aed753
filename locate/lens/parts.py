"""What each part of a model adds to the last position's stream, along one direction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import FrozenRun
from locate.errors import LocateError, ModelError
from locate.model.anatomy import anatomy
from locate.model.weights import check_down_projections
from locate.sites.contributions import attention_contributions, neuron_contributions
from locate.sites.places import layers_with
from locate.sites.site import Site
from locate.sites.table import hook_name

By = Literal["component", "head", "neuron", "layer"]
# What is read of a layer's attention and MLP, where they are told apart further.
_OF_HEADS = ("attn_head_z", "attn_proj_out")
_OF_NEURONS = ("mlp_neurons", "down_out")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of part.

    Attributes:
        title: in figures.
        site: where it writes, by the table of places; None for what is no place.
        unit: what single ones of a layer are told apart by.
        form: of a part's name, from its layer and unit.
    """

    title: str
    form: str
    site: str | None = None
    unit: str | None = None


KINDS: dict[str, Kind] = {
    "embed": Kind(title="embedding", form="embed"),
    "layer": Kind(title="layer", form="l{layer}", site="resid"),
    "attn": Kind(title="attention", form="a{layer}", site="attn"),
    "head": Kind(title="head", form="a{layer}.h{unit}", site="attn_head", unit="head"),
    "attn_bias": Kind(title="attention's bias", form="a{layer}.bias"),
    "mlp": Kind(title="MLP", form="m{layer}", site="mlp"),
    "neuron": Kind(title="neuron", form="m{layer}.n{unit}", site="neuron", unit="neuron"),
    "mlp_bias": Kind(title="MLP's bias", form="m{layer}.bias"),
    "bias": Kind(title="final biases", form="bias"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What parts of one kind in one layer add along a direction; one number, or one for each unit."""

    kind: str
    layer: int
    values: Float[Tensor, "unit"]

    @property
    def units(self) -> np.ndarray:
        """The unit of each value, −1 for a part that is no unit."""
        return np.arange(len(self.values)) if KINDS[self.kind].unit else np.array([-1])


def part_name(kind: str, layer: int, unit: int) -> str:
    """What a part is called.

    >>> part_name("head", 3, 1), part_name("mlp", 5, -1), part_name("neuron", 5, 17)
    ('a3.h1', 'm5', 'm5.n17')
    """
    return KINDS[kind].form.format(layer=layer, unit=unit)


def part_site(kind: str, layer: int, unit: int) -> Site | None:
    """The place where a part writes; None for embeddings and biases.

    >>> part_site("head", 3, 1)
    Site(kind='attn_head', layer=3, position=None, head=1, neuron=None)
    """
    own = KINDS[kind]
    return None if own.site is None else Site(own.site, layer=layer, **({} if own.unit is None else {own.unit: unit}))


def check_by(model: TransformerBridge, by: str) -> None:
    """Whether a model's stream can be told apart so.

    Raises:
        LocateError: there is no such way.
        ModelError: a layer adds what is neither attention nor an MLP, or has no neurons that can be told apart.

    >>> check_by(model, "head")
    """
    if by not in get_args(By):
        raise LocateError(f"by must be one of {', '.join(get_args(By))}, found {by!r}.")
    if by == "layer":
        return
    if others := [str(layer) for layer, one in enumerate(anatomy(model).layers) if not one.adds_up]:
        raise ModelError(
            f"In layers {', '.join(others)} of {type(model.original_model).__name__} the residual stream is not what "
            "entered plus what attention and one MLP add, each through a norm and a multiplier at most, so that it "
            "cannot be told apart. Ask by='layer', which counts all that a layer changes as one."
        )
    if by == "neuron":
        check_down_projections(model)


def read_at(model: TransformerBridge, by: str) -> list[str]:
    """The hook points whose values ``parts`` needs."""
    if by == "layer":
        return []
    names = []
    for layer, own in enumerate(anatomy(model).layers):
        kinds = list(_OF_HEADS if by == "head" and own.n_heads else ["attn"] if _has_attention(model, layer) else [])
        if own.has_mlp:
            kinds += _OF_NEURONS if by == "neuron" else ["mlp"]
        names += [hook_name(kind, layer) for kind in kinds]
    return names


def parts(run: FrozenRun, row: int, by: str, direction: Float[Tensor, "d_model"]) -> Iterator[Written]:
    """What each part adds along a direction at the last position of a row: the embedding, and each layer's in turn."""

    def last(name: str, layer: int) -> Tensor:
        return run.kept[hook_name(name, layer)][row : row + 1, -1:]

    def along(states: Tensor) -> Float[Tensor, "unit"]:
        return states.flatten(0, -2).to(direction) @ direction

    model, entering = run.model, [state[row : row + 1, -1:] for state in run.residuals]
    yield Written(kind="embed", layer=-1, values=along(entering[0]))
    for layer, own in enumerate(anatomy(model).layers):
        if by == "layer":
            before, after = (state.to(direction) for state in entering[layer : layer + 2])
            yield Written(kind="layer", layer=layer, values=along(after - before))
            continue
        if by == "head" and own.n_heads:
            z, projected = (last(name, layer) for name in _OF_HEADS)
            heads, bias = attention_contributions(model, layer, z, projected)
            yield Written(kind="head", layer=layer, values=along(heads))
            yield Written(kind="attn_bias", layer=layer, values=along(bias))
        elif _has_attention(model, layer):
            yield Written(kind="attn", layer=layer, values=along(last("attn", layer)))
        if by == "neuron":
            neurons, projected = (last(name, layer) for name in _OF_NEURONS)
            along_here = direction[None, None].to(neurons.device)
            each, bias = neuron_contributions(model, layer, neurons, projected, along_here)
            yield Written(kind="neuron", layer=layer, values=each.flatten())
            yield Written(kind="mlp_bias", layer=layer, values=bias.flatten())
        elif own.has_mlp:
            yield Written(kind="mlp", layer=layer, values=along(last("mlp", layer)))


def joined(written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Kinds, layers, units and values of all parts, side by side."""
    sizes = [len(one.values) for one in written]
    kinds = np.repeat([one.kind for one in written], sizes)
    layers = np.repeat([one.layer for one in written], sizes)
    units = np.concatenate([one.units for one in written])
    return kinds, layers, units, torch.cat([one.values.double().cpu() for one in written]).numpy()


def _has_attention(model: TransformerBridge, layer: int) -> bool:
    """Whether anything is added there before the MLP, heads or not."""
    return layer in layers_with(model, "attn")
