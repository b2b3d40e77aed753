"""Whether a space belongs between a prompt and its answer: decided from both sides, in one place."""

import re
import unicodedata
from typing import NamedTuple

from locate.facts.scripts import eastern, south_eastern

# What closes each opening quote. One that is closed by its like opens where it stands apart from the word before it.
_QUOTES = {
    '"': '"', "'": "'", "`": "`", "“": "”", "”": "”", "‘": "’", "’": "’", "„": "“”", "‚": "‘’", "«": "»", "»": "«",
    "‹": "›", "›": "‹",
}  # fmt: skip
_ALIKE = "\"'`”’"

_OPENING = "¿¡@\\/_"
_CLOSING = ",.;:!?…%‰°′″،؛؟।॥/\\_"
# Closed up where the word before them is, and set apart where it is not.
_SIGNS = re.compile(r"[-‐‑‒–—―−־=<>&|~^±]+$")
_MINUS = "-−~±"
# Marks of direction and of breaks show nothing; the break that has no width parts words as a space does.
_UNSEEN = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def continuation(prompt: str, answer: str, *, joined: bool = False) -> str:
    """An answer as it follows its prompt: with the space that belongs between the two, and without one that does not.

    An answer that comes with a space keeps it. ``joined`` takes it exactly as it is given.

    >>> continuation("The capital of France is", "Paris"), continuation("法国的首都是", "巴黎")
    (' Paris', '巴黎')
    >>> continuation("It costs $", "50"), continuation('She read "Emma"', "and"), continuation('She read "', "Emma")
    ('50', ' and', 'Emma')
    """
    bare = answer.strip()
    if joined or not prompt:
        return answer.rstrip() if joined else bare
    if prompt[-1].isspace():
        return bare
    if answer[:1].isspace():
        return answer.rstrip()
    return f" {bare}" if needs_space(prompt, bare) else bare


def needs_space(prompt: str, answer: str) -> bool:
    """Whether running text has a space between the two.

    >>> needs_space("It was built before the pre-", "war"), needs_space("in Paris", "(France)"), needs_space("in", ",")
    (False, True, False)
    """
    prompt = prompt.rstrip(_UNSEEN)
    if not prompt or not answer or prompt[-1].isspace() or answer[0].isspace():
        return False
    last, first = prompt[-1], answer[0]
    if eastern(last) or (south_eastern(last) and south_eastern(first)):
        return False
    if eastern(first) and any(map(eastern, prompt.split()[-1])):
        return False
    quotes = _Quotes.of(prompt)
    return not (_leans_back(prompt, answer, quotes) or _leans_on(prompt, first, quotes))


def _leans_back(prompt: str, answer: str, quotes: "_Quotes") -> bool:
    """Whether the answer's first character belongs to what is before it."""
    first, rest = answer[0], answer[1:]
    kind = unicodedata.category(first)
    if first in _QUOTES:
        apostrophe = first in "'’" and prompt[-1].isalnum() and rest[:1].isalnum() and first not in rest
        return apostrophe or any(first in _QUOTES[one] for one in quotes.unclosed)
    if kind == "Pd" or first in _MINUS:
        return rest[:1].isalpha() or (kind == "Pd" and first not in "-‐‑" and rest[:1].isalnum())
    wide = unicodedata.east_asian_width(first) in "WF" and kind.startswith("P") and kind != "Ps"
    return first in _CLOSING or kind == "Pe" or kind.startswith("M") or wide


def _leans_on(prompt: str, first: str, quotes: "_Quotes") -> bool:
    """Whether the prompt's last character belongs to what comes after it."""
    last, before = prompt[-1], prompt[-2:-1]
    kind, apart = unicodedata.category(last), not before or before.isspace()
    if last in _QUOTES:
        return quotes.opens_last or (quotes.elides_last and last in "'’")
    if signs := _SIGNS.search(prompt):
        apart = not prompt[: signs.start()] or prompt[signs.start() - 1].isspace()
        return (last in _MINUS and first.isdigit()) if apart else True
    if last == "*":  # of emphasis, which an even number has closed
        run = re.search(r"\*+$", prompt)
        return run is not None and prompt.count(run[0]) % 2 == 1
    if last in ".+":  # 3.14 and 2+2
        return before.isdigit() and first.isdigit()
    if last == "#":
        return apart or not before.isalnum()
    if kind == "Sc":  # before an amount, and not behind it
        return not re.search(r"\d\s?$", prompt[:-1])
    return last in _OPENING or kind in ("Ps", "Cf") or prompt.endswith("::")


class _Quotes(NamedTuple):
    """The quotes of a text.

    Attributes:
        unclosed: those that are open at its end.
        opens_last: whether its last character opens one.
        elides_last: whether its last character is an apostrophe in place of a letter, as in ``l'``.
    """

    unclosed: list[str]
    opens_last: bool
    elides_last: bool

    @classmethod
    def of(cls, text: str) -> "_Quotes":
        unclosed: list[str] = []
        opens = closes = False
        for place, char in enumerate(text):
            opens = closes = False
            before, after = text[place - 1 : place], text[place + 1 : place + 2]
            if char not in _QUOTES or (char in "'’" and before.isalnum() and after.isalnum()):
                continue
            fits = [index for index, one in enumerate(unclosed) if char in _QUOTES[one]]
            if fits:
                del unclosed[fits[-1] :]
                closes = True
            elif char not in _ALIKE or not (before.isalnum() or before in tuple(".,;:!?)]}…%")):
                unclosed.append(char)
                opens = True
        word = re.search(r"(\w+)\W$", text)
        plural = word is not None and len(word[1]) > 1 and word[1][-1].casefold() in "sxz"
        return cls(unclosed=unclosed, opens_last=opens, elides_last=not closes and word is not None and not plural)
