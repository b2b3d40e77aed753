"""Letting the model continue texts."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from locate.engine.readout import only_logits_at
from locate.errors import NumericsError
from locate.model.devices import input_device


def sample_continuations(
    model: TransformerBridge,
    tokens: Int[Tensor, "row start"],
    length: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
    forced: Int[Tensor, "row forced"] | None = None,
) -> Int[Tensor, "row position"]:
    """Let the model continue every row by ``length`` sampled tokens (temperature 1).

    Special tokens are never sampled, so the text does not end early. ``forced`` gives the first of the
    new tokens where it is not negative: rows may begin with texts of unequal length.

    Raises:
        NumericsError: the model's predictions are not finite.
    """
    device = input_device(model)
    tokens = tokens.to(device)
    rows = torch.arange(len(tokens))
    forbidden = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long, device=device)
    cache, new = DynamicCache(), tokens
    for step in range(length):
        with torch.no_grad(), only_logits_at(model, rows, torch.full_like(rows, new.shape[1] - 1)):
            logits = model(new, past_key_values=cache)[0].float()
        logits[:, forbidden] = -torch.inf
        ids = None
        if top_k is not None:
            logits, ids = logits.topk(top_k)
        # Drawn on the CPU, so that a seed means the same text on every device.
        chances = logits.softmax(-1).cpu()
        if torch.isnan(chances).any():
            raise NumericsError(
                "The model's predictions are not finite, so no text can be sampled from it. Load it in bfloat16 or "
                "float32, or check its weights."
            )
        new = torch.multinomial(chances, 1, generator=generator)
        if ids is not None:
            new = ids.cpu().gather(1, new)
        if forced is not None and step < forced.shape[1]:
            given = forced[:, step : step + 1]
            new = torch.where(given >= 0, given, new)
        new = new.to(device)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


Choose = Callable[[Float[Tensor, "row vocab"], int], Int[Tensor, "row"]]


def continue_tokens(
    model: TransformerBridge, tokens: Int[Tensor, "row position"], choose: Choose
) -> Iterator[Int[Tensor, "row made"]]:
    """All tokens made so far, on the CPU, after each further one.

    Args:
        model: a raw-mode bridge.
        tokens: prompts of one length.
        choose: picks a token per row from the logits and the number of the step.

    >>> steps = continue_tokens(model, torch.tensor([[1, 2]]), lambda logits, step: logits.argmax(-1))
    >>> next(steps).shape, next(steps).shape
    (torch.Size([1, 1]), torch.Size([1, 2]))
    """
    rows, cache, new = torch.arange(len(tokens)), DynamicCache(), tokens.to(input_device(model))
    made = torch.empty(len(tokens), 0, dtype=torch.long)
    while True:
        with torch.no_grad(), only_logits_at(model, rows, torch.full_like(rows, new.shape[1] - 1)):
            logits = model(new, past_key_values=cache)[0]
        new = choose(logits, made.shape[1])[:, None]
        made = torch.cat([made, new.cpu()], dim=1)
        yield made
