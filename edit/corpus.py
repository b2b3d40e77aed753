"""Text for key statistics: sampled from the model, read from a file, or taken from a data set."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from locate.engine.readout import only_logits_at
from locate.errors import DataError

SAMPLED = "sampled"


def sample_continuations(
    model: TransformerBridge,
    tokens: Int[Tensor, "row start"],
    length: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
) -> Int[Tensor, "row position"]:
    """Let the model continue every row by ``length`` sampled tokens (temperature 1).

    Special tokens are never sampled, so the text does not end early.
    """
    device = next(model.original_model.parameters()).device
    tokens = tokens.to(device)
    rows = torch.arange(len(tokens))
    forbidden = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long, device=device)
    cache, new = DynamicCache(), tokens
    for _ in range(length):
        with torch.no_grad(), only_logits_at(model, rows, torch.full_like(rows, new.shape[1] - 1)):
            logits = model(new, past_key_values=cache)[0].float()
        logits[:, forbidden] = -torch.inf
        if top_k is not None:
            logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
        # Drawn on the CPU, so that a seed means the same text on every device.
        new = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).to(device)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def token_batches(
    model: TransformerBridge, corpus: str, *, length: int = 128, rows: int = 64, seed: int = 0
) -> Iterator[Int[Tensor, "row position"]]:
    """Batches of token sequences from a corpus, until it ends (sampled text never does).

    Args:
        model: the model, whose tokenizer is used and who writes the sampled text.
        corpus: ``"sampled"``, the path of a text file, or a ``datasets`` name such as
            ``"wikitext:wikitext-2-raw-v1"`` (its ``train`` split and ``text`` column).
        length: tokens per sequence.
        rows: sequences per batch.
        seed: of the sampling.

    Raises:
        DataError: no such file or data set.

    >>> batch = next(token_batches(model, "sampled", length=16, rows=4))
    >>> batch.shape
    torch.Size([4, 16])
    """
    if corpus == SAMPLED:
        yield from _sampled(model, length, rows, seed)
    else:
        pieces: list[int] = []
        for text in _documents(corpus):
            pieces.extend(model.tokenizer(text)["input_ids"])
            while len(pieces) >= length * rows:
                yield torch.tensor(pieces[: length * rows]).view(rows, length)
                pieces = pieces[length * rows :]
        if len(pieces) >= length:
            yield torch.tensor(pieces[: len(pieces) // length * length]).view(-1, length)


def _sampled(model: TransformerBridge, length: int, rows: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    special = set(model.tokenizer.all_special_ids)
    # A different first token in every row keeps the texts apart; the model writes the rest.
    starts = torch.tensor([i for i in range(len(model.tokenizer)) if i not in special])
    while True:
        chosen = starts[torch.randint(len(starts), (rows, 1), generator=generator)]
        yield sample_continuations(model, chosen, length - 1, generator=generator).cpu()


def _documents(corpus: str) -> Iterator[str]:
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            with path.open(encoding="utf-8") as file:
                yield from file
        except UnicodeDecodeError as error:
            raise DataError(f"{corpus}: is not a UTF-8 text file ({error}).") from error
        return
    if path.suffix or corpus.startswith((".", "/", "~")):
        raise DataError(f"There is no text file {corpus!r}.")
    import datasets

    name, _, config = corpus.partition(":")
    try:
        data = datasets.load_dataset(name, config or None, split="train", streaming=True)
    except Exception as error:
        raise DataError(
            f"The data set {corpus!r} could not be loaded ({error}). Give a text file, a data set that this "
            f"machine can reach, or {SAMPLED!r}."
        ) from error
    for record in data:
        if "text" not in record:
            raise DataError(f"The data set {corpus!r} has no column 'text'; found {sorted(record)}.")
        yield record["text"]
