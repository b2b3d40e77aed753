"""Fused weights that a bridge computes with copies of, so that what is written is not what computes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.model.anatomy import once
from locate.model.weights import hf_modules, hf_parameters


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A parameter that the model has and does not compute with, and what it computes with instead.

    Attributes:
        name: the original Hugging Face name.
        parameter: of that name.
        copies: what is read in its place, each with the rows that it is a copy of.
    """

    name: str
    parameter: nn.Parameter
    copies: tuple[tuple[nn.Parameter, Int[Tensor, "_"]], ...]

    def effective(self) -> Tensor:
        """The parameter as the model computes."""
        whole = self.parameter.detach().clone()
        for copy, rows in self.copies:
            whole[rows.to(whole.device)] = copy.detach().to(whole)
        return whole


def copied(model: TransformerBridge) -> tuple[Copied, ...]:
    """The parameters that the model computes with copies of, found once: when it is loaded, while both are alike.

    >>> copied(model)
    ()
    """
    return once(model, "copied weights", lambda: tuple(_find(model)))


def _find(model: TransformerBridge) -> Iterator[Copied]:
    whole = {name: one for name, one in hf_parameters(model).items() if not one.is_meta}
    shared = {one.untyped_storage().data_ptr() for one in whole.values()}
    known = {id(one) for one in whole.values()}
    fused = {path: module for path, module in hf_modules(model) if module._parameters.get("weight") is not None}
    for block in model.blocks:
        own = [
            module for module in block.modules()
            if (one := module._parameters.get("weight")) is not None and one.ndim == 2 and not one.is_meta
            and id(one) not in known and one.untyped_storage().data_ptr() not in shared
        ]  # fmt: skip
        parts = list({id(module.weight): module for module in own}.values())
        inside = {id(parameter) for parameter in block.parameters()}
        for path, module in fused.items():
            if parts and id(module.weight) in inside and (places := _rows(module, parts)):
                for leaf, parameter in module.named_parameters(recurse=False):
                    pairs = tuple((one._parameters[leaf], rows) for one, rows in zip(parts, places, strict=True))
                    yield Copied(name=path + leaf, parameter=parameter, copies=pairs)


def _rows(fused: nn.Module, parts: list[nn.Module]) -> list[Tensor] | None:
    """Which rows of a module's weight each of some parts is a copy of; none where they are not all of it."""
    weight, *theirs = (cast(Tensor, module.weight).detach() for module in (fused, *parts))
    sizes = [part.shape for part in theirs]
    if weight.ndim != 2 or sum(size[0] for size in sizes) != len(weight) or any(s[1] != weight.shape[1] for s in sizes):
        return None
    at = {row.tobytes(): index for index, row in enumerate(_bytes(weight))}
    found = [[at.get(row.tobytes(), -1) for row in _bytes(part)] for part in theirs]
    every = sorted(index for one in found for index in one)
    return [torch.tensor(one) for one in found] if every == list(range(len(weight))) else None


def _bytes(matrix: Tensor) -> np.ndarray:
    return matrix.contiguous().view(torch.uint8).cpu().numpy()
