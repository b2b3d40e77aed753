"""The published algorithms, written down literally: the yardstick for correctness and speed.

Nothing here uses the engine. Each function is the obvious loop: one whole forward pass per site, whole
sequences through the whole model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.noise import GaussianNoise
from locate.facts.facts import Fact
from locate.facts.prompts import encode_fact, encode_target
from locate.model.devices import input_device


def causal_trace(
    model: TransformerBridge,
    fact: Fact,
    kind: str,
    *,
    window: int = 10,
    corruption: GaussianNoise | None = None,
    sites: Sequence[tuple[int, int]] | None = None,
) -> Float[Tensor, "position layer"]:
    """Causal tracing with one forward pass per site, as published (Meng et al. 2022).

    As in the original code, row 0 of every pass is the clean prompt, from which the states are copied, and
    the other rows are the corrupted samples. ``sites`` restricts the loop to some (position, layer)
    pairs; the others stay NaN.
    """
    corruption = corruption or GaussianNoise()
    prompt = encode_fact(model, fact)
    answer = int(encode_target(model, prompt, fact.target)[0])
    start, end = prompt.subject_span
    n_layers, length = model.cfg.n_layers, len(prompt.tokens)
    batch = prompt.tokens.to(input_device(model))[None].expand(1 + corruption.samples, -1)
    names = {
        "resid": "blocks.{}.hook_resid_post", "mlp": "blocks.{}.hook_mlp_out", "attn": "blocks.{}.hook_attn_out"
    }  # fmt: skip

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[1:, start:end] += corruption.noise(value[0, start:end])
        return value

    known = model.hook_dict
    table = torch.full((length, n_layers), float("nan"))
    every = [(position, layer) for position in range(length) for layer in range(n_layers)]
    for position, layer in every if sites is None else sites:
        if kind == "resid":
            layers = range(layer, layer + 1)
        else:
            layers = range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))

        def restore(value: Tensor, hook: object, position: int = position) -> Tensor:
            value = value.clone()
            value[1:, position] = value[0, position]
            return value

        # Not every layer has attention, or an MLP.
        patches = [(name, restore) for name in map(names[kind].format, layers) if name in known]
        with torch.no_grad(), model.hooks(fwd_hooks=[("embed.hook_out", corrupt), *patches]):
            logits = model(batch)
        table[position, layer] = logits[1:, -1].softmax(-1)[:, answer].mean().cpu()
    return table
