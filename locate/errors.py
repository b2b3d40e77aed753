"""The errors and warnings a user can meet.

Every message says what was wrong, what was found, and what to do about it.
"""

import inspect
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_OWN = ("locate", "edit")
# What stands around functions of ours: decorators that switch gradients off and on.
_AROUND = (*_OWN, "torch")


class LocateError(Exception):
    """Base class of every error that this project raises on purpose."""


class FactError(LocateError, ValueError):
    """A fact, prompt, subject or target that cannot be used."""


class ModelError(LocateError):
    """A model that cannot be found, loaded or run."""


class SiteError(LocateError, ValueError):
    """A layer, position or hook point that the model does not have."""


class DataError(LocateError, ValueError):
    """A file that is missing, damaged or not of the expected form."""


class UpdateError(LocateError):
    """A weight update that cannot be applied, reverted or loaded."""


class NumericsError(LocateError, ArithmeticError):
    """A computation that went wrong: not finite, singular, or diverging."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the known names closest to ``name``, or listing a few of them."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    shown = ", ".join(names[:10])
    return f"Known: {shown}{', …' if len(names) > 10 else ''}."


def listed(items: Sequence[str], most: int = 5) -> str:
    """The first of some items, one to a line, and how many more there are."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return "\n".join(f"  {item}" for item in [*items[:most], *more])


def counted(n: int, noun: str) -> str:
    """So many of something, in words that fit the number.

    >>> counted(1, "fact"), counted(2, "fact")
    ('1 fact', '2 facts')
    """
    return f"{n} {noun if n == 1 else f'{noun}s'}"


def tell(message: str) -> None:
    """Warn at the line of the user's that led here, however deep in this toolkit it was noticed.

    >>> tell("One fact was left out.")
    """
    frames = [entry.frame.f_globals.get("__name__", "").partition(".")[0] for entry in inspect.stack(context=0)]
    level = max(place for place, room in enumerate(frames) if room in _OWN)
    while level + 1 < len(frames) and frames[level + 1] in _AROUND:
        level += 1
    warnings.warn(message, stacklevel=level + 2)
