"""One fact's run, as far as gains of its answer's log-probability need it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET, FrozenRun, freeze
from locate.neurons.asking import AskedFact
from locate.neurons.writing import Heads, Neurons, head_hooks, heads_written, neuron_hooks, neurons_written
from locate.sites.final import Readout


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """What is written at a fact's last position, and how the answer's log-probability follows from the stream there.

    Attributes:
        answer: the answer's first token.
        readout: of the run.
        neurons: of some layers.
        heads: of some layers, by layer.
    """

    answer: int
    readout: Readout
    neurons: list[Neurons]
    heads: dict[int, Heads]

    def said(self, raw: Float[Tensor, "row vocab"]) -> Float[Tensor, "row"]:
        """The answer's log-probability."""
        logits = self.readout.transformed(raw)
        return logits[:, self.answer] - logits.logsumexp(-1)

    def gains(
        self, stream: Float[Tensor, "d_model"], vectors: Float[Tensor, "vector d_model"], at_once: int
    ) -> Float[Tensor, "vector"]:
        """Of the answer's log-probability, where each of some vectors is added to a stream."""
        base, readout = self.readout.raw(stream[None]), self.readout
        after = [
            self.said((readout.linear(part) @ readout.weight).add_(base)) for part in vectors.split(max(1, at_once))
        ]
        return torch.cat(after) - self.said(base)


def read_state(
    model: TransformerBridge, one: AskedFact, layers: Sequence[int], of_heads: Sequence[int],
    like: Readout | None = None, budget: int = DEFAULT_BUDGET,
) -> State:  # fmt: skip
    """The state of a fact's own prompt, with the neurons and the heads of some layers.

    Raises:
        ModelError: a layer's neurons or heads cannot be told apart, or the logits come about in another way.

    >>> from locate.neurons.asking import ask
    >>> found = read_state(model, ask(model, fact), [2, 3], [3])
    >>> len(found.neurons), list(found.heads)
    (2, [3])
    """
    names = dict.fromkeys([*neuron_hooks(model, layers), *head_hooks(model, of_heads)])
    return state_of(
        freeze(model, one.prompts[0].tokens[None], keep=list(names), budget=budget), one, layers, of_heads, like
    )


@torch.no_grad()
def state_of(
    run: FrozenRun, one: AskedFact, layers: Sequence[int], of_heads: Sequence[int], like: Readout | None = None
) -> State:
    """The same of a run that was made."""
    return State(
        answer=one.answer, readout=Readout.of(run.model, run.residuals[-1][0, -1], run.logits[0], like),
        neurons=[neurons_written(run, layer, slice(-1, None)) for layer in layers],
        heads={layer: heads_written(run, layer) for layer in of_heads},
    )  # fmt: skip
