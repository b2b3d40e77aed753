"""What is found about a model's architecture once and kept with it."""

from collections.abc import Callable
from typing import Any, TypeVar

from transformer_lens.model_bridge import TransformerBridge

T = TypeVar("T")

_FOUND = "_locate_found"


def once(model: TransformerBridge, name: str, find: Callable[[], T]) -> T:
    """What was found about a model's architecture under a name; found now if it was not yet.

    It is kept with the model and goes with it. What depends on weights, a prompt or a precision does not belong here.

    >>> once(model, "answer of an example", lambda: 42)
    42
    >>> once(model, "answer of an example", lambda: 43)
    42
    """
    found: dict[str, Any] = vars(model).setdefault(_FOUND, {})
    if name not in found:
        found[name] = find()
    return found[name]
