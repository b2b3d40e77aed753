"""Keeping gradients away from the weights."""

from transformer_lens.model_bridge import TransformerBridge


class frozen_parameters:
    """While active, no parameter asks for a gradient, so none is computed or kept for them."""

    def __init__(self, model: TransformerBridge) -> None:
        self._asking = [p for p in model.original_model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._asking:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self._asking:
            parameter.requires_grad_(True)
