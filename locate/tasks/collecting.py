"""From candidates to pairs whose tokens line up: what a model's tokenizer can be asked."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.swaps import alike
from locate.errors import FactError, LocateError, listed
from locate.facts.facts import Fact
from locate.facts.prompts import encode_fact, encode_target
from locate.tasks.paired import PairedPrompts

# Of candidates that are drawn, so many for each pair that is asked for.
TRIES = 40


class Collection:
    """Pairs that can be used, and why others cannot.

    >>> collected = Collection(model, "capitals", 1)
    >>> ask = "The capital of {} is"
    >>> france = locate.Fact(prompt=ask, subject="France", target="Paris")
    >>> italy = locate.Fact(prompt=ask, subject="Italy", target="Rome")
    >>> collected.add(france, italy), len(collected.pairs())
    (True, 1)
    """

    def __init__(self, model: TransformerBridge, name: str, n: int) -> None:
        if n < 1:
            raise LocateError(f"{name}: n must be 1 or more, found {n}.")
        self.model, self.name, self.n = model, name, n
        self.found: dict[tuple[str, str], tuple[Fact, Fact]] = {}
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    @property
    def full(self) -> bool:
        """Whether there are as many as asked for."""
        return len(self.found) == self.n

    def add(self, clean: Fact, corrupt: Fact) -> bool:
        """Take a pair in, if it can be used and is another than those so far."""
        key = clean.text, corrupt.text
        if key in self.found:
            return False
        if reason := self.unusable(clean, corrupt):
            self.leave_out(reason, f"{clean.text!r}, {clean.target!r}; of {corrupt.subject!r}, {corrupt.target!r}")
            return False
        self.found[key] = clean, corrupt
        return True

    def leave_out(self, reason: str, example: str) -> None:
        """Count a candidate that cannot be used."""
        self.reasons[reason] += 1
        self.examples.setdefault(reason, example)

    def unusable(self, clean: Fact, corrupt: Fact) -> str | None:
        """Why a pair cannot be used; None where it can."""
        try:
            prompt, other = encode_fact(self.model, clean), encode_fact(self.model, corrupt)
            first = [int(encode_target(self.model, prompt, one.target)[0]) for one in (clean, corrupt)]
        except FactError as error:
            return f"cannot be asked ({error})"
        if not alike(prompt, other):
            return "have subjects whose tokens do not line up"
        return "have answers that begin with the same token" if first[0] == first[1] else None

    def fill(self, candidates: Iterable[tuple[Fact, Fact]]) -> "Collection":
        """Take in candidates until there are as many as asked for."""
        for clean, corrupt in candidates:
            self.add(clean, corrupt)
            if self.full:
                break
        return self

    def pairs(
        self, *, metric: str | None = None, about: str = "", remedy: str = "This tokenizer cannot be asked this."
    ) -> PairedPrompts:
        """All of them.

        Args:
            metric: what tells the answers apart.
            about: what the candidates were made of, for the error.
            remedy: what to do where there are none.

        Raises:
            FactError: there are fewer than asked for; the message says why others fell out.
        """
        if not self.full:
            why = [f"{count} {reason} ({self.examples[reason]})" for reason, count in self.reasons.most_common()]
            raise FactError(
                f"{self.name}: found {len(self.found)} of the {self.n} pairs asked for. "
                + (f"{about} " if about else "")
                + (f"Of the other candidates\n{listed(why)}\n" if why else "")
                + (f"Ask for n={len(self.found)}." if self.found else remedy)
            )
        clean, corrupt = zip(*self.found.values(), strict=True)
        return PairedPrompts(name=self.name, clean=clean, corrupt=corrupt, metric=metric)


def token_counts(model: TransformerBridge, words: Sequence[str]) -> list[int]:
    """How many tokens each word has behind another one.

    >>> token_counts(model, ["Paris", "Rome"])
    [1, 1]
    """
    texts = ["The", *(f"The {word}" for word in words)]
    before, *counts = map(len, model.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [count - before for count in counts]


def of_one_length(model: TransformerBridge, *lists: Sequence[str]) -> tuple[str, list[list[str]]]:
    """Of each list the words that have as many tokens, as this tokenizer writes them behind another word.

    With the number of tokens that leaves the most words of every list; by name, for messages.

    >>> of_one_length(model, ["Paris", "France", "Llanfairpwll"])
    ('a single token', [['Paris', 'France']])
    """
    counts = [token_counts(model, words) for words in lists]
    groups = {
        count: [
            [word for word, own in zip(words, each, strict=True) if own == count]
            for words, each in zip(lists, counts, strict=True)
        ]
        for count in sorted({*chain(*counts)})
    }
    best = max(groups, key=lambda count: min(map(len, groups[count])))
    return "a single token" if best == 1 else f"{best} tokens", groups[best]


def swapped(
    prompt: str, subjects: tuple[str, str], answers: tuple[str, str], *, joined: bool = False
) -> tuple[Fact, Fact]:
    """One prompt about two subjects, each answer against the other.

    >>> clean, corrupt = swapped("The capital of {} is", ("France", "Italy"), ("Paris", "Rome"))
    >>> clean.target_new, corrupt.target
    ('Rome', 'Rome')
    """
    clean, corrupt = (
        Fact(prompt=prompt, subject=subject, target=target, target_new=other, joined=joined)
        for subject, target, other in zip(subjects, answers, answers[::-1], strict=True)
    )
    return clean, corrupt
