"""What a model is made of: its layers, and whatever else is found about its architecture once and kept with it."""

from collections.abc import Callable
from typing import Any, TypeVar

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import SiteError

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


def check_layer(model: TransformerBridge, layer: int) -> int:
    """The layer as a non-negative index.

    Raises:
        SiteError: the model has no such layer.
    """
    n = model.cfg.n_layers
    if not -n <= layer < n:
        raise SiteError(f"Layer {layer} is out of range: the model has {n} layers, 0 to {n - 1}.")
    return int(layer) % n
