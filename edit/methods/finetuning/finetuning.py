"""Fine-tuning of one matrix: the plainest way to change an answer, and what the others are held against."""

import math
from typing import Annotated, Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Count, NotNegative, Positive, Unchecked, hyperparameters
from edit.methods.base import EditingMethod, Fitted, Job, checked
from edit.methods.finetuning.descent import Training, train
from edit.methods.where import Where, layers_at
from edit.values.contexts import build_contexts, check_answered
from locate.errors import SiteError, listed, tell
from locate.model.weights import down_projection

# As published for Llama-type models: layer 21 of 32.
_DEPTH = 0.656
# New answers that are less likely than not when the steps are over have been missed.
_REACHED = 0.5


@hyperparameters
class FineTuning(EditingMethod[WeightUpdate]):
    """Fine-tuning of one down-projection (FT-M): cross-entropy of the new targets' tokens alone, by Adam.

    The requests of a batch are trained on together, each counting the same. The prompt's own tokens are not learned.

    Args:
        layer: whose down-projection to train; by default at 0.656 of the depth (21 of 32).
        steps: at most.
        learning_rate: of Adam.
        limit: the most that any entry of the matrix may change (an L∞ constraint); by default any.
        enough: the mean loss per token, in nats, below which no further step is taken.

    >>> update = edit.FineTuning(layer=4, steps=3).fit(model, [request])
    >>> update.parameters
    ['model.layers.4.mlp.down_proj.weight']
    """

    layer: Annotated[Where | None, Unchecked] = None
    steps: Count = 25
    learning_rate: Positive = 5e-4
    limit: Positive | None = None
    enough: NotNegative = 0.01

    def edited_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """The layer that ``fit`` would edit."""
        where = self.layer if where is None else where
        if where is None:
            return (round(_DEPTH * model.cfg.n_layers),)
        layers = layers_at(model, where)
        if len(layers) > 1:
            raise SiteError(f"FineTuning trains one layer, found {list(layers)}. MEMIT and others spread over several.")
        return layers

    @torch.inference_mode(False)  # also what is made on the way is part of gradients
    def fit_with(self, job: Job) -> Fitted[WeightUpdate]:
        """See ``EditingMethod.fit``."""
        model, requests = job.model, checked(job.requests)
        (layer,) = self.edited_layers(model, job.layer)
        down = down_projection(model, layer)
        contexts = [build_contexts(model, request, [""]) for request in requests]
        if not job.earlier.changes:
            check_answered(model, requests, contexts, budget=self.budget)
        how = Training(steps=self.steps, learning_rate=self.learning_rate, limit=self.limit, enough=self.enough)
        found = train(model, contexts, layer, how, budget=self.budget, progress=job.progress)
        edits: list[dict[str, Any]] = []
        for request, context, losses in zip(requests, contexts, found.losses, strict=True):
            probability = math.exp(-losses[-1])
            edits.append({
                "request": request.describe(), "prompt": request.fact.prompt, "subject": request.fact.subject,
                "target": request.fact.target, "target_new": request.target_new,
                "answer_tokens": list(context.spelled), "losses": list(losses), "probability": probability,
                "missed": probability < _REACHED,
            })  # fmt: skip
        self._warn_of_missed(edits, layer)
        delta = found.delta.T if down.transposed else found.delta
        info = {"layer": layer, "layers": [layer], **{name: getattr(self, name) for name in _NAMED}, "edits": edits}
        deltas = {down.name: LowRank.exactly(delta)}
        return Fitted(update=WeightUpdate.make(model, deltas, method=self.name, info=info))

    def _warn_of_missed(self, edits: list[dict[str, Any]], layer: int) -> None:
        if missed := [edit for edit in edits if edit["missed"]]:
            told = [f"{edit['request']}: {edit['probability']:.2g} in layer {layer}" for edit in missed]
            tell(
                f"Fine-tuning has not brought {len(missed)} of {len(edits)} new answers to a probability of {_REACHED} "
                "per token; these edits are written, and may not be said. Take more steps, or a higher learning "
                "rate:\n" + listed(told)
            )


_NAMED = ("steps", "learning_rate", "limit", "enough")
