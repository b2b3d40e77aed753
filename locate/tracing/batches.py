"""Which facts are traced together."""

from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_fact

# Rows of corrupted prompts that are traced together. Every site multiplies them, so that a few already make
# large matrix products; more would only take memory for the states that are kept.
ROWS_AT_A_TIME = 16


def group_prompts(prompts: Sequence[Prompt], samples: int) -> list[list[int]]:
    """Indices of prompts to trace together: as many tokens, and not too many rows.

    >>> prompt = encode_fact(model, fact)
    >>> group_prompts([prompt] * 4, samples=5)
    [[0, 1, 2], [3]]
    """
    at_a_time = max(1, ROWS_AT_A_TIME // samples)
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.tokens), []).append(index)
    groups: list[list[int]] = []
    for alike in by_length.values():
        # Neighbours in this order begin their subjects at the same position, so that they are traced from there on.
        alike.sort(key=lambda index: prompts[index].subject_span)
        groups += [alike[first : first + at_a_time] for first in range(0, len(alike), at_a_time)]
    return groups


def group_facts(model: TransformerBridge, facts: Sequence[Fact], samples: int) -> list[list[int]]:
    """The same of facts. One without a usable prompt stands by itself: what is wrong is said when it is traced.

    >>> group_facts(model, [fact, fact], samples=10)
    [[0], [1]]
    """
    prompts: dict[int, Prompt] = {}
    for index, fact in enumerate(facts):
        try:
            prompts[index] = encode_fact(model, fact)
        except FactError:
            continue
    usable = list(prompts)
    groups = [[usable[place] for place in group] for group in group_prompts(list(prompts.values()), samples)]
    return groups + [[index] for index in range(len(facts)) if index not in prompts]
