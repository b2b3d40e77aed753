"""The texts under which a new value must hold: the prompt alone and after sampled prefixes."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.corpus import sample_continuations
from edit.requests import EditRequest
from locate.prompts import encode_fact, encode_target, encode_text

_OPENERS = ("The", "Therefore", "Because", "I", "You")
_ESSENCE = "{} is a"


def sample_prefixes(
    model: TransformerBridge, lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10)), seed: int = 0
) -> list[str]:
    """Short texts to stand before a prompt: for each (length, count), that many of that many tokens.

    The first is always empty. As in the published code, the model continues a few common openers,
    sampling among its five likeliest tokens.

    >>> prefixes = sample_prefixes(model)
    >>> len(prefixes), prefixes[0]
    (21, '')
    """
    generator = torch.Generator().manual_seed(seed)
    openers = [encode_text(model, opener) for opener in _OPENERS]
    prefixes = [""]
    for length, count in lengths:
        # Openers with as many tokens are continued as one batch.
        for size in sorted({len(opener) for opener in openers}):
            chosen = (openers[i % len(openers)] for i in range(count))
            own = [opener for opener in chosen if len(opener) == size]
            if not own:
                continue
            texts = sample_continuations(model, torch.stack(own), length, generator=generator, top_k=5)
            decoded = model.tokenizer.batch_decode(texts, skip_special_tokens=True)
            prefixes += [" ".join(text.split()) + ". " for text in decoded]
    return prefixes


@dataclass(frozen=True, kw_only=True, eq=False)
class ContextBatch:
    """A request's texts, padded so that the subject's last token is one column for all rows.

    Rows ``0 … n − 1`` are the prompt under each prefix, followed by the new target; the last row is
    ``"{subject} is a"``, under which the model should stay as it is.

    Attributes:
        tokens: padded ids.
        attention_mask: 0 on the left padding.
        site: the column of the subject's last token.
        target: ids of the new target.
        readouts: rows and columns whose logits predict the target's tokens, row by row.
        essence: row and column of the last row's prediction.
    """

    tokens: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    site: int
    target: Int[Tensor, "token"]
    readouts: tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
    essence: tuple[int, int]

    @property
    def n_prefixes(self) -> int:
        """Number of rows that ask for the target."""
        return len(self.tokens) - 1


def build_contexts(model: TransformerBridge, request: EditRequest, prefixes: list[str]) -> ContextBatch:
    """Tokenise a request under its prefixes and align the rows at the subject's last token.

    Everything before the site is then padding or frozen prefix, and one resumed pass serves all rows.

    >>> batch = build_contexts(model, request, sample_prefixes(model))
    >>> batch.tokens.shape[0]
    22
    """
    fact = request.fact
    target = encode_target(model, fact.text, request.target_new)
    rows, sites, ends = [], [], []
    for prefix in prefixes:
        prompt = encode_fact(model, fact, prefix=prefix)
        rows.append(torch.cat([prompt.tokens, target[:-1]]))
        sites.append(prompt.last_subject_position)
        ends.append(len(prompt.tokens) - 1)
    essence = encode_fact(model, fact, template=_ESSENCE)
    rows.append(essence.tokens)
    sites.append(essence.last_subject_position)
    ends.append(len(essence.tokens) - 1)

    site = max(sites)
    shifts = [site - own for own in sites]
    length = max(len(row) + shift for row, shift in zip(rows, shifts, strict=True))
    tokens = torch.full((len(rows), length), model.tokenizer.pad_token_id or 0)
    mask = torch.ones_like(tokens)
    for index, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        tokens[index, shift : shift + len(row)] = row
        # Padding on the right comes after every readout, where causality already hides it.
        mask[index, :shift] = 0
    columns = [ends[i] + shifts[i] + j for i in range(len(prefixes)) for j in range(len(target))]
    return ContextBatch(
        tokens=tokens, attention_mask=mask, site=site, target=target,
        readouts=(torch.arange(len(prefixes)).repeat_interleave(len(target)), torch.tensor(columns)),
        essence=(len(prefixes), ends[-1] + shifts[-1]),
    )  # fmt: skip
