"""Years that must be greater than the one before them."""

import random
from collections import Counter
from collections.abc import Iterator

from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.sides import GreaterNumbers, first_of_numbers
from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.prompts import encode_fact
from locate.tasks.collecting import TRIES, Collection, of_one_length, swapped
from locate.tasks.paired import PairedPrompts
from locate.tasks.words import EVENTS

_FRAMES = (
    "The {event} lasted from the year {start} to the year",
    "The {event} ran from the year {start} until the year",
    "The {event} that began in the year {start} was over in the year",
    "The {event} went on from {start} to",
    "The {event} started in {start} and ended in",
)
_CENTURIES = range(11, 19)
_STARTS = range(11, 90)


def greater_than(model: TransformerBridge, n: int = 30, *, seed: int = 0) -> PairedPrompts:
    """Greater-than: an end after the year of the start; corrupted, the start is at the century's begin.

    After Hanna et al. 2023 (arXiv:2305.00586), whose model writes the last two digits of a year as one token. Here each
    prompt says as much of the end's year as this tokenizer writes as tokens of their own, and the metric,
    ``locate.prob_greater``, compares what may come next. The answers are the first years that tokens show to be greater
    than each start, the corrupted one not greater than the clean start.

    Args:
        model: a raw-mode bridge.
        n: how many pairs.
        seed: of the choice.

    Raises:
        FactError: there are not as many pairs whose tokens line up, or no token tells greater years from others.

    >>> pairs = locate.tasks.greater_than(model, 4)
    >>> pairs.metric, all(clean.subject > corrupt.subject for clean, corrupt in pairs)
    ('prob_greater', True)
    """
    tokens, (events,) = of_one_length(model, EVENTS)
    leads = {
        (frame, century): lead
        for frame in _FRAMES
        for century in _CENTURIES
        if (lead := _lead(model, frame.format(event=events[0], start=f"{century}50"), str(century))) is not None
    }
    collection = Collection(model, "greater_than", n)

    def candidates() -> Iterator[tuple[Fact, Fact]]:
        chance = random.Random(seed)
        ways = chance.sample(sorted(leads), len(leads))
        for index in range(TRIES * n if ways else 0):
            frame, century = ways[index % len(ways)]
            text = frame.format(event=chance.choice(events), start="{}") + leads[frame, century]
            starts = f"{century}{chance.choice(_STARTS)}", f"{century}01"
            try:
                answers = _answers(model, text, starts, leads[frame, century])
            except FactError as error:
                collection.leave_out(f"cannot be asked ({error})", repr(text.format(starts[0])))
                continue
            yield swapped(text, starts, answers, joined=True)

    about = (
        f"There are {len(events)} events of {tokens}, and {len({century for _, century in leads})} of "
        f"{len(_CENTURIES)} centuries in which this tokenizer tells years apart."
    )
    return collection.fill(candidates()).pairs(metric=GreaterNumbers.name, about=about)


def _lead(model: TransformerBridge, text: str, century: str) -> str | None:
    """How much of a year of this century can stand behind a text, so that what comes next is a token of its own.

    That is so for most of its years, and no token stands for more than ten of them. None where nothing can.
    """
    year = f" {century}"
    texts = [f"{text}{year}{last:02d}" for last in range(100)]
    whole = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    for length in range(len(year), -1, -1):
        said = model.tokenizer(text + year[:length], add_special_tokens=False)["input_ids"]
        following = Counter(ids[len(said)] for ids in whole if ids[: len(said)] == said and len(ids) > len(said))
        if following.total() > len(whole) // 2 and max(following.values()) <= 10:
            return year[:length]
    return None


def _answers(model: TransformerBridge, text: str, starts: tuple[str, str], said: str) -> tuple[str, str]:
    """The first years that the clean start allows for, and that only the corrupted one does, without what is said.

    Raises:
        FactError: no token tells them apart.
    """
    century, begin = starts[1][:-2], int(starts[1][-2:])
    prompt = encode_fact(model, Fact(prompt=text, subject=starts[0], target=century, joined=True))
    first = first_of_numbers(model, prompt, century)
    answers = []
    for side in GreaterNumbers().sides(model, prompt):
        last = next((last for last in range(begin + 1, 100) if first[last] in side), None)
        if last is None:
            raise FactError(f"no token stands only for years from {starts[1]} to {starts[0]}")
        answers.append(f" {century}{last:02d}"[len(said) :])
    return answers[0], answers[1]
