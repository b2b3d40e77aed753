"""How many tokens a model's context has room for."""

from textwrap import shorten

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError


def check_room(model: TransformerBridge, length: int, text: str | None = None, *, beside: str = "") -> None:
    """Whether a text of so many tokens fits the model's context.

    Args:
        model: the model.
        length: of the text and what stands beside it.
        text: to be named in the message.
        beside: what else was counted, to be named as well.

    Raises:
        FactError: it does not.

    >>> check_room(model, 10)
    """
    room = room_of(model)
    if room is not None and length > room:
        what = "The prompt" if text is None else f"The text {shorten(text, 60, placeholder=' …')!r}"
        counted = f" with {beside}" if beside else ""
        raise FactError(f"{what} has {length} tokens{counted}, but the model has room for {room}. Shorten it.")


def room_of(model: TransformerBridge) -> int | None:
    """How many tokens the model's context has, where its configuration says so.

    >>> room_of(model)
    8192
    """
    return getattr(model.original_model.config, "max_position_embeddings", None)
