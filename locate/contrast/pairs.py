"""A clean and a corrupted prompt of the same shape, however the user gives them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.corruption import Corrupted, Corruption
from locate.contrast.metrics import Comparing, Metric
from locate.contrast.swaps import check_alike
from locate.errors import FactError, SiteError, tell
from locate.facts.answers import up_to_difference
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_fact, encode_target, encode_text
from locate.facts.subjects import same_text
from locate.names import Direction

Text = Fact | str | Int[Tensor, "_"] | Sequence[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One clean prompt with its corrupted versions.

    Attributes:
        clean: the clean prompt; its subject span is empty where it is not a fact.
        corrupted: what is run instead.
        answer: the first token of the clean prompt's answer that is its own.
        target: that answer, where it is known.
        target_new: the corrupted prompt's answer, where it is known and another.
        first: the first position where the two differ.
    """

    clean: Prompt
    corrupted: Corrupted
    answer: int | None
    target: str | None
    target_new: str | None
    first: int


def check_direction(direction: str) -> str:
    """The direction, if there is such a one.

    Raises:
        SiteError: naming the two that there are.
    """
    if direction not in get_args(Direction):
        raise SiteError(f"direction must be one of {get_args(Direction)}, found {direction!r}.")
    return direction


def make_pairs(
    model: TransformerBridge,
    clean: Text | Sequence[Text],
    corrupt: Corruption | Text | Sequence[Text],
    metrics: Sequence[Metric] = (),
) -> list[Pair]:
    """Encode clean and corrupted prompts and check that they fit each other.

    Where two answers are compared that begin alike, the tokens that both begin with join the prompts.

    Raises:
        FactError: there are none, prompts of unequal length, or nothing differs between clean and corrupted.

    >>> pairs = make_pairs(model, fact, locate.TokenSwap("The Colosseum"))
    >>> pairs[0].first
    1
    """
    pairs = [_pair(model, one, other, metrics) for one, other in separate(clean, corrupt)]
    lengths = sorted({len(pair.clean.tokens) for pair in pairs})
    if len(lengths) > 1:
        raise FactError(f"Prompts that are patched together need the same number of tokens, found {lengths}.")
    return pairs


def separate(
    clean: Text | Sequence[Text], corrupt: Corruption | Text | Sequence[Text]
) -> list[tuple[Text, Corruption | Text]]:
    """Each clean prompt with what stands against it: the one that was given, or that of its place in the list.

    Raises:
        FactError: there are none, or not as many of both.

    >>> separate(["a", "b"], locate.TokenSwap("c"))[1][0]
    'b'
    """
    several: list[Text] = list(clean) if are_several(clean) else [clean]  # type: ignore[arg-type, list-item]
    others: list[Corruption | Text] = (
        list(corrupt) if are_several(corrupt) else [corrupt] * len(several)  # type: ignore[arg-type, list-item]
    )
    if not several:
        raise FactError("There is no clean prompt; give at least one.")
    if len(several) != len(others):
        raise FactError(f"There are {len(several)} clean prompts and {len(others)} corrupted ones; give as many.")
    return list(zip(several, others, strict=True))


def are_several(given: object) -> bool:
    """Whether these are prompts, and not the token ids of one."""
    return isinstance(given, list | tuple) and not (given and all(isinstance(one, int) for one in given))


def _pair(model: TransformerBridge, clean: Text, corrupt: Corruption | Text, metrics: Sequence[Metric]) -> Pair:
    prompt = as_prompt(model, clean)
    target_new = clean.target_new if isinstance(clean, Fact) else None
    if not isinstance(corrupt, Corruption):
        other = as_prompt(model, corrupt)
        check_alike(model, prompt, other)
        corrupted = Corrupted(tokens=other.tokens[None])
        if isinstance(corrupt, Fact):
            target_new = corrupt.target
    elif isinstance(clean, Fact):
        if names_again(clean):
            tell(
                f"{clean.text!r} names {clean.subject!r} more than once, and only the mention at {{}} is corrupted: "
                "the others still say what is asked about. Reword the prompt, or give a corrupted prompt of your own."
            )
        corrupted = corrupt.corrupt(model, clean, prompt)
    else:
        raise FactError(
            f"{type(corrupt).__name__} corrupts a subject, so the clean prompt must be a Fact; found "
            f"{type(clean).__name__}. Give a Fact, or the corrupted prompt itself."
        )
    differs = (corrupted.tokens != prompt.tokens).any(0)
    if corrupted.embeddings is not None:
        differs[slice(*prompt.subject_span)] = True
    if not bool(differs.any()):
        raise FactError(f"The clean and the corrupted prompt are the same: {prompt.text!r}.")
    if isinstance(clean, Fact) and target_new is not None and same_text(target_new, clean.target):
        target_new = None
    target = clean.target if isinstance(clean, Fact) else None
    # What both answers begin with is said already when they are compared, in all versions.
    longer = up_to_difference(model, prompt, *_compared(metrics, target, target_new))
    behind = longer.forced.expand(len(corrupted.tokens), -1)
    return Pair(
        clean=longer, corrupted=replace(corrupted, tokens=torch.cat([corrupted.tokens, behind], dim=1)), target=target,
        answer=None if target is None else int(encode_target(model, longer, target)[0]), target_new=target_new,
        first=int(differs.nonzero()[0]),
    )  # fmt: skip


def _compared(metrics: Sequence[Metric], target: str | None, target_new: str | None) -> tuple[str | None, str | None]:
    """The answers that are held against each other: those that a metric names, else the prompt's own."""
    named = (metric.compared(target, target_new) for metric in metrics if isinstance(metric, Comparing))
    return next(named, (target, target_new))


def names_again(fact: Fact) -> bool:
    """Whether a prompt names its subject besides where it stands.

    >>> names_again(locate.Fact(prompt="{} is a city. The country of Rome is", subject="Rome", target="Italy"))
    True
    """
    word = rf"(?<!\w){re.escape(fact.subject.strip())}(?!\w)"
    return any(re.search(word, part, re.IGNORECASE) for part in fact.prompt.split("{}"))


def as_prompt(model: TransformerBridge, text: Text) -> Prompt:
    """A fact, a text or token ids as an encoded prompt; what is no fact has no subject.

    Raises:
        FactError: it is something else, or ids that the model does not have.

    >>> as_prompt(model, "The Louvre is in").subject_span
    (0, 0)
    """
    if isinstance(text, Fact):
        return encode_fact(model, text)
    if not isinstance(text, str | Tensor | list | tuple):
        raise FactError(f"A prompt must be a Fact, a text or token ids; found {type(text).__name__}.")
    tokens = encode_text(model, text) if isinstance(text, str) else torch.as_tensor(text).cpu()
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise FactError(f"Token ids must be integers, found {tokens.dtype}.")
    if tokens.ndim != 1 or len(tokens) == 0:
        raise FactError(f"A prompt's tokens must be one row of at least one id, found shape {tuple(tokens.shape)}.")
    if int(tokens.min()) < 0 or int(tokens.max()) >= model.cfg.d_vocab:
        raise FactError(f"Token ids must be from 0 to {model.cfg.d_vocab - 1}, found {tokens.tolist()}.")
    words = text if isinstance(text, str) else str(model.tokenizer.decode(tokens))
    return Prompt(text=words, tokens=tokens, subject_span=(0, 0))
