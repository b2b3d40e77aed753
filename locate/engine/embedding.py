"""What a model makes of a token before its first block: the stream's embedding, and in some models others beside it."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.readout import only_logits_at
from locate.model.devices import input_device
from locate.model.found import once
from locate.model.running import running


def other_embeddings(model: TransformerBridge) -> tuple[str, ...]:
    """The modules beside the embedding that look tokens up, by name; in most models there are none.

    Found by what modules are given in a short text: the token ids themselves.

    >>> other_embeddings(model)
    ()
    """
    return once(model, "modules that look tokens up", lambda: _find(model))


def embedded(model: TransformerBridge, tokens: Int[Tensor, "token"]) -> dict[str, Float[Tensor, "token _"]]:
    """What each of these modules makes of tokens.

    >>> embedded(model, torch.tensor([1, 2]))
    {}
    """
    with running(model):
        given = tokens.to(input_device(model))[None]
        return {name: model.original_model.get_submodule(name)(given)[0] for name in other_embeddings(model)}


class _Reached(Exception):
    """The first block is reached."""


def entering_blocks(
    model: TransformerBridge, tokens: Int[Tensor, "row position"]
) -> Float[Tensor, "row position d_model"]:
    """What enters the first block, which does not run: the embedding, with positions where they are added to it.

    >>> entering_blocks(model, torch.tensor([[1, 2]])).shape[:2]
    torch.Size([1, 2])
    """
    found: list[Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    with ExitStack() as stack:
        stack.enter_context(running(model))
        stack.callback(model.blocks[0].hook_in.register_forward_hook(stop).remove)
        stack.enter_context(suppress(_Reached))
        model(tokens.to(input_device(model)))
    return found[0]


def _find(model: TransformerBridge) -> tuple[str, ...]:
    tokens = torch.tensor([[3, 1, 2]], device=input_device(model))
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = args[0] if args else None
            reads = isinstance(given, Tensor) and given.shape == tokens.shape and bool((given == tokens).all())
            if reads and isinstance(output, Tensor) and output.is_floating_point():
                found.append(name)

        return hook

    own = {id(module) for module in model.embed.modules()}
    leaves = [
        (name, module) for name, module in model.original_model.named_modules()
        if id(module) not in own and next(module.children(), None) is None
    ]  # fmt: skip
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        with running(model), only_logits_at(model, torch.tensor([0]), torch.tensor([2])):
            model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(dict.fromkeys(found))
