"""What a model is made of."""

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import SiteError


def check_layer(model: TransformerBridge, layer: int) -> int:
    """The layer as a non-negative index.

    Raises:
        SiteError: the model has no such layer.
    """
    n = model.cfg.n_layers
    if not -n <= layer < n:
        raise SiteError(f"Layer {layer} is out of range: the model has {n} layers, 0 to {n - 1}.")
    return int(layer) % n
