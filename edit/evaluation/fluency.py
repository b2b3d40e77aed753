"""Whether the model is still fluent: long sampled texts, and how varied their words are."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.decode import SharedDraws, continued
from locate.engine.rows import WRITING_BUDGET, Budget, Extent, passes
from locate.facts.prompts import encode_text


def ngram_entropy(text: str) -> float:
    """The published fluency GE: the mean of 2/3 of the entropy of word pairs and 4/3 of that of triples, in bits.

    A text that repeats itself scores low. The published tables show a hundred times this number.

    >>> round(ngram_entropy("to be or not to be"), 3), ngram_entropy("no no no no")
    (1.974, 0.0)
    """
    words = split_words(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def split_words(text: str) -> list[str]:
    """Words and punctuation marks as the published code has them, by NLTK, sentence by sentence.

    Sentences end as Punkt finds without a list of abbreviations, which would be a download.

    >>> split_words("It doesn't. Does it?")
    ['It', 'does', "n't", '.', 'Does', 'it', '?']
    """
    # Its import takes seconds, and fluency alone needs it.
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

    tokenizer = NLTKWordTokenizer()
    return [word for sentence in PunktSentenceTokenizer().tokenize(text) for word in tokenizer.tokenize(sentence)]


def sample_texts(
    model: TransformerBridge,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    tokens: int = 100,
    top: int = 5,
    progress: bool = False,
) -> list[str]:
    """Each prompt with its continuation, sampled from the ``top`` likeliest tokens, as published.

    Each prompt draws from its own seed, so that no text depends on which others are asked for.

    Args:
        model: a raw-mode bridge.
        prompts: what to continue.
        seeds: one for each prompt.
        tokens: the length of a text, its prompt included.
        top: how many tokens are considered at each step.
        progress: whether to show a bar.

    >>> sample_texts(model, ["The Louvre is"], [0], tokens=8) == sample_texts(model, ["The Louvre is"], [0], tokens=8)
    True
    """
    encoded = [encode_text(model, prompt) for prompt in prompts]
    draws = torch.stack(
        [torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) for seed in seeds]
    )
    texts = [""] * len(prompts)
    extents = [Extent(length=len(prompt), beside=max(0, tokens - len(prompt)), readouts=1) for prompt in encoded]
    batches = passes(extents, Budget.of(model, WRITING_BUDGET).unpadded)
    for batch in tqdm(batches, "texts", disable=not progress, delay=1):
        start = torch.stack([encoded[i] for i in batch])
        made = continued(model, start, tokens - start.shape[1], SharedDraws(draws=draws[batch], top=top))
        for i, row in zip(batch, made, strict=True):
            texts[i] = model.tokenizer.decode(row, skip_special_tokens=True)
    return texts


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return math.fsum(-count / total * math.log2(count / total) for count in counts.values())
