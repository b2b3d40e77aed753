"""Integrals of a gradient along the straight path from nothing to a state, held against what they must add up to.

Along the path α·w the gradient's part in the direction of w is dP/dα, so that what is attributed to all neurons of a
layer adds up to P(w) − P(0). Where P jumps, as it does where a norm's input is near zero, no fixed points meet it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Of a layer's change of P (or of a thousandth, where it hardly changes): what pieces may miss before they are halved.
_TOLERANCE, _LEAST = 0.01, 1e-3
_NODES = 7


class Asked(NamedTuple):
    """Shares of one layer's state at which P and its gradient are wanted."""

    layer: int
    shares: Float[Tensor, "share"]


class Answer(NamedTuple):
    """P at these shares, and its gradient with respect to the state there."""

    chance: Float[Tensor, "share"]
    gradient: Float[Tensor, "share neuron"]


Ask = Callable[[Sequence[Asked]], Sequence[Answer]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """What is attributed to each layer's neurons.

    Attributes:
        values: state × mean gradient along the path.
        change: P(w) − P(0), which a layer's values should add up to.
    """

    values: Float[Tensor, "layer neuron"]
    change: Float[Tensor, "layer"]


def right_sums(ask: Ask, states: Float[Tensor, "layer neuron"], steps: int) -> Attribution:
    """The rule of Dai et al. 2022: the mean over the right ends of ``steps`` equal pieces."""
    shares = torch.arange(0, steps + 1, dtype=states.dtype) / steps
    found = ask([Asked(layer, shares) for layer in range(len(states))])
    values = [state * one.gradient[1:].mean(0) for state, one in zip(states, found, strict=True)]
    change = [one.chance[-1] - one.chance[0] for one in found]
    return Attribution(values=torch.stack(values), change=torch.stack(change))


def adaptive_sums(ask: Ask, states: Float[Tensor, "layer neuron"], steps: int) -> Attribution:
    """Gauss–Legendre points in pieces; a piece that misses the change of P that it covers is cut where P changes most.

    At most ``steps`` points a layer on average, which go to the layers and places that need them.
    """
    nodes, weights = _gauss(min(_NODES, steps), states.dtype)
    whole = torch.tensor([0.0, 1.0], dtype=states.dtype)
    first = ask([Asked(layer, torch.cat([whole, nodes])) for layer in range(len(states))])
    pieces = [
        [_piece(state, weights, whole, one.chance[:2], nodes, one.chance[2:], one.gradient[2:])]
        for state, one in zip(states, first, strict=True)
    ]
    change = torch.stack([one.chance[1] - one.chance[0] for one in first])
    room = (steps - len(nodes) - len(whole)) * len(states)
    while parts := _affordable(_worst(pieces, change), pieces, len(nodes), room):
        room -= len(parts) * len(nodes)
        places = [ends[0] + (ends[1] - ends[0]) * nodes for _, _, ends, _ in parts]
        answers = ask([Asked(layer, own) for (layer, *_), own in zip(parts, places, strict=True)])
        done = {(layer, index) for layer, index, _, _ in parts}
        pieces = [
            [one for index, one in enumerate(own) if (layer, index) not in done] for layer, own in enumerate(pieces)
        ]
        for (layer, _, ends, chances), own, one in zip(parts, places, answers, strict=True):
            pieces[layer].append(_piece(states[layer], weights, ends, chances, own, one.chance, one.gradient))
    values = [torch.stack([one.values for one in own]).sum(0) for own in pieces]
    return Attribution(values=torch.stack(values), change=change)


RULES: dict[str, Callable[[Ask, Tensor, int], Attribution]] = {"adaptive": adaptive_sums, "right": right_sums}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """A part of the path: its ends with the points between them, P at each, and what is attributed on it."""

    points: Float[Tensor, "point"]
    chances: Float[Tensor, "point"]
    values: Float[Tensor, "neuron"]

    @property
    def missed(self) -> float:
        return abs(float(self.values.sum() - (self.chances[-1] - self.chances[0])))

    def cut(self) -> list[tuple[Tensor, Tensor]]:
        """The ends, and P there, of the parts before, in and after the gap between points over which P changes most."""
        most = int(self.chances.diff().abs().argmax())
        at = sorted({0, most, most + 1, len(self.points) - 1})
        return [(self.points[[a, b]], self.chances[[a, b]]) for a, b in pairwise(at)]


def _piece(
    state: Tensor, weights: Tensor, ends: Tensor, chances: Tensor, nodes: Tensor, between: Tensor, gradient: Tensor
) -> _Piece:
    values = state * (gradient * weights[:, None]).sum(0) * (ends[1] - ends[0])
    points, known = torch.cat([ends[:1], nodes, ends[1:]]), torch.cat([chances[:1], between, chances[1:]])
    return _Piece(points=points, chances=known, values=values)


def _worst(pieces: Sequence[Sequence[_Piece]], change: Float[Tensor, "layer"]) -> list[tuple[int, int]]:
    """The pieces to cut, those that miss most first: in each layer as many as it takes to come within the tolerance."""
    chosen: list[tuple[float, int, int]] = []
    for layer, own in enumerate(pieces):
        size = max(abs(float(change[layer])), _LEAST)
        left = sum(one.missed for one in own)
        for missed, index in sorted(((one.missed, index) for index, one in enumerate(own)), reverse=True):
            if left <= _TOLERANCE * size:
                break
            left -= missed
            chosen.append((missed / size, layer, index))
    return [(layer, index) for _, layer, index in sorted(chosen, reverse=True)]


def _affordable(
    worst: Sequence[tuple[int, int]], pieces: Sequence[Sequence[_Piece]], n_nodes: int, room: int
) -> list[tuple[int, int, Tensor, Tensor]]:
    """The parts of the first pieces to cut, as many as there is room for: layer, piece, ends, and P there."""
    parts: list[tuple[int, int, Tensor, Tensor]] = []
    for layer, index in worst:
        own = [(layer, index, *part) for part in pieces[layer][index].cut()]
        if (len(parts) + len(own)) * n_nodes > room:
            break
        parts += own
    return parts


def _gauss(n: int, dtype: torch.dtype) -> tuple[Float[Tensor, "node"], Float[Tensor, "node"]]:
    """Points and weights of Gauss and Legendre between 0 and 1."""
    points, weights = np.polynomial.legendre.leggauss(n)
    return torch.tensor((points + 1) / 2, dtype=dtype), torch.tensor(weights / 2, dtype=dtype)
