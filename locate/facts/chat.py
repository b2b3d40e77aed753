"""A user's turn in a chat, by the tokenizer's own template."""

import re

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError


def as_turn(model: TransformerBridge, text: str) -> tuple[str, int]:
    """A text as what a user says, up to where the model's answer begins; and the place where the text stands in it.

    Raises:
        FactError: the tokenizer has no chat template, or its template changes what is said.

    >>> whole, start = as_turn(model, "Which city is the Eiffel Tower in?")         # doctest: +SKIP
    >>> whole[start:].startswith("Which city is the Eiffel Tower in?")              # doctest: +SKIP
    True
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise FactError(
            "chat: the model's tokenizer has no chat template. Give it one (tokenizer.chat_template), or write the "
            "turns into the prompt."
        )
    said = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    # Templates may take the space around a text off. What comes before the turn may say the same.
    start = whole.rfind(text.strip())
    if start < 0:
        raise FactError(f"chat: the tokenizer's chat template does not have {text!r} as it is; found {whole!r}.")
    return whole, start - (len(text) - len(text.lstrip()))


def turn_in(model: TransformerBridge, text: str) -> int:
    """Where the words of the last turn begin in a text that may be a chat written out; 0 where it is none.

    They come after the last special token, the name of who speaks and a line break. Nothing may be put before the
    token that begins the whole.

    >>> turn_in(model, "The city of")
    0
    """
    ends = [text.rfind(token) + len(token) for token in special_tokens(model) if token in text]
    if not ends:
        return 0
    header = re.compile(r"\s*(?:\w+\n)?\s*").match(text, max(ends))
    return max(ends) if header is None else header.end()


def special_tokens(model: TransformerBridge) -> tuple[str, ...]:
    """The tokenizer's special tokens as they are written.

    >>> "<|endoftext|>" in special_tokens(model)
    True
    """
    tokenizer = model.tokenizer
    added = (str(one) for one in tokenizer.added_tokens_decoder.values() if one.special)
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))
