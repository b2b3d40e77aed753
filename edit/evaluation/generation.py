"""What the model says when it is let to speak: greedy decoding with a natural stop."""

import re
import unicodedata
from collections.abc import Sequence

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from locate.engine.readout import only_logits_at
from locate.prompts import encode_text

_STOPS = ("\n", ". ", "! ", "? ")


def generate_greedily(model: TransformerBridge, prompts: Sequence[str], *, max_new_tokens: int = 16) -> list[str]:
    """Continue each prompt with the model's first choices until it stops by itself.

    A text stops at an end-of-text token, a line break or the end of a sentence, or after
    ``max_new_tokens``. The prompt is not repeated in the result.

    >>> generate_greedily(model, ["The Eiffel Tower is located in the city of"])[0].split()[0].rstrip(",.")
    'Paris'
    """
    encoded = [encode_text(model, prompt) for prompt in prompts]
    texts = [""] * len(prompts)
    # Rows of one length need no padding, so every prompt is decoded exactly as if it were alone.
    for length in sorted({len(tokens) for tokens in encoded}):
        batch = [i for i, tokens in enumerate(encoded) if len(tokens) == length]
        for i, text in zip(batch, _decode(model, torch.stack([encoded[i] for i in batch]), max_new_tokens), strict=True):
            texts[i] = text
    return texts


def exact_match(generation: str, answers: Sequence[str]) -> bool:
    """Whether a generation is one of the answers, up to where it naturally ends.

    The answer must be followed by the end of the text or by punctuation: "Rome, in Italy" matches "Rome",
    "Rome Airport" does not. Case, accents in composed form and leading articles do not count.

    >>> exact_match(" Rome, in Italy", ["Rome"]), exact_match(" Rome Airport", ["Rome"])
    (True, False)
    """
    text = _normal(generation)
    return any(re.match(re.escape(_normal(answer)) + r"(?!['’\-]?\w)(?=\s*(?:[^\w\s]|$))", text) for answer in answers)


def _normal(text: str) -> str:
    text = unicodedata.normalize("NFC", text).casefold().strip().lstrip("\"'“‘(")
    return re.sub(r"^(?:the|an?)\s+", "", " ".join(text.split()))


def _decode(model: TransformerBridge, tokens: torch.Tensor, max_new_tokens: int) -> list[str]:
    device = next(model.original_model.parameters()).device
    rows, cache, new = torch.arange(len(tokens)), DynamicCache(), tokens.to(device)
    ends = _end_tokens(model)
    made = torch.empty(len(tokens), 0, dtype=torch.long)
    finished = [False] * len(tokens)
    for _ in range(max_new_tokens):
        with torch.no_grad(), only_logits_at(model, rows, torch.full_like(rows, new.shape[1] - 1)):
            new = model(new, past_key_values=cache)[0].argmax(-1, keepdim=True)
        made = torch.cat([made, new.cpu()], dim=1)
        for row, one in enumerate(made):
            finished[row] = finished[row] or int(one[-1]) in ends or _stop(model.tokenizer.decode(one)) is not None
        if all(finished):
            break
    return [_cut(model, row.tolist(), ends) for row in made]


def _end_tokens(model: TransformerBridge) -> set[int]:
    configured = getattr(model.original_model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, model.tokenizer.eos_token_id) if token is not None}


def _stop(text: str) -> int | None:
    """Index at which a text has come to its natural end, after its first words."""
    start = len(text) - len(text.lstrip())
    found = [at for stop in _STOPS if (at := text.find(stop, start)) >= 0]
    return min(found) + 1 if found else None


def _cut(model: TransformerBridge, tokens: list[int], ends: set[int]) -> str:
    for index, token in enumerate(tokens):
        if token in ends:
            tokens = tokens[:index]
            break
    text = model.tokenizer.decode(tokens)
    return text[: _stop(text)]
