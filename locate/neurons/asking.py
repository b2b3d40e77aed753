"""On what neurons are attributed: a fact's prompts, the answer that all of them share, and other facts' answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError, counted
from locate.facts.answers import up_to_difference
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, answer_strings, encode_fact, encode_target, token_strings

# Facts, or the word that says which of those that are attributed.
Negatives = Sequence[Fact] | str


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedFact:
    """A fact as its neurons are asked for it.

    Attributes:
        fact: what is asked.
        prompts: its own first, then its paraphrases, then its own after prefixes; each text once.
        answer: the first token of the answer to all of them.
        spelled: the answer's tokens as text.
    """

    fact: Fact
    prompts: tuple[Prompt, ...]
    answer: int
    spelled: list[str] | None


def ask(model: TransformerBridge, fact: Fact, prefixes: Sequence[str] = (), *, own: bool = False) -> AskedFact:
    """A fact with its prompts, or with its own alone.

    Raises:
        FactError: a prompt cannot be used, or its answer begins with another token than that of the fact's own.

    >>> len(ask(model, fact).prompts) == 1 + len(fact.paraphrases)
    True
    """
    ways = [(fact.prompt, "")]
    if not own:
        ways += [(template, "") for template in fact.paraphrases] + [(fact.prompt, prefix) for prefix in prefixes]
    texts = (encode_fact(model, fact, template, prefix) for template, prefix in ways)
    encoded = (up_to_difference(model, text, fact.target, fact.target_new) for text in texts)
    prompts = tuple({prompt.text: prompt for prompt in encoded}.values())
    firsts = [encode_target(model, prompt, fact.target)[:1] for prompt in prompts]
    for prompt, first in zip(prompts, firsts, strict=True):
        if int(first) != int(firsts[0]):
            begins, begun = (token_strings(model, one)[0] for one in (first, firsts[0]))
            raise FactError(
                f"{prompt.text!r} does not share the answer of {prompts[0].text!r}: {fact.target!r} begins with "
                f"{begins!r} after the one and with {begun!r} after the other, and neurons say tokens. Leave this "
                "paraphrase out, or end it as the prompt ends."
            )
    return AskedFact(
        fact=fact, prompts=prompts, answer=int(firsts[0]), spelled=answer_strings(model, prompts[0], fact.target)
    )


def negatives_of(asked: AskedFact, others: Sequence[AskedFact]) -> list[int]:
    """Which of some other facts have another answer, and the same relation where both name theirs.

    Raises:
        FactError: none has.

    >>> questions = [ask(model, one) for one in locate.bundled_facts("country_capital")[:3]]
    >>> negatives_of(questions[0], questions)
    [1, 2]
    """
    relation = asked.fact.relation
    found = [
        index for index, one in enumerate(others)
        if one.answer != asked.answer and (one.fact.relation == relation or None in (relation, one.fact.relation))
    ]  # fmt: skip
    if not found:
        raise FactError(
            f"{asked.fact.text!r} has no negative: of {counted(len(others), 'other fact')} none has another answer"
            f"{f' and the relation {relation!r}' if relation else ''}. Give some that have, or leave negatives out."
        )
    return found
