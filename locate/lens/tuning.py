"""Training a tuned lens: for each layer the affine map whose readout is nearest to the model's own output."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import freeze
from locate.engine.readout import read_logits
from locate.errors import FactError, LocateError, NumericsError
from locate.facts.prompts import encode_text
from locate.model.parameters import frozen_parameters
from locate.model.running import running


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What was trained: stream + A · stream + b for the stream that enters each layer.

    Attributes:
        weights: A.
        biases: b.
        tokens: how many there were to draw from.
        divergences: KL of the last step, layer by layer, in nats.
    """

    weights: Float[Tensor, "layer d_model into"]
    biases: Float[Tensor, "layer d_model"]
    tokens: int
    divergences: list[float]


def tune(
    model: TransformerBridge,
    texts: Sequence[str],
    *,
    steps: int,
    rate: float,
    batch: int,
    length: int,
    seed: int,
    budget: int,
    progress: bool,
) -> Trained:
    """Train all layers' maps side by side, from the logit lens on; see ``TunedLens.fit``."""
    if not texts or isinstance(texts, str):
        raise FactError("texts: give one or more, as a list.")
    if min(steps, batch, length) < 1:
        raise LocateError(f"steps, batch and length must be 1 or more, found {steps}, {batch} and {length}.")
    streams = _streams(model, texts, length, budget)
    n, width = model.cfg.n_layers, model.cfg.d_model
    generator = torch.Generator().manual_seed(seed)
    with running(model, grad=True), frozen_parameters(model):
        maps = torch.zeros(n, width, width + 1, dtype=torch.float32, device=streams.device)
        weights, biases = (part.clone().requires_grad_() for part in (maps[..., :-1], maps[..., -1]))
        adam = torch.optim.Adam([weights, biases], lr=rate)
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=steps)
        divergences = torch.zeros(n, dtype=torch.float32)
        for _ in tqdm(range(steps), "tuned lens", disable=not progress, delay=1):
            drawn = streams[:, torch.randint(streams.shape[1], (batch,), generator=generator)]
            with torch.no_grad():
                wanted = read_logits(model, drawn[-1]).float().log_softmax(-1)
            for layer in range(n):  # one at a time, so that one distribution over the vocabulary is held
                given = drawn[layer]
                made_of = given + (given.float() @ weights[layer].T + biases[layer]).to(given)
                found = read_logits(model, made_of).float().log_softmax(-1)
                loss = (wanted.exp() * (wanted - found)).sum(-1).mean()
                loss.backward()
                divergences[layer] = loss.detach().cpu()
            if not bool(divergences.isfinite().all()):
                raise NumericsError(f"The training of the lens went wrong: KL {divergences.tolist()}. Lower the rate.")
            adam.step()
            falling.step()
            adam.zero_grad()
    return Trained(
        weights=weights.detach().cpu(), biases=biases.detach().cpu(), tokens=streams.shape[1],
        divergences=divergences.tolist(),
    )  # fmt: skip


@torch.no_grad()
def _streams(
    model: TransformerBridge, texts: Sequence[str], length: int, budget: int
) -> Float[Tensor, "layer token d_model"]:
    """The stream that enters each layer, and last the final norm, of all tokens."""
    found = []
    for text in texts:
        run = freeze(model, encode_text(model, text)[None, :length], budget=budget)
        device = run.residuals[-1].device
        found.append(torch.cat([state.to(device) for state in run.residuals]))
    return torch.cat(found, dim=1)
