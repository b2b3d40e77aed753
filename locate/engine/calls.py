"""What a transformer block is called with, and how to call it again on part of the sequence.

This is the one place that knows how architectures differ in their blocks' arguments. It knows them by
shape, not by name: attention masks, position ids, rotary bases and alibi biases each have a shape
of their own, and the cache is recognised as the object that was handed in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PrefixCache:
    """A transformers cache in which every block finds the frozen keys and values of the prefix.

    ``update`` joins them to the new ones and stores nothing, so one object serves a whole resume
    and gradients flow through the new part.
    """

    def __init__(self, prefix: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self._prefix = prefix

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        frozen_key, frozen_value = self._prefix(layer_idx)
        if frozen_key.shape[-2] == 0:
            return key, value
        return torch.cat([frozen_key, key], dim=-2), torch.cat([frozen_value, value], dim=-2)


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """The arguments that one block received in a full run over ``batch`` rows of ``length`` positions."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cache: object
    batch: int
    length: int

    def without_states(self) -> "BlockCall":
        """The same call with the states left out, to be kept."""
        if self.args:
            return _replaced(self, args=(None, *self.args[1:]))
        return _replaced(self, kwargs={**self.kwargs, "hidden_states": None})

    def replay(
        self,
        block: Callable[..., Any],
        hidden: Float[Tensor, "row suffix d_model"],
        rows: Int[Tensor, "row"],
        start: int,
        cache: object,
    ) -> Float[Tensor, "row suffix d_model"]:
        """Call the block on positions ``start:`` of the frozen rows ``rows``, with other states and cache."""

        def cut(value: Any) -> Any:
            if value is self.cache:
                return cache
            if isinstance(value, Tensor):
                return self._slice(value, rows, start)
            if isinstance(value, tuple | list):
                return type(value)(cut(item) for item in value)
            return value

        args = tuple(cut(value) for value in self.args[1:])
        kwargs = {name: cut(value) for name, value in self.kwargs.items() if name != "hidden_states"}
        # States go in by position or by name as they came, and always with a second argument:
        # a bridge block called with states alone would wrap its output in a tuple.
        output = block(hidden, *args, **kwargs) if self.args else block(hidden_states=hidden, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _slice(self, value: Tensor, rows: Int[Tensor, "row"], start: int) -> Tensor:
        if value.ndim >= 1 and value.shape[0] > self.batch and value.shape[0] % self.batch == 0 and value.ndim == 3:
            # Alibi: batch and heads are flattened together, and the bias is per key.
            heads = value.shape[0] // self.batch
            return value.unflatten(0, (self.batch, heads))[rows.to(value.device)].flatten(0, 1)
        if value.ndim >= 2 and self.batch > 1 and value.shape[0] == self.batch:
            value = value[rows.to(value.device)]
        match value.ndim:
            case 1 if value.shape[0] == self.length:  # cache positions
                return value[start:]
            case 2 if value.shape[1] == self.length:  # position ids
                return value[:, start:]
            case 3 if value.shape[1] == self.length:  # rotary bases
                return value[:, start:]
            case 4 if value.shape[-2] == self.length:  # attention mask: queries, then keys
                return value[..., start:, :]
        return value


def _replaced(call: BlockCall, **changes: Any) -> BlockCall:
    fields = {"args": call.args, "kwargs": call.kwargs, "cache": call.cache, "batch": call.batch, "length": call.length}
    return BlockCall(**{**fields, **changes})
