"""The texts under which a new value must hold: the prompt alone and after sampled prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.requests.requests import EditRequest
from edit.values.endings import endings_of
from locate.engine import DEFAULT_BUDGET
from locate.engine.decode import Sampler, continued
from locate.engine.readout import only_logits_at
from locate.engine.rows import Budget, Extent, aligned, padded, passes
from locate.errors import FactError, counted, listed
from locate.facts.answers import first_difference
from locate.facts.prompts import Prompt, encode_fact, encode_target, encode_text, token_strings
from locate.model.context import check_room
from locate.model.devices import input_device
from locate.model.running import running

_OPENERS = ("The", "Therefore", "Because", "I", "You")
_ESSENCE = "{} is a"

# Texts that name a subject, and what the prompt then calls it.
Openings = tuple[tuple[str, str], ...]


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
class Context:
    """One text that a request is read in, as it is, without padding.

    Attributes:
        tokens: its ids.
        site: the position of the subject's last token.
        end: the position of the prompt's last token, whose logits predict what follows.
    """

    tokens: Int[Tensor, "position"]
    site: int
    end: int

    @property
    def up_to_site(self) -> Int[Tensor, "_"]:
        """The tokens up to the subject's last."""
        return self.tokens[: self.site + 1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """All texts of a request. They stay as long as they are until some are run together.

    Attributes:
        asking: the prompt under each prefix, the bare one first, each with the new target but for its last token, which
            is there as well where the answer shall end.
        restated: the same of texts that name the subject first and ask about it then.
        essence: ``"{subject} is a"``, under which the model should stay as it is.
        target: ids of the new target.
        label: says which request it is, in messages.
        spelled: the new target's tokens as text.
        endings: tokens of which one shall follow the target; none where it need not end.
    """

    asking: tuple[Context, ...]
    essence: Context
    target: Int[Tensor, "token"]
    label: str = ""
    spelled: tuple[str, ...] = ()
    restated: tuple[Context, ...] = ()
    endings: Int[Tensor, "ending"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def rows(self) -> tuple[Context, ...]:
        """Those that ask for the target, and the essence last."""
        return (*self.asking, *self.restated, self.essence)

    @property
    def extent(self) -> Extent:
        """What they take of a pass: the most tokens from the site on, which every step runs, and before it."""
        return Extent(
            length=max(len(row.tokens) - row.site for row in self.rows), beside=max(row.site for row in self.rows),
            rows=len(self.rows),
        )  # fmt: skip


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
        ends: rows and columns whose logits predict what follows the targets that shall end, request by request.
        enders: for each of these, its request.
        endings: for each request, the tokens that may follow; -1 fills the rows.
    """

    tokens: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    site: int
    owner: Int[Tensor, "row"]
    readouts: tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
    targets: Int[Tensor, "readout"]
    askers: Int[Tensor, "readout"]
    essences: tuple[Int[Tensor, "request"], Int[Tensor, "request"]]
    ends: tuple[Int[Tensor, "end"], Int[Tensor, "end"]]
    enders: Int[Tensor, "end"]
    endings: Int[Tensor, "request ending"]

    def only(self, requests: Int[Tensor, "kept"]) -> tuple[Int[Tensor, "_"], "AlignedContexts"]:
        """The rows of some requests, in ascending order, and the contexts with these rows alone."""
        rows = torch.isin(self.owner, requests).nonzero().squeeze(1)
        new_row = torch.full((len(self.owner),), -1)
        new_row[rows] = torch.arange(len(rows))
        new_request = torch.full((len(self.essences[0]),), -1)
        new_request[requests] = torch.arange(len(requests))
        kept, ending = torch.isin(self.askers, requests), torch.isin(self.enders, requests)
        return rows, AlignedContexts(
            tokens=self.tokens[rows], attention_mask=self.attention_mask[rows], site=self.site,
            owner=new_request[self.owner[rows]], targets=self.targets[kept], askers=new_request[self.askers[kept]],
            readouts=(new_row[self.readouts[0][kept]], self.readouts[1][kept]),
            essences=(new_row[self.essences[0][requests]], self.essences[1][requests]),
            ends=(new_row[self.ends[0][ending]], self.ends[1][ending]), enders=new_request[self.enders[ending]],
            endings=self.endings[requests],
        )  # fmt: skip


def build_contexts(
    model: TransformerBridge, request: EditRequest, prefixes: Sequence[str], *, openings: Openings = (),
    ends: bool = False,
) -> Contexts:  # fmt: skip
    """Tokenise a request under its prefixes.

    Args:
        model: whose tokenizer.
        request: what is asked for.
        prefixes: texts to stand before the prompt, the empty one first.
        openings: texts that name the subject before the prompt asks about it: each with ``{}`` in its place, and the
            word that stands for it in the prompt.
        ends: whether the answer shall end.

    Raises:
        FactError: a text is too long or cannot be used, or the new target begins with white space alone.

    >>> len(build_contexts(model, request, sample_prefixes(model)).rows)
    22
    """
    fact = request.fact
    target = _taught(model, request)
    given = target if ends else target[:-1]
    asking = tuple(_context(encode_fact(model, fact, prefix=prefix), given) for prefix in prefixes)
    templates = [opening + fact.prompt.replace("{}", word) for opening, word in openings]
    restated = tuple(_context(encode_fact(model, fact, template=template), given) for template in templates)
    longest = max(len(row.tokens) for row in (*asking, *restated))
    check_room(model, longest, fact.text, beside="its longest prefix and the target")
    essence = _context(encode_fact(model, fact, template=_ESSENCE), target[:0])
    return Contexts(
        asking=asking,
        essence=essence,
        target=target,
        label=request.describe(),
        spelled=tuple(token_strings(model, target)),
        restated=restated,
        endings=endings_of(model, encode_fact(model, fact), request.target_new) if ends else target[:0],
    )


def _taught(model: TransformerBridge, request: EditRequest) -> Int[Tensor, "token"]:
    """The new target's tokens, of which the first that is its own says something."""
    prompt = encode_fact(model, request.fact)
    new, old = (encode_target(model, prompt, answer) for answer in (request.target_new, request.fact.target))
    place = first_difference(new.tolist(), old.tolist())
    if place == 0 and not (spelled := token_strings(model, new))[0].strip():
        raise FactError(
            f"{request.describe()}: the new answer's first token is white space alone ({spelled}), so that an edit "
            "would teach the model to write a space there. Where none belongs, say joined=True; where one does, put "
            "it at the end of the prompt."
        )
    return new


def _context(prompt: Prompt, continuation: Int[Tensor, "_"]) -> Context:
    tokens = torch.cat([prompt.tokens, continuation])
    return Context(tokens=tokens, site=prompt.last_subject_position, end=len(prompt.tokens) - 1)


def align_contexts(contexts: Sequence[Contexts]) -> AlignedContexts:
    """Several requests as one batch of rows, request by request, padded so that all sites are one column.

    Everything before the site is then padding or frozen prefix, and one resumed pass serves all rows.

    >>> align_contexts([build_contexts(model, request, ["", "I am here. "])] * 2).owner.tolist()
    [0, 0, 0, 1, 1, 1]
    """
    rows = [(index, row) for index, one in enumerate(contexts) for row in one.rows]
    site = max(row.site for _, row in rows)
    tokens, mask = aligned([row.tokens for _, row in rows], [row.site for _, row in rows])
    readouts: list[tuple[int, int, int, int]] = []
    essences: list[tuple[int, int]] = []
    ends: list[tuple[int, int, int]] = []
    for place, (index, row) in enumerate(rows):
        start = site - row.site
        if row is contexts[index].essence:
            essences.append((place, start + row.end))
            continue
        wanted = enumerate(contexts[index].target.tolist())
        readouts += [(place, start + row.end + step, token, index) for step, token in wanted]
        if len(contexts[index].endings):
            ends.append((place, start + row.end + len(contexts[index].target), index))
    places, columns, targets, askers = torch.tensor(readouts).T
    essence_rows, essence_columns = torch.tensor(essences).T
    end_rows, end_columns, enders = torch.tensor(ends, dtype=torch.long).view(-1, 3).T
    return AlignedContexts(
        tokens=tokens, attention_mask=mask, site=site, owner=torch.tensor([index for index, _ in rows]),
        readouts=(places, columns), targets=targets, askers=askers, essences=(essence_rows, essence_columns),
        ends=(end_rows, end_columns), enders=enders, endings=padded([one.endings for one in contexts], fill=-1),
    )  # fmt: skip


def already_answered(
    model: TransformerBridge, contexts: Sequence[Contexts], *, budget: int = DEFAULT_BUDGET
) -> list[bool]:
    """For each request, whether the model's first choices after the bare prompt are the new target already.

    >>> already_answered(model, [build_contexts(model, request, [""])])
    [False]
    """
    extents = [Extent(length=len(one.asking[0].tokens), readouts=len(one.target)) for one in contexts]
    found: dict[int, bool] = {}
    for group in passes(extents, Budget.of(model, budget)):
        own = [contexts[index] for index in group]
        bare = [one.asking[0] for one in own]
        tokens = padded([row.tokens for row in bare])
        owners = torch.arange(len(own)).repeat_interleave(torch.tensor([len(one.target) for one in own]))
        columns = torch.cat([row.end + torch.arange(len(one.target)) for row, one in zip(bare, own, strict=True)])
        with running(model), only_logits_at(model, owners, columns):
            answers = model(tokens.to(input_device(model)))[0].argmax(-1).cpu()
        right = answers == torch.cat([one.target for one in own])
        found |= {index: bool(right[owners == row].all()) for row, index in enumerate(group)}
    return [found[index] for index in range(len(contexts))]


def check_answered(
    model: TransformerBridge,
    requests: Sequence[EditRequest],
    contexts: Sequence[Contexts] | None = None,
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
        f"{counted(len(known), 'request')} for what the model already answers, so there is nothing to change. Nothing "
        f"was changed. Choose other new targets, or drop them:\n{listed([request.describe() for request in known])}"
    )
