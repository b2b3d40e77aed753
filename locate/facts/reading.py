"""Where prompts are read: at their end, or at every token of an answer that stands behind them."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from locate.facts.prompts import Prompt

Readouts = tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Prompts of one length, what stands behind them, and where they are read.

    Attributes:
        prompts: the prompts.
        whole: for each, all tokens of its answer; empty where only what comes next is asked. Each row is the prompt and
            all but the last token of its answer then; what is behind a shorter answer is hidden by causality.

    >>> prompt = locate.encode_fact(model, fact)
    >>> reading = Reading(prompts=(prompt,), whole=(torch.tensor([7, 8, 9]),))
    >>> reading.rows(prompt.tokens[None], torch.tensor([0]))[0, -2:]
    tensor([7, 8])
    """

    prompts: tuple[Prompt, ...]
    whole: tuple[Int[Tensor, "_"], ...] = ()

    @property
    def reads(self) -> int:
        """How often each row is read."""
        return max(map(len, self.whole), default=1)

    def rows(self, tokens: Int[Tensor, "row position"], question: Int[Tensor, "row"]) -> Int[Tensor, "row longer"]:
        """What is run: rows of prompts, each with what stands behind it."""
        if not self.whole:
            return tokens
        length = tokens.shape[1] - min(len(one.forced) for one in self.prompts) + self.reads - 1
        behind = []
        for prompt, whole in zip(self.prompts, self.whole, strict=True):
            rest = whole[len(prompt.forced) : -1]
            behind.append(torch.cat([rest, whole[-1:].expand(length - tokens.shape[1] - len(rest))]))
        return torch.cat([tokens, torch.stack(behind)[question]], dim=1)

    def at(self, question: Int[Tensor, "row"]) -> Readouts | None:
        """Where the rows are read; None for each row's last position."""
        if not self.whole:
            return None
        first = torch.tensor([len(one.tokens) - len(one.forced) - 1 for one in self.prompts])
        columns = first[question][:, None] + torch.arange(self.reads)
        return torch.arange(len(question)).repeat_interleave(self.reads), columns.flatten()

    def next_token(
        self, logits: Float[Tensor, "readout vocab"], question: Int[Tensor, "row"]
    ) -> Float[Tensor, "row vocab"]:
        """Of each row's readouts, the one that predicts what comes after the prompt."""
        place = torch.tensor([len(one.forced) if self.whole else 0 for one in self.prompts])
        by_row = rearrange(logits, "(row read) vocab -> row read vocab", read=self.reads)
        return by_row[torch.arange(len(question)), place[question]]
