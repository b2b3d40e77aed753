"""Caches of keys and values: one to record a run, one that gives the prefix to a resume, and the model's own form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import Cache, DynamicCache

from locate.engine.readout import only_logits_at
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.running import running

_N_TOKENS = 3
_CLOSE = 1e-2  # of the spread of the logits: a cache that forgets is off by about 1


class Recorder:
    """A cache that keeps every layer's keys and values of one pass, at all positions that pass.

    It has nothing but what attention asks of a cache: a block that keeps something else cannot use it, and says so.
    Values take the precision of the keys, as in a cache of transformers: where queries and keys are rotated in float32,
    TransformerLens has the pattern in it too.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys[layer_idx], self.values[layer_idx] = key, value.to(key.dtype)
        return key, self.values[layer_idx]


class PrefixCache:
    """A transformers cache in which every block finds the frozen keys and values of the prefix.

    ``update`` joins them to the new ones, which it stores in a recorder if anywhere, so one object serves a whole
    resume and gradients flow through the new part.
    """

    def __init__(self, prefix: Callable[[int], tuple[Tensor, Tensor]], recorder: Recorder | None = None) -> None:
        self._prefix, self._recorder = prefix, recorder

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self._recorder is not None:
            self._recorder.update(key, value, layer_idx)
        frozen_key, frozen_value = self._prefix(layer_idx)
        value = value.to(key.dtype)
        if frozen_key.shape[-2] == 0:
            return key, value
        return torch.cat([frozen_key, key], dim=-2), torch.cat([frozen_value, value], dim=-2)


def empty_cache(model: TransformerBridge) -> Cache | None:
    """A new cache for a model's own passes; None where it takes none.

    Layers that keep something other than keys and values, such as the state of a convolution, need a cache that was
    made for them.

    >>> empty_cache(model).get_seq_length()
    0
    """
    form = once(model, "form of its cache", lambda: _form(model))
    return None if form is None else form()


def recorded_layers(model: TransformerBridge) -> tuple[bool, ...]:
    """For each layer, whether its block runs with a cache of keys and values alone.

    A block that keeps more (the state of a convolution or of a recurrence) is run without a cache.
    """
    return once(model, "blocks that keep keys and values alone", lambda: _recorded(model))


def _form(model: TransformerBridge) -> Callable[[], Cache] | None:
    plain: Callable[[], Cache] = DynamicCache
    if _runs(model, plain()):
        return plain

    config: Any = model.original_model.config

    def own() -> Cache:
        return DynamicCache(config=config.get_text_config(decoder=True))

    return own if _continues(model, own) else None


def _runs(model: TransformerBridge, cache: Cache) -> bool:
    try:
        _logits(model, _few(model), cache)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever an unknown architecture raises
        return False
    return True


def _continues(model: TransformerBridge, form: Callable[[], Cache]) -> bool:
    """Whether a text goes on from such a cache as it does in a whole pass."""
    tokens = _few(model)
    try:
        cache = form()
        _logits(model, tokens[:, :-1], cache)
        continued = _logits(model, tokens[:, -1:], cache)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    whole = _logits(model, tokens, None)
    return float((continued - whole).abs().max()) <= _CLOSE * float(whole.std())


def _recorded(model: TransformerBridge) -> tuple[bool, ...]:
    refused: set[tuple[str, ...]] = set()
    while True:
        entered: list[int] = []
        takes = tuple(_built(block) not in refused for block in model.blocks)
        try:
            with _in_place(model, takes, entered) as cache:
                _logits(model, _few(model), cache)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            # The block that ran last is the one that has no use for it, and those that are built alike.
            if not entered or not takes[entered[-1]]:
                return (False,) * len(takes)
            refused.add(_built(model.blocks[entered[-1]]))
        else:
            return takes


@contextmanager
def _in_place(model: TransformerBridge, takes: tuple[bool, ...], entered: list[int]) -> Iterator[Cache | None]:
    cache, recorder = empty_cache(model), Recorder()

    def swap(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entered.append(layer)
            return with_cache(args, kwargs, cache, recorder if takes[layer] else None)

        return hook

    blocks = enumerate(model.blocks)
    handles = [block.register_forward_pre_hook(swap(layer), with_kwargs=True) for layer, block in blocks]
    try:
        yield cache
    finally:
        for handle in handles:
            handle.remove()


def with_cache(args: tuple[Any, ...], kwargs: dict[str, Any], cache: object, other: object) -> Any:
    """A block's arguments with another cache in a cache's place."""
    given = tuple(other if is_cache(value, cache) else value for value in args)
    return given, {name: other if is_cache(value, cache) else value for name, value in kwargs.items()}


def is_cache(value: object, cache: object) -> bool:
    """Whether this is the cache that a pass was given, or one that the model has made for itself."""
    return (cache is not None and value is cache) or isinstance(value, Cache)


def _built(block: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in block.named_parameters())


def _few(model: TransformerBridge) -> Tensor:
    return torch.arange(1, _N_TOKENS + 1, device=input_device(model))[None]


def _logits(model: TransformerBridge, tokens: Tensor, cache: Cache | None) -> Tensor:
    extra = {} if cache is None else {"past_key_values": cache}
    at = torch.tensor([0]), torch.tensor([tokens.shape[1] - 1])
    with running(model), only_logits_at(model, *at):
        return model(tokens, **extra)[0].float()
