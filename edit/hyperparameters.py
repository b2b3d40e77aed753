"""Hyperparameters as plain Python numbers, whatever library they come from."""

from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor


def make_plain(owner: Any) -> None:
    """Turn the numbers among a dataclass's fields into Python's own, and lists into tuples.

    A sweep takes its numbers from arrays. Files, and the names of session folders, need plain ones.

    >>> method = edit.MEMIT(layers=[3, 4], weight=np.float32(30))
    >>> method.layers, method.weight
    ((3, 4), 30.0)
    """
    for field in fields(owner):
        object.__setattr__(owner, field.name, _plain(getattr(owner, field.name)))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    return value
