"""A clean and a corrupted prompt of the same shape, however the user gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.branches import Pairing
from locate.contrast.corruption import Corrupted, Corruption, describe, run_corrupted
from locate.contrast.swaps import check_alike
from locate.engine import FrozenRun, freeze
from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_fact, encode_target, encode_text, token_strings
from locate.facts.questions import Questions

Text = Fact | str | Int[Tensor, "position"] | Sequence[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One clean prompt with its corrupted versions.

    Attributes:
        clean: the clean prompt; its subject span is empty where it is not a fact.
        corrupted: what is run instead.
        answer: the first token of the clean prompt's answer.
        target_new: the corrupted prompt's answer, where it is known and another.
        first: the first position where the two differ.
    """

    clean: Prompt
    corrupted: Corrupted
    answer: int | None
    target_new: str | None
    first: int


def make_pairs(
    model: TransformerBridge, clean: Text | Sequence[Text], corrupt: Corruption | Text | Sequence[Text]
) -> list[Pair]:
    """Encode clean and corrupted prompts and check that they fit each other.

    Raises:
        FactError: there are none, prompts of unequal length, or nothing differs between clean and corrupted.

    >>> pairs = make_pairs(model, fact, locate.TokenSwap("The Colosseum"))
    >>> pairs[0].first
    1
    """
    several: list[Text] = list(clean) if _are_several(clean) else [clean]  # type: ignore[arg-type, list-item]
    others: list[Corruption | Text] = (
        list(corrupt) if _are_several(corrupt) else [corrupt] * len(several)  # type: ignore[arg-type, list-item]
    )
    if not several:
        raise FactError("There is no clean prompt; give at least one.")
    if len(several) != len(others):
        raise FactError(f"There are {len(several)} clean prompts and {len(others)} corrupted ones; give as many.")
    pairs = [_pair(model, one, other) for one, other in zip(several, others, strict=True)]
    lengths = sorted({len(pair.clean.tokens) for pair in pairs})
    if len(lengths) > 1:
        raise FactError(f"Prompts that are patched together need the same number of tokens, found {lengths}.")
    return pairs


def _are_several(given: object) -> bool:
    """Whether these are prompts, and not the token ids of one."""
    return isinstance(given, list | tuple) and not (given and all(isinstance(one, int) for one in given))


def _pair(model: TransformerBridge, clean: Text, corrupt: Corruption | Text) -> Pair:
    prompt = _encode(model, clean)
    target_new = clean.target_new if isinstance(clean, Fact) else None
    if not isinstance(corrupt, Corruption):
        other = _encode(model, corrupt)
        check_alike(model, prompt, other)
        corrupted = Corrupted(tokens=other.tokens[None])
        if isinstance(corrupt, Fact):
            target_new = corrupt.target
    elif isinstance(clean, Fact):
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
    answer = int(encode_target(model, prompt.text, clean.target)[0]) if isinstance(clean, Fact) else None
    if isinstance(clean, Fact) and target_new == clean.target:
        target_new = None
    return Pair(
        clean=prompt, corrupted=corrupted, answer=answer, target_new=target_new, first=int(differs.nonzero()[0])
    )


def _encode(model: TransformerBridge, text: Text) -> Prompt:
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


def _shared(values: Sequence[Any]) -> Any:
    """What all of them are; None where they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _shared_tokens(rows: Sequence[Sequence[str]]) -> list[str]:
    """Labels of positions: the token that all prompts have there, or the position's number."""
    return [_shared(column) or f" [{place}]" for place, column in enumerate(zip(*rows, strict=True))]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedRuns:
    """The clean and the corrupted runs of some pairs, and which of their rows belong together.

    Attributes:
        clean: one row per pair.
        corrupted: the corrupted versions, pair by pair.
        owner: for each corrupted row, its pair.
        questions: what is asked, for metrics.
        first: the first position where any pair differs.
        info: a description for results.
    """

    clean: FrozenRun
    corrupted: FrozenRun
    owner: Int[Tensor, "row"]
    questions: Questions
    first: int
    info: dict[str, object]

    def direction(self, name: str) -> tuple[FrozenRun, FrozenRun, Pairing, Tensor]:
        """Target, source, their rows' pairing, and the question of each target row, for ``restore`` or ``break``."""
        rows = torch.arange(len(self.owner))
        if name == "restore":
            return self.corrupted, self.clean, Pairing(target=rows, source=self.owner), self.owner
        return self.clean, self.corrupted, Pairing(target=self.owner, source=rows), torch.arange(len(self.clean.tokens))

    def over_prompts(
        self, values: Float[Tensor, "*site row metric"]
    ) -> tuple[Float[Tensor, "*site metric"], Float[Tensor, "*site metric"]]:
        """The mean over all rows, and its standard error: over prompts, or over the samples of a single one."""
        n = len(self.clean.tokens)
        if n > 1:  # each has as many samples
            values = values.unflatten(-2, (n, -1)).mean(-2)
        mean, n = values.mean(-2), values.shape[-2]
        return mean, values.std(-2) / n**0.5 if n > 1 else torch.full_like(mean, float("nan"))


def run_pairs(
    model: TransformerBridge,
    pairs: Sequence[Pair],
    *,
    keep_clean: Sequence[str] = (),
    keep_corrupted: Sequence[str] = (),
    budget: int,
    corruption: Corruption | None = None,
) -> PairedRuns:
    """Run pairs once, clean and corrupted, keeping what patches are taken from."""
    clean = freeze(model, torch.stack([pair.clean.tokens for pair in pairs]), keep=keep_clean, budget=budget)
    tokens, hooks = run_corrupted([pair.corrupted for pair in pairs], [pair.clean for pair in pairs])
    corrupted = freeze(model, tokens, hooks=hooks, keep=keep_corrupted, budget=budget, checked=clean)
    samples = torch.tensor([len(pair.corrupted.tokens) for pair in pairs])
    # Without a known answer, what the model says itself.
    said = clean.logits.argmax(-1).tolist()
    answers = [said[i] if pair.answer is None else pair.answer for i, pair in enumerate(pairs)]
    questions = Questions(
        model=model, texts=tuple(pair.clean.text for pair in pairs), answers=torch.tensor(answers),
        targets_new=tuple(pair.target_new for pair in pairs), clean=clean.logits,
    )  # fmt: skip
    described = describe(corruption) if corruption is not None else {"corruption": "another prompt"}
    info = {
        "model": str(model.cfg.model_name), "pairs": len(pairs), "prompt": pairs[0].clean.text,
        # What all prompts share; where they differ, no one's own word stands for the others'.
        "answer": _shared([model.tokenizer.decode([answer]) for answer in answers]) or " answer",
        "target_new": _shared([pair.target_new for pair in pairs]),
        "subject_span": _shared([list(pair.clean.subject_span) for pair in pairs]) or [0, 0],
        "tokens": _shared_tokens([token_strings(model, pair.clean.tokens) for pair in pairs]),
        "corrupt_tokens": _shared_tokens([token_strings(model, pair.corrupted.tokens[0]) for pair in pairs]),
        **described,
    }  # fmt: skip
    return PairedRuns(
        clean=clean, corrupted=corrupted, owner=torch.arange(len(pairs)).repeat_interleave(samples),
        questions=questions, first=min(pair.first for pair in pairs), info=info,
    )  # fmt: skip
