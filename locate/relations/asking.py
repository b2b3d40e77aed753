"""Asking for a relation after examples of it: which subjects the model knows, and which become examples."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import FrozenRun, freeze_together
from locate.engine.rows import Budget, in_parts
from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.joining import continuation
from locate.facts.prompts import Prompt, encode_fact, encode_target
from locate.names import DEFAULT_BUDGET


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some questions that were run together.

    Attributes:
        questions: which of them, by number.
        run: a row for each.
        position: of the subject's last token, the same in all rows.
    """

    questions: Int[Tensor, "row"]
    run: FrozenRun
    position: int

    @property
    def last(self) -> int:
        """The position where the rows are read."""
        return self.run.tokens.shape[1] - 1

    def subjects(self, layer: int) -> Float[Tensor, "row d_model"]:
        """The states after a layer at the subject's last token."""
        return self.run.residuals[layer + 1][:, self.position]

    def objects(self, layer: int) -> Float[Tensor, "row d_model"]:
        """The states after a layer at the position that answers; after the last layer, before the final norm."""
        return self.run.residuals[layer + 1][:, self.last]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Facts asked after examples.

    Attributes:
        facts: what is asked.
        prompts: each with its examples before it.
    """

    facts: tuple[Fact, ...]
    prompts: tuple[Prompt, ...]

    @classmethod
    def of(
        cls, model: TransformerBridge, facts: Sequence[Fact], examples: Sequence[Fact], n: int | None = None
    ) -> "Asked":
        """Each fact after the examples of other subjects, a line each, or after the first ``n`` of them.

        Raises:
            FactError: a fact that cannot be asked.

        >>> asked = Asked.of(model, facts[:1], facts[:2])
        >>> asked.prompts[0].text.startswith(facts[1].text + " " + facts[1].target)
        True
        """
        prompts = []
        for fact in facts:
            others = [one for one in examples if one.subject != fact.subject][:n]
            said = "".join(f"{one.text}{continuation(one.text, one.target, joined=one.joined)}\n" for one in others)
            prompts.append(encode_fact(model, fact, prefix=said))
        return cls(facts=tuple(facts), prompts=tuple(prompts))

    def parts(self, model: TransformerBridge, budget: int = DEFAULT_BUDGET) -> Iterator[Part]:
        """All of them run, those together that have the same length and place of the subject."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            groups.setdefault((len(prompt.tokens), prompt.last_subject_position), []).append(index)
        for (length, position), group in groups.items():
            for some in in_parts(group, Budget.of(model, budget).rows(length, logits=True)):
                tokens = torch.stack([self.prompts[index].tokens for index in some])
                run = freeze_together(model, tokens, budget=budget)
                yield Part(questions=torch.tensor(some), run=run, position=position)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Facts of a relation, parted.

    Attributes:
        examples: that a map is fitted to.
        held_out: that it is tried on, of other subjects.
        given: how many facts were given.
        known: of how many of these the model says the answer, by its first token; None if this was not asked.
    """

    examples: tuple[Fact, ...]
    held_out: tuple[Fact, ...]
    given: int
    known: int | None


def split(
    model: TransformerBridge, facts: Sequence[Fact], n: int, *, knows: bool, seed: int, budget: int = DEFAULT_BUDGET
) -> Split:
    """Choose examples by chance, of as many objects as there are; the other subjects are held out.

    Args:
        model: a raw-mode bridge.
        facts: of one relation.
        n: how many examples.
        knows: leave out facts whose answer the model does not say after ``n`` examples.
        seed: of the choice.
        budget: of a pass.

    Raises:
        FactError: too few facts are left.

    >>> parted = split(model, facts[:5], 3, knows=False, seed=0)
    >>> len(parted.examples), len(parted.held_out)
    (3, 2)
    """
    if n < 1:
        raise FactError(f"n must be 1 or more examples, found {n}.")
    order = random.Random(seed).sample(facts, len(facts))
    usable = list(facts)
    if knows:
        asked = Asked.of(model, facts, order[: n + 1], n)
        usable = [fact for fact, right in zip(facts, _right(model, asked, budget), strict=True) if right]
    subjects = {fact.subject: fact for fact in reversed(usable)}  # of several facts of a subject, the first
    if len(subjects) <= n:
        known = f" has {len(subjects)} subjects"
        if knows:
            known = f", the model knows {len(usable)} (says the answer's first token after {n} examples)"
        remedy = "give more facts, or knows=False" if knows else "give more facts"
        raise FactError(
            f"Of {len(facts)} facts of {facts[0].relation or facts[0].prompt!r}{known}; {n} examples and one subject "
            f"to try the map on need {n + 1}. Ask for fewer examples by n=…, or {remedy}."
        )
    examples = _of_many_objects([one for one in order if one is subjects.get(one.subject)])[:n]
    chosen = {one.subject for one in examples}
    held_out = tuple(one for one in usable if one is subjects[one.subject] and one.subject not in chosen)
    return Split(
        examples=tuple(examples), held_out=held_out, given=len(facts), known=len(usable) if knows else None
    )  # fmt: skip


def _right(model: TransformerBridge, asked: Asked, budget: int) -> list[bool]:
    """For each question, whether the model's next token is its answer's first."""
    right = [False] * len(asked.facts)
    for part in asked.parts(model, budget):
        for index, said in zip(part.questions.tolist(), part.run.logits.argmax(-1).tolist(), strict=True):
            right[index] = said == int(encode_target(model, asked.prompts[index], asked.facts[index].target)[0])
    return right


def _of_many_objects(facts: Sequence[Fact]) -> list[Fact]:
    """The same in another order: first one of each object, then a second one of those that have several, …"""
    seen: Counter[str] = Counter()
    turns = []
    for fact in facts:
        turns.append(seen[fact.target])
        seen[fact.target] += 1
    return [facts[place] for place in sorted(range(len(facts)), key=turns.__getitem__)]
