"""What the model says when it is let to speak: greedy decoding with a natural stop."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.decode import continue_tokens, end_tokens, greedy
from locate.engine.rows import WRITING_BUDGET, Budget, Extent, passes
from locate.facts.prompts import encode_text
from locate.model.context import check_room, room_of

# White space after a sentence or around a line break, or the end of a sentence in a script that has no space after it.
# A full stop after one or two letters with a capital ("St. Petersburg", "J. R. R. Tolkien") abbreviates, and ends none.
_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b[A-Z][a-z]\.)\s|(?<=[。！？])|(?<=\S)\s*\n")


def generate_greedily(
    model: TransformerBridge, prompts: Sequence[str], *, max_new_tokens: int = 16, progress: bool = False
) -> list[str]:
    """Continue each prompt with the model's first choices until it stops by itself.

    A text stops at an end-of-text token, a line break or the end of a sentence, after ``max_new_tokens``, or where the
    model's context is full. The prompt is not repeated in the result.

    Raises:
        FactError: a prompt is longer than the model's context.

    >>> edit.generate_greedily(model, ["The Eiffel Tower is located in the city of"])[0].split()[0].rstrip(",.")
    'Paris'
    """
    encoded = [encode_text(model, prompt) for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded, strict=True):
        check_room(model, len(tokens), prompt)
    texts = [""] * len(prompts)
    # Rows of one length need no padding, so every prompt is decoded exactly as if it were alone.
    extents = [Extent(length=len(tokens), beside=max_new_tokens, readouts=1) for tokens in encoded]
    batches = passes(extents, Budget.of(model, WRITING_BUDGET).unpadded)
    for batch in tqdm(batches, "answers", disable=not progress, delay=1):
        made = _decode(model, torch.stack([encoded[i] for i in batch]), max_new_tokens)
        for i, text in zip(batch, made, strict=True):
            texts[i] = text
    return texts


def exact_match(generation: str, answers: Sequence[str]) -> bool:
    """Whether a generation is one of the answers, up to where it naturally ends.

    The answer must be followed by the end of the line or by punctuation: "Rome, in Italy" matches "Rome",
    "Rome Airport" and "Rome's" do not. Case, opening quotes, leading articles and the way in which an accent
    is encoded do not count; the accent itself does.

    >>> exact_match(" Rome, in Italy", ["Rome"]), exact_match(" Rome Airport", ["Rome"])
    (True, False)
    """
    text = _normal(generation)
    wanted = [normal for answer in answers if (normal := _normal(answer))]
    # No word may follow, joined or not, and the number may not go on ("1" is not "1,000").
    return any(re.match(re.escape(answer) + r"(?!\s*['-]?\w|[.,:]\d)", text) for answer in wanted)


def _normal(text: str) -> str:
    line = unicodedata.normalize("NFC", text).strip().partition("\n")[0]
    line = line.casefold().replace("’", "'").lstrip("\"'“‘(「『《（ ")
    return re.sub(r"^(?:the|an?) ", "", " ".join(line.split()))


def _decode(model: TransformerBridge, tokens: Tensor, max_new_tokens: int) -> list[str]:
    ends, room = end_tokens(model), room_of(model)
    if room is not None:
        max_new_tokens = min(max_new_tokens, room + 1 - tokens.shape[1])
    made = torch.empty(len(tokens), 0, dtype=torch.long)
    finished = [False] * len(tokens)
    for made in islice(continue_tokens(model, tokens, greedy), max_new_tokens):
        for row, one in enumerate(made):
            finished[row] = finished[row] or int(one[-1]) in ends or bool(_END.search(model.tokenizer.decode(one)))
        if all(finished):
            break
    return [_cut(model, row.tolist(), ends) for row in made]


def _cut(model: TransformerBridge, tokens: list[int], ends: set[int]) -> str:
    for index, token in enumerate(tokens):
        if token in ends:
            tokens = tokens[:index]
            break
    return _END.split(model.tokenizer.decode(tokens), maxsplit=1)[0]
