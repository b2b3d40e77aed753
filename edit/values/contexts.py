"""The texts under which a new value must hold: the prompt alone and after sampled prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.requests.requests import EditRequest
from locate.engine import DEFAULT_BUDGET
from locate.engine.decode import Sampler, continued
from locate.engine.readout import only_logits_at
from locate.errors import FactError, listed
from locate.facts.prompts import encode_fact, encode_target, encode_text
from locate.model.context import check_room
from locate.model.devices import input_device

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
    sampler = Sampler(
        generator=torch.Generator().manual_seed(seed), top_k=5, forbidden=model.tokenizer.all_special_ids
    )  # fmt: skip
    openers = [encode_text(model, opener) for opener in _OPENERS]
    prefixes = [""]
    for length, count in lengths:
        # Openers with as many tokens are continued as one batch.
        for size in sorted({len(opener) for opener in openers}):
            chosen = (openers[i % len(openers)] for i in range(count))
            own = [opener for opener in chosen if len(opener) == size]
            if not own:
                continue
            texts = continued(model, torch.stack(own), length, sampler)
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
        label: says which request it is, in messages.
    """

    tokens: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    site: int
    target: Int[Tensor, "token"]
    readouts: tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
    essence: tuple[int, int]
    label: str = ""

    @property
    def n_prefixes(self) -> int:
        """Number of rows that ask for the target."""
        return len(self.tokens) - 1

    def up_to_site(self) -> list[Int[Tensor, "_"]]:
        """The tokens under each prefix up to the subject's last, without padding."""
        shifts = (self.attention_mask == 0).sum(1).tolist()
        return [self.tokens[row, shifts[row] : self.site + 1] for row in range(self.n_prefixes)]


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedContexts:
    """The contexts of several requests, padded so that all their sites are one column.

    Attributes:
        tokens: padded ids.
        attention_mask: 0 on the left padding.
        site: the column of every subject's last token.
        owner: for each row, the request that it belongs to.
        readouts: rows and columns whose logits predict the targets' tokens, request by request.
        targets: for each readout, the token that is wanted.
        askers: for each readout, its request.
        essences: for each request, row and column of the prediction that should not drift.
    """

    tokens: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    site: int
    owner: Int[Tensor, "row"]
    readouts: tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
    targets: Int[Tensor, "readout"]
    askers: Int[Tensor, "readout"]
    essences: tuple[Int[Tensor, "request"], Int[Tensor, "request"]]

    def only(self, requests: Int[Tensor, "kept"]) -> tuple[Int[Tensor, "_"], "AlignedContexts"]:
        """The rows of some requests, in ascending order, and the contexts with these rows alone."""
        rows = torch.isin(self.owner, requests).nonzero().squeeze(1)
        new_row = torch.full((len(self.owner),), -1)
        new_row[rows] = torch.arange(len(rows))
        new_request = torch.full((len(self.essences[0]),), -1)
        new_request[requests] = torch.arange(len(requests))
        kept = torch.isin(self.askers, requests)
        return rows, AlignedContexts(
            tokens=self.tokens[rows], attention_mask=self.attention_mask[rows], site=self.site,
            owner=new_request[self.owner[rows]], targets=self.targets[kept], askers=new_request[self.askers[kept]],
            readouts=(new_row[self.readouts[0][kept]], self.readouts[1][kept]),
            essences=(new_row[self.essences[0][requests]], self.essences[1][requests]),
        )  # fmt: skip


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
    check_room(model, max(map(len, rows)), fact.text, beside="its longest prefix and the target")
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
        essence=(len(prefixes), ends[-1] + shifts[-1]), label=request.describe(),
    )  # fmt: skip


def align_contexts(contexts: Sequence[ContextBatch]) -> AlignedContexts:
    """Several requests as one batch of rows, request by request.

    >>> align_contexts([build_contexts(model, request, ["", "I am here. "])] * 2).owner.tolist()
    [0, 0, 0, 1, 1, 1]
    """
    site = max(batch.site for batch in contexts)
    suffix = max(batch.tokens.shape[1] - batch.site for batch in contexts)
    tokens, masks, owners, askers, targets = [], [], [], [], []
    readout_rows, readout_columns, essence_rows, essence_columns = [], [], [], []
    start = 0
    for index, batch in enumerate(contexts):
        left, right = site - batch.site, site + suffix - (site - batch.site) - batch.tokens.shape[1]
        tokens.append(F.pad(batch.tokens, (left, right)))
        # What is padded on the right comes after every readout, where causality already hides it.
        masks.append(F.pad(F.pad(batch.attention_mask, (left, 0)), (0, right), value=1))
        owners.append(torch.full((len(batch.tokens),), index))
        rows, columns = batch.readouts
        readout_rows.append(rows + start)
        readout_columns.append(columns + left)
        askers.append(torch.full((len(rows),), index))
        targets.append(batch.target.repeat(batch.n_prefixes))
        essence_rows.append(batch.essence[0] + start)
        essence_columns.append(batch.essence[1] + left)
        start += len(batch.tokens)
    return AlignedContexts(
        tokens=torch.cat(tokens), attention_mask=torch.cat(masks), site=site, owner=torch.cat(owners),
        readouts=(torch.cat(readout_rows), torch.cat(readout_columns)), targets=torch.cat(targets),
        askers=torch.cat(askers), essences=(torch.tensor(essence_rows), torch.tensor(essence_columns)),
    )  # fmt: skip


def already_answered(
    model: TransformerBridge, contexts: Sequence[ContextBatch], *, budget: int = DEFAULT_BUDGET
) -> list[bool]:
    """For each request, whether the model's first choices after the bare prompt are the new target already.

    >>> already_answered(model, [build_contexts(model, request, [""])])
    [False]
    """
    found: list[bool] = []
    per_pass = max(1, budget // max(batch.tokens.shape[1] for batch in contexts))
    for first in range(0, len(contexts), per_pass):
        group = contexts[first : first + per_pass]
        shifts = [int((batch.attention_mask[0] == 0).sum()) for batch in group]
        columns = [b.readouts[1][b.readouts[0] == 0] - shift for b, shift in zip(group, shifts, strict=True)]
        rows = [b.tokens[0, shift : int(c[-1]) + 1 + shift] for b, shift, c in zip(group, shifts, columns, strict=True)]
        length = max(map(len, rows))
        tokens = torch.stack([F.pad(row, (0, length - len(row))) for row in rows])
        owners = torch.cat([torch.full_like(own, index) for index, own in enumerate(columns)])
        with torch.no_grad(), only_logits_at(model, owners, torch.cat(columns)):
            answers = model(tokens.to(input_device(model)))[0].argmax(-1).cpu()
        right = answers == torch.cat([batch.target for batch in group])
        found += [bool(right[owners == index].all()) for index in range(len(group))]
    return found


def check_answered(
    model: TransformerBridge,
    requests: Sequence[EditRequest],
    contexts: Sequence[ContextBatch] | None = None,
    *,
    budget: int = DEFAULT_BUDGET,
) -> None:
    """Whether all requests ask for something new.

    Args:
        model: a raw-mode bridge.
        requests: to be looked at.
        contexts: theirs, where they are known.
        budget: the most tokens in one pass.

    Raises:
        FactError: the model answers some with the new target already; the message names them.

    >>> check_answered(model, [request])
    """
    if contexts is None:
        contexts = [build_contexts(model, request, [""]) for request in requests]
    answered = already_answered(model, contexts, budget=budget)
    known = [request for request, is_answered in zip(requests, answered, strict=True) if is_answered]
    if not known:
        return
    if len(known) == 1:
        raise FactError(
            f"{known[0].describe()}: the model already answers {known[0].target_new!r}, so there is nothing to "
            "change. Choose another new target, or drop the request."
        )
    raise FactError(
        f"{len(known)} requests ask for what the model already answers, so there is nothing to change. Nothing was "
        f"changed. Choose other new targets, or drop them:\n{listed([request.describe() for request in known])}"
    )
