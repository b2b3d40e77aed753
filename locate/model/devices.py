"""Where a model reads its tokens."""

import torch
from transformer_lens.model_bridge import TransformerBridge


def input_device(model: TransformerBridge) -> torch.device:
    """The device that token ids go to: that of the model's first parameter.

    >>> input_device(model).type in ("cpu", "cuda")
    True
    """
    return next(model.original_model.parameters()).device
