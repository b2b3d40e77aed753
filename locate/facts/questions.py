"""What is asked in a run."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.facts.prompts import Prompt, encode_target
from locate.facts.reading import Reading


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """What is asked in a run, as far as a metric needs to know.

    Attributes:
        model: who is asked.
        prompts: with the subjects' places; a plain text has none.
        answers: for each of them, the first token of its answer.
        targets_new: for each, its counterfactual answer, where it has one.
        clean: for each, the logits of the clean run.
        whole: for each, all tokens of its answer, where these stand behind the prompts that are run.
    """

    model: TransformerBridge
    prompts: tuple[Prompt, ...]
    answers: Int[Tensor, "question"]
    targets_new: tuple[str | None, ...]
    clean: Float[Tensor, "question vocab"]
    whole: tuple[Int[Tensor, "_"], ...] = ()

    @property
    def reading(self) -> Reading:
        """Where the prompts are read."""
        return Reading(prompts=self.prompts, whole=self.whole)

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts as written."""
        return tuple(prompt.text for prompt in self.prompts)

    def first_tokens(self, target: str) -> Int[Tensor, "question"]:
        """The first token of a text after each of the prompts."""
        return torch.stack([encode_target(self.model, prompt, target)[0] for prompt in self.prompts])
