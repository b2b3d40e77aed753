"""The measures of whole answers: the probability of all of their tokens, each given the ones before it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.metrics import Metric
from locate.engine import Measure
from locate.engine.decode import continued, greedy
from locate.errors import LocateError
from locate.facts.prompts import Prompt, encode_target
from locate.facts.questions import Questions


@dataclass(frozen=True)
class _OverAnswer:
    """Measures of all tokens of an answer: the prompt's own, a text, or what the model says itself."""

    target: str | None = None
    generated: int | None = None

    def __post_init__(self) -> None:
        if self.target is not None and self.generated is not None:
            raise LocateError("An answer is either given or generated; give target or generated, and not both.")
        if self.generated is not None and self.generated < 1:
            raise LocateError(f"generated: needs at least one token, found {self.generated}.")

    def answer(self, model: TransformerBridge, prompt: Prompt, target: str | None) -> Int[Tensor, "token"]:
        """Its tokens, for a prompt whose own answer is ``target``."""
        if self.generated is not None:
            made = continued(model, prompt.tokens[None], self.generated, greedy)[0, len(prompt.tokens) :]
            return torch.cat([prompt.forced, made])
        if (text := self.target or target) is None:
            raise LocateError(
                f"{prompt.text!r} has no known answer, of which a probability could be taken. Name one: "
                'sequence_probability("Paris"), or let the model say it: sequence_probability(generated=2).'
            )
        return torch.cat([prompt.forced, encode_target(model, prompt, text)])

    def bind(self, questions: Questions) -> Measure:
        """The measure for these questions."""
        if not questions.whole:
            raise LocateError(
                "A whole answer is asked where its tokens stand behind the prompt. Give the metric to what makes the "
                "runs: Contrast.of(…, metric=…)."
            )
        tokens = pad_sequence(list(questions.whole), batch_first=True)
        counts = torch.tensor([len(one) for one in questions.whole])
        mine = torch.arange(tokens.shape[1]) < counts[:, None]

        def measure(logits: Tensor, question: Tensor) -> Tensor:
            wanted, counted = (one[question].to(logits.device) for one in (tokens, mine))
            each = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
            return self._of(torch.where(counted, each, 0).sum(1))

        return measure

    def _of(self, logprobs: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        raise NotImplementedError

    @property
    def _shown(self) -> str:
        if self.generated:
            return f"its first {self.generated} tokens"
        return f"all of {self.target}" if self.target else "whole answer"


class SequenceProbability(_OverAnswer):
    """See ``sequence_probability``."""

    name = "sequence_probability"

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"p({self._shown})"

    def _of(self, logprobs: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        return logprobs.exp()


class SequenceLogProbability(_OverAnswer):
    """See ``sequence_log_probability``."""

    name = "sequence_log_probability"

    @property
    def label(self) -> str:
        """With its unit, for figures."""
        return f"log p({self._shown}) [nat]"

    def _of(self, logprobs: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        return logprobs


def sequence_probability(target: str | None = None, *, generated: int | None = None) -> Metric:
    """The probability of all of an answer's tokens, each given the ones before it: what answers that begin alike need.

    Args:
        target: another answer than the prompt's own.
        generated: in place of a given answer, so many tokens that the model says itself after the clean prompt.

    >>> locate.sequence_probability("Rome").label
    'p(all of Rome)'
    """
    return SequenceProbability(target, generated)


def sequence_log_probability(target: str | None = None, *, generated: int | None = None) -> Metric:
    """The log-probability of all of an answer's tokens, in nats; the arguments are those of ``sequence_probability``.

    >>> locate.sequence_log_probability(generated=2).label
    'log p(its first 2 tokens) [nat]'
    """
    return SequenceLogProbability(target, generated)
