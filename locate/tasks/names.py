"""Names in context: who is given something (IOI), and which pronoun a name takes."""

import random
from collections.abc import Iterator

from transformer_lens.model_bridge import TransformerBridge

from locate.facts.facts import Fact
from locate.tasks.collecting import TRIES, Collection, of_one_length, swapped
from locate.tasks.paired import PairedPrompts
from locate.tasks.words import MEN, PLACES, THINGS, WOMEN

_GIVING = (
    "When {first} and {second} met at the {place}, {giver} gave a {thing} to",
    "After {first} and {second} had lunch at the {place}, {giver} handed a {thing} to",
    "While {first} and {second} were waiting near the {place}, {giver} offered a {thing} to",
    "Yesterday {first} and {second} walked to the {place}, where {giver} passed a {thing} to",
    "Once {first} and {second} had reached the {place}, {giver} showed the {thing} to",
    "The day that {first} and {second} visited the {place}, {giver} sold a {thing} to",
    "Because {first} and {second} were bored at the {place}, {giver} threw a {thing} to",
    "Before {first} and {second} left the {place}, {giver} lent a {thing} to",
    "Last week {first} and {second} cleaned the {place}, and {giver} brought a {thing} to",
    "As {first} and {second} rested near the {place}, {giver} returned the {thing} to",
)
_PRONOUNS = (
    "My neighbor {} is very kind, isn't",
    "I hear that {} plays the piano well, doesn't",
    "Everybody likes {} a lot because",
    "We all saw how {} won the race, didn't",
    "My friend {} was very tired, so",
    "Yesterday {} stayed at home because",
    "Our teacher {} was late again, wasn't",
    "We invited {} to the party, but",
    "The doctor told {} to rest until",
    "On Sunday {} will cook for us, won't",
)


def ioi(model: TransformerBridge, n: int = 30, *, seed: int = 0) -> PairedPrompts:
    """Indirect objects: of two names, the one that was not repeated; corrupted, the other one is repeated.

    After Wang et al. 2023 (arXiv:2211.00593). The subject of each fact is the repeated name. The other one comes first
    in half of the prompts and second in the others. Names, places and things have as many tokens each.

    Args:
        model: a raw-mode bridge, whose tokenizer chooses the words.
        n: how many pairs.
        seed: of the choice.

    Raises:
        FactError: there are not as many pairs whose tokens line up; the message says why others fell out.

    >>> clean, corrupt = locate.tasks.ioi(model, 4)[0]
    >>> clean.prompt == corrupt.prompt, clean.subject == corrupt.target
    (True, True)
    """
    tokens, (names,) = of_one_length(model, [*WOMEN, *MEN])
    (places,), (things,) = (of_one_length(model, words)[1] for words in (PLACES, THINGS))

    def candidates() -> Iterator[tuple[Fact, Fact]]:
        chance = random.Random(seed)
        frames = chance.sample(_GIVING, len(_GIVING))
        for index in range(TRIES * n if len(names) > 1 else 0):
            turn, place = divmod(index, len(frames))
            other, giver = chance.sample(names, 2)
            first, second = (other, giver) if (turn + place) % 2 else (giver, other)
            prompt = frames[place].format(
                first=first, second=second, giver="{}", place=chance.choice(places), thing=chance.choice(things)
            )
            yield swapped(prompt, (giver, other), (other, giver))

    about = f"{len(names)} of {len(WOMEN) + len(MEN)} names are {tokens}."
    return Collection(model, "ioi", n).fill(candidates()).pairs(about=about)


def gender_pronoun(model: TransformerBridge, n: int = 30, *, seed: int = 0) -> PairedPrompts:
    """Pronouns: he or she after a name; corrupted, after a name that takes the other. In half of the pairs each.

    After Mathwin et al. 2023, who found the circuit in GPT-2 small.

    Args:
        model: a raw-mode bridge, whose tokenizer chooses the names.
        n: how many pairs.
        seed: of the choice.

    Raises:
        FactError: there are not as many pairs whose tokens line up, or no token tells the two pronouns apart.

    >>> pairs = locate.tasks.gender_pronoun(model, 4)
    >>> [fact.target for fact in pairs.clean]
    ['she', 'he', 'she', 'he']
    """
    tokens, (women, men) = of_one_length(model, WOMEN, MEN)

    def candidates() -> Iterator[tuple[Fact, Fact]]:
        chance = random.Random(seed)
        frames = chance.sample(_PRONOUNS, len(_PRONOUNS))
        for index in range(TRIES * n if women and men else 0):
            turn, place = divmod(index, len(frames))
            clean, corrupt = swapped(frames[place], (chance.choice(women), chance.choice(men)), ("she", "he"))
            yield (clean, corrupt) if (turn + place) % 2 == 0 else (corrupt, clean)

    about = f"{len(women)} women's and {len(men)} men's names are {tokens}."
    return Collection(model, "gender_pronoun", n).fill(candidates()).pairs(about=about)
