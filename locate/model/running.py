"""The state in which a model is run, whatever state its user has left it and torch in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from locate.model.found import once


@contextmanager
def running(model: TransformerBridge, *, grad: bool = False) -> Iterator[None]:
    """While active, all of the model is in evaluation mode, and torch outside of inference mode, with gradients or not.

    Afterwards every module has the mode that it had: dropout in the middle of a comparison would be part of what is
    compared.

    >>> with running(model):
    ...     logits = model("The Eiffel Tower is located in the city of")
    """

    def find() -> list[nn.Module]:
        whole = (module for root in (model, model.original_model) for module in root.modules())
        return list({id(module): module for module in whole}.values())

    training = [module for module in once(model, "modules", find) if module.training]
    try:
        for module in training:
            module.training = False  # and not eval(), which reaches the modules within
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            yield
    finally:
        for module in training:
            module.training = True
