"""Where a subject stands in a text: compared as Unicode means it, as a whole word, by its last occurrence."""

import unicodedata

from locate.errors import FactError
from locate.facts.scripts import eastern, south_eastern

# By the first words of their characters' names: what follows, or comes before, may be written onto a word.
_TAKES_AFTER, _TAKES_BEFORE = ("HANGUL",), ("ARABIC", "HEBREW", "SYRIAC")


class AbsentSubject(FactError):
    """A text in which the subject that it should be about does not occur."""


def find_subject(text: str, subject: str) -> tuple[int, int]:
    """The characters of a text that are its subject: of the last occurrence as a whole word.

    An accent is the same whether it is a character of its own or not. Scripts without spaces have no whole words.

    Raises:
        AbsentSubject: it does not occur; the message says where it is a part of a word.

    >>> find_subject("Iranians say that Iran is", "Iran")
    (18, 22)
    """
    wanted = "".join(char for char, _ in _decomposed(subject))
    parts = _decomposed(text)
    whole = "".join(char for char, _ in parts)
    inside: str | None = None
    place = whole.rfind(wanted) if wanted else -1
    while place >= 0:
        end = place + len(wanted)
        start, stop = parts[place][1], max(origin for _, origin in parts[place:end]) + 1
        # All of its characters, and nothing that is a part of one.
        if all(start <= origin < stop for _, origin in parts[place:end]) and not any(
            start <= origin < stop for _, origin in parts[:place] + parts[end:]
        ):
            if not _goes_on(text, start, stop):
                return start, stop
            inside = inside or _word(text, start, stop)
        place = whole.rfind(wanted, 0, end - 1)
    hint = ""
    if inside:
        hint = f" as a word of its own, only in {inside!r}. Write the prompt with {{}} in the subject's place"
    raise AbsentSubject(f"subject: {subject!r} does not occur in the prompt {text!r}{hint}.")


def same_text(one: str, other: str) -> bool:
    """Whether two texts are the same but for space around them and the way in which accents are encoded.

    >>> same_text("Krak\\u00f3w", " Krako\\u0301w")
    True
    """
    return unicodedata.normalize("NFC", one).strip() == unicodedata.normalize("NFC", other).strip()


def _decomposed(text: str) -> list[tuple[str, int]]:
    """The characters that a text is made of, with the place of the one that each comes from."""
    parts = [(part, place) for place, char in enumerate(text) for part in unicodedata.normalize("NFD", char)]
    ordered: list[tuple[str, int]] = []
    marks: list[tuple[str, int]] = []
    for part in parts:
        if unicodedata.combining(part[0]):
            marks.append(part)
        else:
            ordered += [*sorted(marks, key=lambda one: unicodedata.combining(one[0])), part]
            marks = []
    return ordered + sorted(marks, key=lambda one: unicodedata.combining(one[0]))


def _goes_on(text: str, start: int, end: int) -> bool:
    """Whether a word goes on before or after these characters."""
    before, after = text[:start][-1:], text[end : end + 1]
    takes_before = unicodedata.name(text[start], "").startswith(_TAKES_BEFORE)
    takes_after = unicodedata.name(text[end - 1], "").startswith(_TAKES_AFTER)
    accented = bool(after) and unicodedata.category(after).startswith("M")
    return (
        accented
        or (_joins(before, text[start]) and not takes_before)
        or (_joins(text[end - 1], after) and not takes_after)
    )


def _joins(one: str, other: str) -> bool:
    """Whether two characters are of one word."""
    return all(char.isalnum() and not eastern(char) and not south_eastern(char) for char in (one or " ", other or " "))


def _word(text: str, start: int, end: int) -> str:
    while start > 0 and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    return text[start:end]
