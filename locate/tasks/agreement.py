"""Verbs that agree with their subject, whatever noun stands between."""

import random
from collections.abc import Iterator

from transformer_lens.model_bridge import TransformerBridge

from locate.facts.facts import Fact
from locate.tasks.collecting import TRIES, Collection, of_one_length, swapped, token_counts
from locate.tasks.paired import PairedPrompts
from locate.tasks.words import PEOPLE

_FRAMES = (
    "The {subject} near the {between}",
    "The {subject} behind the {between}",
    "The {subject} with the {between}",
    "The {subject} that the {between} met",
    "The {subject} next to the {between}",
    "We know that the {subject} beside the {between}",
    "Today the {subject} from the town of the {between}",
    "The {subject} who visited the {between}",
)
_VERBS = ("is", "are"), ("was", "were"), ("has", "have")


def subject_verb_agreement(model: TransformerBridge, n: int = 30, *, seed: int = 0) -> PairedPrompts:
    """Agreement: the verb's form after a singular or a plural subject, with another noun between; corrupted, the other.

    After Newman et al. 2021 (arXiv:2104.06387) and Finlayson et al. 2021 (arXiv:2106.06087). In half of the pairs the
    clean subject is singular; the noun between is either, by chance.

    Args:
        model: a raw-mode bridge, whose tokenizer chooses nouns that have as many tokens in both forms.
        n: how many pairs.
        seed: of the choice.

    Raises:
        FactError: there are not as many pairs whose tokens line up; the message says why others fell out.

    >>> clean, corrupt = locate.tasks.subject_verb_agreement(model, 4)[0]
    >>> clean.prompt == corrupt.prompt, clean.target_new == corrupt.target
    (True, True)
    """
    plurals = list(PEOPLE.values())
    counts = zip(PEOPLE, token_counts(model, list(PEOPLE)), token_counts(model, plurals), strict=True)
    both = [noun for noun, singular, plural in counts if singular == plural]
    tokens, (nouns,) = of_one_length(model, both)
    _, (betweens,) = of_one_length(model, [*PEOPLE, *plurals])

    def candidates() -> Iterator[tuple[Fact, Fact]]:
        chance = random.Random(seed)
        frames = chance.sample(_FRAMES, len(_FRAMES))
        for index in range(TRIES * n if nouns else 0):
            turn, place = divmod(index, len(frames))
            noun = chance.choice(nouns)
            (one, many), forms = chance.choice(_VERBS), (noun, PEOPLE[noun])
            between = chance.choice([word for word in betweens if word not in forms])
            prompt = frames[place].format(subject="{}", between=between)
            clean, corrupt = swapped(prompt, forms, (one, many))
            yield (clean, corrupt) if (turn + place) % 2 == 0 else (corrupt, clean)

    about = f"{len(both)} of {len(PEOPLE)} nouns have as many tokens in both forms, {len(nouns)} of them {tokens}."
    return Collection(model, "subject_verb_agreement", n).fill(candidates()).pairs(about=about)
