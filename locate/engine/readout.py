"""From the last block's output to logits."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def read_logits(model: TransformerBridge, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """Final norm, unembedding and whatever the architecture does to the logits after it.

    >>> import torch
    >>> read_logits(model, torch.zeros(3, model.cfg.d_model)).shape == (3, model.cfg.d_vocab)
    True
    """
    return unembedded(model, model.ln_final(residual[None])[0])


def unembedded(model: TransformerBridge, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """The same of states that have passed the final norm."""
    return model.adapter.apply_output_logits_transform(model.unembed(normed[None])[0])


@contextmanager
def only_logits_at(
    model: TransformerBridge, rows: Int[Tensor, "readout"], positions: Int[Tensor, "readout"]
) -> Iterator[None]:
    """While active, a full forward pass returns logits of shape ``1 readout vocab`` at these places only.

    The unembedding is a fifth of a small model's arithmetic, and its output most of the memory.
    """

    def pick(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)].unsqueeze(0), *args[1:])

    handle = model.unembed.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
