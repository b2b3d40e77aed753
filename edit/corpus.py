"""Text for key statistics: sampled from the model, read from a file, or taken from a data set."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from locate.devices import input_device
from locate.engine.readout import only_logits_at
from locate.errors import DataError
from locate.prompts import encode_text

SAMPLED = "sampled"

# Left to itself a small model writes little that resembles text about the world. These openings lead it
# there, and sampling among the likelier tokens keeps it there.
_TOP_K = 50
_OPENERS = (
    "The city of", "The capital of the country", "In the 19th century,", "The president of",
    "The novel was written by", "Scientists have discovered that", "The river flows through", "He was born in",
    "She studied at the University of", "The company was founded in", "The film stars", "During the war,",
    "The language is spoken in", "The museum is home to", "Many animals, such as",
    "The band released its first album", "The mountain is located in", "According to the report,", "In 1969,",
    "The painting by", "The king of", "A chemical element", "The team won the championship",
    "The food is made from", "The history of", "Researchers at", "The bridge was built",
    "The professor of physics", "Located in the north of", "The island of", "In Greek mythology,",
    "The computer was developed by", "The actor is best known for", "The human body", "One of the most popular",
    "The ancient Egyptians", "The economy of", "The airport serves", "The religion of",
    "The album was produced by", "In the United States,", "The European Union", "The first person to",
    "The university was founded", "The battle took place", "The recipe calls for", "The plant grows in",
    "The population of",
)  # fmt: skip


def sample_continuations(
    model: TransformerBridge,
    tokens: Int[Tensor, "row start"],
    length: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
    forced: Int[Tensor, "row forced"] | None = None,
) -> Int[Tensor, "row position"]:
    """Let the model continue every row by ``length`` sampled tokens (temperature 1).

    Special tokens are never sampled, so the text does not end early. ``forced`` gives the first of the
    new tokens where it is not negative: rows may begin with texts of unequal length.
    """
    device = input_device(model)
    tokens = tokens.to(device)
    rows = torch.arange(len(tokens))
    forbidden = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long, device=device)
    cache, new = DynamicCache(), tokens
    for step in range(length):
        with torch.no_grad(), only_logits_at(model, rows, torch.full_like(rows, new.shape[1] - 1)):
            logits = model(new, past_key_values=cache)[0].float()
        logits[:, forbidden] = -torch.inf
        ids = None
        if top_k is not None:
            logits, ids = logits.topk(top_k)
        # Drawn on the CPU, so that a seed means the same text on every device.
        new = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)
        if ids is not None:
            new = ids.cpu().gather(1, new)
        if forced is not None and step < forced.shape[1]:
            given = forced[:, step : step + 1]
            new = torch.where(given >= 0, given, new)
        new = new.to(device)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def token_batches(
    model: TransformerBridge, corpus: str, *, length: int = 128, rows: int = 256, seed: int = 0
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
        # As the model reads any text: what its tokenizer puts before it (such as BOS) opens every row.
        leading = _leading(model)
        own = length - len(leading)
        pieces: list[int] = []
        for text in _documents(corpus):
            pieces.extend(model.tokenizer(text, add_special_tokens=False)["input_ids"])
            while len(pieces) >= own * rows:
                yield _rows(pieces[: own * rows], own, leading)
                pieces = pieces[own * rows :]
        if len(pieces) >= own:
            yield _rows(pieces[: len(pieces) // own * own], own, leading)


def _rows(pieces: list[int], own: int, leading: list[int]) -> Int[Tensor, "row position"]:
    body = torch.tensor(pieces).view(-1, own)
    return torch.cat([torch.tensor(leading, dtype=torch.long).expand(len(body), -1), body], dim=1)


def _leading(model: TransformerBridge) -> list[int]:
    bare = model.tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = model.tokenizer("a")["input_ids"]
    return ids[: ids.index(bare[0])]


def _sampled(model: TransformerBridge, length: int, rows: int, seed: int) -> Iterator[Int[Tensor, "row position"]]:
    generator = torch.Generator().manual_seed(seed)
    openers = [encode_text(model, opener)[:length] for opener in _OPENERS]
    # A row of -1 is free from the start; an opener's own tokens (with BOS, where there is one) are given.
    given = torch.full((len(openers), max(len(opener) for opener in openers)), -1)
    for index, opener in enumerate(openers):
        given[index, : len(opener)] = opener
    while True:
        chosen = given[torch.randint(len(openers), (rows,), generator=generator)]
        yield sample_continuations(
            model, chosen[:, :1], length - 1, generator=generator, top_k=_TOP_K, forced=chosen[:, 1:]
        ).cpu()


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
