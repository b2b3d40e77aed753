"""Trading digits for speed in the patched runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from transformer_lens.model_bridge import TransformerBridge

from locate.devices import input_device
from locate.errors import LocateError

Precision = Literal["model", "bfloat16"]


def check_precision(precision: Precision | str) -> None:
    """Whether there is such a precision.

    Raises:
        LocateError: there is not.
    """
    if precision not in get_args(Precision):
        raise LocateError(f"precision must be one of {', '.join(get_args(Precision))}, found {precision!r}.")


@contextmanager
def computing_in(precision: Precision | str, model: TransformerBridge) -> Iterator[None]:
    """While active, matrix products run in this precision; the residual stream keeps the model's own.

    Raises:
        LocateError: there is no such precision.

    >>> with computing_in("bfloat16", model):
    ...     logits = model(torch.tensor([[1, 2, 3]]))
    """
    check_precision(precision)
    if precision == "model":
        yield
    else:
        with torch.autocast(input_device(model).type, dtype=torch.bfloat16):
            yield
