"""How many digits are computed with: traded for speed in the patched runs, and kept in what is summed up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import LocateError
from locate.model.devices import input_device
from locate.names import Precision


def at_least_float32(values: Tensor) -> Tensor:
    """The same in float32, or in float64 where they are in it.

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype, at_least_float32(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_precision(precision: Precision | str, model: TransformerBridge | None = None) -> None:
    """Whether there is such a precision, and the model can be run in it.

    Raises:
        LocateError: there is not, or it cannot.
    """
    if precision not in get_args(Precision):
        raise LocateError(f"precision must be one of {', '.join(get_args(Precision))}, found {precision!r}.")
    if precision == "bfloat16" and model is not None and model.cfg.dtype == torch.float16:
        raise LocateError(
            "A float16 model cannot be run in bfloat16: the two do not mix. Load the model in float32 or bfloat16."
        )


@contextmanager
def computing_in(precision: Precision | str, model: TransformerBridge) -> Iterator[None]:
    """While active, matrix products run in this precision; the residual stream keeps the model's own.

    Raises:
        LocateError: there is no such precision.

    >>> with computing_in("bfloat16", model):
    ...     logits = model(torch.tensor([[1, 2, 3]]))
    """
    check_precision(precision, model)
    if precision == "model":
        yield
    else:
        with torch.autocast(input_device(model).type, dtype=torch.bfloat16):
            yield
