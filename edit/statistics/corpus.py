"""Text for key statistics: sampled from the model, read from a file, or taken from a data set."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.names import SAMPLED
from locate.engine.decode import Sampler, continued
from locate.engine.rows import padded
from locate.errors import DataError
from locate.facts.prompts import encode_text

LENGTH, ROWS = 128, 256
_TEXT_FILES = {".txt", ".text", ".md", ".raw", ".tokens", ".json", ".jsonl", ".csv", ".tsv", ".gz"}

# Documents are tokenised this many at a time, which is faster than one by one.
_TOGETHER = 256
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


def token_batches(
    model: TransformerBridge,
    corpus: str,
    *,
    length: int = LENGTH,
    rows: int = ROWS,
    seed: int = 0,
    first: int = 0,
    step: int = 1,
    tick: Callable[[int], object] = lambda made: None,
) -> Iterator[Int[Tensor, "row position"]]:
    """Batches of token sequences from a corpus, until it ends (sampled text never does).

    A batch depends on its number alone, and not on the batches that were asked for before it.

    Args:
        model: the model, whose tokenizer is used and who writes the sampled text.
        corpus: ``"sampled"``, the path of a text file, or a ``datasets`` name such as
            ``"wikitext:wikitext-2-raw-v1"`` (its ``train`` split and ``text`` column).
        length: tokens per sequence.
        rows: sequences per batch.
        seed: of the sampling.
        first: number of the batch to begin with.
        step: how many batches to go on by: 2 is every other batch.
        tick: called as the model writes, with how many tokens it has written since.

    Raises:
        DataError: no such file or data set.

    >>> batch = next(token_batches(model, "sampled", length=16, rows=4))
    >>> batch.shape
    torch.Size([4, 16])
    >>> later = next(token_batches(model, "sampled", length=16, rows=4, first=5))
    """
    if corpus == SAMPLED:
        for number in count(first, step):
            yield _sampled(model, length, rows, _batch_seed(seed, number), tick)
    else:
        # As the model reads any text: what its tokenizer puts before it (such as BOS) opens every row.
        leading = _leading(model)
        own = length - len(leading)
        for pieces in islice(_cut(model, corpus, own, own * rows), first, None, step):
            body = torch.tensor(pieces).view(-1, own)
            yield torch.cat([torch.tensor(leading, dtype=torch.long).expand(len(body), -1), body], dim=1)


def tokenizer_identity(model: TransformerBridge) -> str:
    """A hash of how the model's tokenizer turns text into tokens, what it puts before a text among it.

    >>> len(tokenizer_identity(model))
    16
    """
    tokenizer: Any = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        described = tokenizer.get_vocab()
    else:
        described = json.loads(backend.to_str())
        for name in ("padding", "truncation"):  # as the last call left them
            described.pop(name, None)
    whole = [type(tokenizer).__name__, described, tokenizer("a")["input_ids"]]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _cut(model: TransformerBridge, corpus: str, own: int, size: int) -> Iterator[list[int]]:
    """The corpus's tokens, ``size`` at a time, and at its end as many whole sequences as are left."""
    documents = _documents(corpus)
    pieces: list[int] = []
    while texts := list(islice(documents, _TOGETHER)):
        for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]:
            pieces.extend(ids)
        whole = len(pieces) // size * size
        for start in range(0, whole, size):
            yield pieces[start : start + size]
        pieces = pieces[whole:]
    if len(pieces) >= own:
        yield pieces[: len(pieces) // own * own]


def _leading(model: TransformerBridge) -> list[int]:
    bare = model.tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = model.tokenizer("a")["input_ids"]
    return ids[: ids.index(bare[0])]


def _batch_seed(seed: int, number: int) -> int:
    """Every batch has a seed of its own, so that any of them can be made without those before it."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}|{number}".encode()).digest()[:7])


def _sampled(
    model: TransformerBridge, length: int, rows: int, seed: int, tick: Callable[[int], object]
) -> Int[Tensor, "row position"]:
    generator = torch.Generator().manual_seed(seed)
    openers = [encode_text(model, opener)[:length] for opener in _OPENERS]
    # A row of -1 is free from the start; an opener's own tokens (with BOS, where there is one) are given.
    chosen = padded(openers, fill=-1)[torch.randint(len(openers), (rows,), generator=generator)]
    sampler = Sampler(
        generator=generator, top_k=_TOP_K, forbidden=model.tokenizer.all_special_ids, forced=chosen[:, 1:]
    )  # fmt: skip
    made = continued(model, chosen[:, :1], length - 1, sampler, tick)
    tick(rows)  # the first token of each, which was given
    return made


def _documents(corpus: str) -> Iterator[str]:
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            with path.open(encoding="utf-8") as file:
                yield from file
        except UnicodeDecodeError as error:
            raise DataError(f"{corpus}: is not a UTF-8 text file ({error}).") from error
        return
    name, _, config = corpus.partition(":")
    # Names and configurations of data sets have dots as well, such as 20231101.en.
    if Path(name).suffix.lower() in _TEXT_FILES or corpus.startswith((".", "/", "~")):
        raise DataError(f"There is no text file {corpus!r}.")
    import datasets

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
