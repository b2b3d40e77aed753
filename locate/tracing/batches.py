"""Which facts are traced together."""

from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

from locate.engine.rows import Budget, Extent, passes
from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_fact

# Rows of corrupted prompts that are traced together. Every site multiplies them, so that a few already make
# large matrix products; more would only take memory for the states that are kept.
_ROWS = 16


def group_prompts(prompts: Sequence[Prompt], samples: int) -> list[list[int]]:
    """Indices of prompts to trace together: as many tokens, and not too many rows.

    >>> prompt = encode_fact(model, fact)
    >>> group_prompts([prompt] * 4, samples=5)
    [[0, 1, 2], [3]]
    """
    # Neighbours in this order begin their subjects at the same position, so that they are traced from there on.
    order = sorted(range(len(prompts)), key=lambda index: prompts[index].subject_span)
    extents = [Extent(length=len(prompts[index].tokens), rows=samples) for index in order]
    groups = passes(extents, Budget().unpadded, most=max(1, _ROWS // samples))
    return [[order[place] for place in group] for group in groups]


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
