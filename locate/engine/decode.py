"""Letting the model continue texts: one loop, and ways to choose what comes next."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.caches import empty_cache
from locate.engine.readout import only_logits_at
from locate.errors import NumericsError
from locate.model.devices import input_device
from locate.model.running import running

# From the logits and the number of the step to a token per row.
Choose = Callable[[Float[Tensor, "row vocab"], int], Int[Tensor, "row"]]


def continue_tokens(
    model: TransformerBridge, tokens: Int[Tensor, "row position"], choose: Choose
) -> Iterator[Int[Tensor, "row made"]]:
    """All tokens made so far, on the CPU, after each further one.

    Args:
        model: a raw-mode bridge.
        tokens: prompts of one length.
        choose: picks a token per row: ``greedy``, a ``Sampler`` or ``SharedDraws``, or a function of one's own.

    Raises:
        NumericsError: the model's predictions are not finite.

    >>> steps = continue_tokens(model, torch.tensor([[1, 2]]), greedy)
    >>> next(steps).shape, next(steps).shape
    (torch.Size([1, 1]), torch.Size([1, 2]))
    """
    device, cache, rows = input_device(model), empty_cache(model), torch.arange(len(tokens))
    made, new = torch.empty(len(tokens), 0, dtype=torch.long), tokens
    extra = {} if cache is None else {"past_key_values": cache}
    while True:
        given = new if extra else torch.cat([tokens.cpu(), made], dim=1)
        with running(model), only_logits_at(model, rows, torch.full_like(rows, given.shape[1] - 1)):
            logits = model(given.to(device), **extra)[0]
        # The largest is not finite wherever one is NaN or too large.
        if not bool(logits.amax(-1).isfinite().all()):
            raise NumericsError(
                "The model's predictions are not finite, so no text can be sampled from it. Load it in bfloat16 or "
                "float32, or check its weights."
            )
        new = choose(logits, made.shape[1])[:, None]
        made = torch.cat([made, new.cpu()], dim=1)
        yield made


def continued(
    model: TransformerBridge, tokens: Int[Tensor, "row start"], length: int, choose: Choose,
    tick: Callable[[int], object] = lambda made: None,
) -> Int[Tensor, "row position"]:  # fmt: skip
    """The rows, each with ``length`` further tokens, on the CPU; ``tick`` is told of each step how many it made.

    Raises:
        NumericsError: the model's predictions are not finite.

    >>> continued(model, torch.tensor([[1, 2]]), 3, greedy).shape
    torch.Size([1, 5])
    """
    made = tokens.cpu()[:, :0]
    for made in islice(continue_tokens(model, tokens, choose), max(0, length)):
        tick(len(made))
    return torch.cat([tokens.cpu(), made], dim=1)


def end_tokens(model: TransformerBridge) -> set[int]:
    """Ids of the tokens with which the model ends a text.

    >>> model.tokenizer.eos_token_id in end_tokens(model)
    True
    """
    configured = getattr(model.original_model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, model.tokenizer.eos_token_id) if token is not None}


def greedy(logits: Float[Tensor, "row vocab"], step: int) -> Int[Tensor, "row"]:
    """The likeliest token.

    >>> greedy(torch.tensor([[0.1, 0.7, 0.2]]), 0)
    tensor([1])
    """
    return logits.argmax(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Draws every row's token from what the model predicts (temperature 1), all rows from one generator.

    Attributes:
        generator: of the CPU, so that a seed means the same text on every device.
        top_k: how many of the likeliest tokens are considered; by default all.
        forbidden: tokens that are never drawn: without those that end a text, no text ends early.
        forced: the first tokens, where they are not negative: rows may begin with texts of unequal length.

    >>> sampler = Sampler(generator=torch.Generator().manual_seed(0), top_k=2, forbidden=[1])
    >>> sampler(torch.tensor([[0.0, 99.0, -99.0]]), 0)
    tensor([0])
    """

    generator: torch.Generator
    top_k: int | None = None
    forbidden: Sequence[int] = ()
    forced: Int[Tensor, "row forced"] | None = None

    def __call__(self, logits: Float[Tensor, "row vocab"], step: int) -> Int[Tensor, "row"]:
        """A token per row."""
        forbidden = torch.tensor(self.forbidden, dtype=torch.long, device=logits.device)
        allowed = logits.float().index_fill(-1, forbidden, -torch.inf)
        best = None if self.top_k is None else allowed.topk(self.top_k)
        chances = (allowed if best is None else best.values).softmax(-1).cpu()
        new = torch.multinomial(chances, 1, generator=self.generator)
        new = (new if best is None else best.indices.cpu().gather(1, new))[:, 0]
        if self.forced is None or step >= self.forced.shape[1]:
            return new
        given = self.forced[:, step]
        return torch.where(given >= 0, given, new)


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedDraws:
    """Picks among the likeliest tokens by numbers that were drawn beforehand, so that no row depends on another.

    Attributes:
        draws: from 0 to 1, for each row and step.
        top: how many of the likeliest tokens are considered.

    >>> SharedDraws(draws=torch.tensor([[0.9]]), top=2)(torch.tensor([[0.0, 5.0, -9.0]]), 0)
    tensor([1])
    """

    draws: Float[Tensor, "row step"]
    top: int

    def __call__(self, logits: Float[Tensor, "row vocab"], step: int) -> Int[Tensor, "row"]:
        """A token per row."""
        best = logits.float().topk(self.top, dim=-1)
        shares = best.values.softmax(-1).cumsum(-1)
        place = (shares < self.draws[:, step, None].to(shares.device)).sum(-1, keepdim=True).clamp_max(self.top - 1)
        return best.indices.gather(1, place)[:, 0]
