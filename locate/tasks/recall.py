"""Factual recall: one relation, asked of two subjects."""

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import freeze
from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts
from locate.facts.prompts import encode_fact, encode_target, rank_of
from locate.facts.subjects import same_text
from locate.names import DEFAULT_BUDGET
from locate.tasks.collecting import TRIES, Collection
from locate.tasks.paired import PairedPrompts


def factual_recall(
    model: TransformerBridge,
    n: int = 30,
    *,
    facts: Sequence[Fact] | None = None,
    known: bool = True,
    seed: int = 0,
) -> PairedPrompts:
    """Facts of one relation in pairs, whose subjects have as many tokens; corrupted, the other's subject is asked.

    The prompt is the clean fact's for both. Facts without a relation are paired with those of the same prompt.

    Args:
        model: a raw-mode bridge.
        n: how many pairs.
        facts: which; by default those that ship with the project.
        known: take only pairs of which the model ranks both answers first.
        seed: of the choice.

    Raises:
        FactError: there are not as many pairs whose tokens line up, or that the model knows.

    >>> pairs = locate.tasks.factual_recall(model, 4, facts=facts, known=False)
    >>> all(clean.prompt == corrupt.prompt and clean.relation == corrupt.relation for clean, corrupt in pairs)
    True
    """
    given = list(bundled_facts() if facts is None else facts)
    collection = Collection(model, "factual_recall", n)
    groups = _groups(collection, given, seed)
    candidates = islice(_candidates(collection, groups), TRIES * n)
    alone = len(given) - sum(len(group) for group in groups if len(group) > 1)
    about = f"Of {len(given)} facts {alone} have no other of their relation whose subject has as many tokens."
    remedy = "Give facts that the model knows, or known=False." if known else "Give more facts of each relation."
    return collection.fill(_known(collection, candidates) if known else candidates).pairs(about=about, remedy=remedy)


def _groups(collection: Collection, facts: Sequence[Fact], seed: int) -> list[list[Fact]]:
    """Facts whose subjects can stand for each other, in an order by chance."""
    groups: dict[Hashable, list[Fact]] = {}
    for fact in random.Random(seed).sample(facts, len(facts)):
        try:
            start, end = encode_fact(collection.model, fact).subject_span
        except FactError as error:
            collection.leave_out(f"cannot be asked ({error})", fact.text)
            continue
        asked = (True, fact.relation) if fact.relation is not None else (False, fact.prompt)
        groups.setdefault((*asked, fact.joined, fact.chat, end - start), []).append(fact)
    return list(groups.values())


def _candidates(collection: Collection, groups: Sequence[Sequence[Fact]]) -> Iterator[tuple[Fact, Fact]]:
    """All pairs within groups: each fact with its next one, the groups by turns, then each with the one after that."""
    for step in range(1, max(map(len, groups), default=0)):
        for place in range(max(map(len, groups))):
            for group in groups:
                if place < len(group) and step < len(group):
                    clean, other = group[place], group[(place + step) % len(group)]
                    if same_text(clean.target, other.target):
                        collection.leave_out("have one answer", f"{clean.subject!r} and {other.subject!r}")
                    else:
                        yield _lean(clean, clean, other), _lean(clean, other, clean)


def _lean(asked: Fact, fact: Fact, other: Fact) -> Fact:
    """A fact in the words of the one that is asked, with another's answer against its own."""
    return Fact(
        prompt=asked.prompt, subject=fact.subject, target=fact.target, target_new=other.target, joined=asked.joined,
        chat=asked.chat, id=fact.id, relation=fact.relation,
    )  # fmt: skip


def _known(collection: Collection, candidates: Iterator[tuple[Fact, Fact]]) -> Iterator[tuple[Fact, Fact]]:
    """Those of which the model ranks both answers first, asked many at a time; and those that cannot be used anyway."""
    ranks: dict[tuple[str, str], int] = {}
    while chunk := list(islice(candidates, collection.n)):
        usable = {index for index, pair in enumerate(chunk) if collection.unusable(*pair) is None}
        asked = {(fact.text, fact.target): fact for index in sorted(usable) for fact in chunk[index]}
        ranks |= _ranks(collection.model, {key: fact for key, fact in asked.items() if key not in ranks})
        for index, pair in enumerate(chunk):
            if index in usable and any(ranks[fact.text, fact.target] > 1 for fact in pair):
                collection.leave_out("have an answer that the model does not rank first", f"{pair[0].text!r}")
            else:
                yield pair


def _ranks(model: TransformerBridge, facts: Mapping[tuple[str, str], Fact]) -> dict[tuple[str, str], int]:
    """The rank of each fact's answer, by its first token."""
    prompts = {key: encode_fact(model, fact) for key, fact in facts.items()}
    found: dict[tuple[str, str], int] = {}
    for length in sorted({len(prompt.tokens) for prompt in prompts.values()}):
        keys = [key for key, prompt in prompts.items() if len(prompt.tokens) == length]
        at_once = max(1, DEFAULT_BUDGET // length)
        for part in (keys[start : start + at_once] for start in range(0, len(keys), at_once)):
            logits = freeze(model, torch.stack([prompts[key].tokens for key in part])).logits
            for key, row in zip(part, logits, strict=True):
                found[key] = rank_of(row, int(encode_target(model, prompts[key], facts[key].target)[0]))
    return found
