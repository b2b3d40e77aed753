"""Hyperparameters as plain Python numbers, whatever library they come from."""

from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

from locate.errors import NumericsError


def make_plain(owner: Any) -> None:
    """Turn the numbers among a dataclass's fields into Python's own, and lists into tuples.

    A sweep takes its numbers from arrays. Files, and the names of session folders, need plain ones.

    >>> edit.MEMIT(weight=np.float64(30)).weight
    30.0
    """
    for field in fields(owner):
        object.__setattr__(owner, field.name, _plain(getattr(owner, field.name)))


def check_whole(owner: Any, *names: str, least: int | None = None) -> None:
    """Whether fields are whole numbers; those of another type, such as 3.0, become integers.

    Raises:
        NumericsError: one is not, or is below the least that makes sense.

    >>> check_whole(edit.ValueObjective(), "steps", least=1)
    """
    for name in names:
        object.__setattr__(owner, name, whole(name, getattr(owner, name), least))


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as an integer, whatever its type.

    Raises:
        NumericsError: it is not a whole number, or is below the least that makes sense.

    >>> whole("tokens", 1e5)
    100000
    """
    value = _plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise NumericsError(f"{name}: must be a whole number, found {value!r}.")
    if least is not None and value < least:
        raise NumericsError(f"{name}: must be {least} or more, found {value}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    return tuple(_plain(one) for one in value) if isinstance(value, list | tuple | range) else value
