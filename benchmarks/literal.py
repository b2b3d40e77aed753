"""The published algorithms, written down literally: the yardstick for correctness and speed.

Nothing here uses the engine. Each function is the obvious loop: one whole forward pass per site, whole
sequences through the whole model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.corruption import GaussianNoise
from locate.facts import Fact
from locate.prompts import encode_fact, encode_target


def causal_trace(
    model: TransformerBridge,
    fact: Fact,
    kind: str,
    *,
    window: int = 10,
    corruption: GaussianNoise | None = None,
    sites: Sequence[tuple[int, int]] | None = None,
) -> Float[Tensor, "position layer"]:
    """Causal tracing with one forward pass of all noise samples per site (Meng et al. 2022).

    ``sites`` restricts the loop to some (position, layer) pairs; the others stay NaN.
    """
    corruption = corruption or GaussianNoise()
    prompt = encode_fact(model, fact)
    answer = int(encode_target(model, prompt.text, fact.target)[0])
    start, end = prompt.subject_span
    n_layers, length = model.cfg.n_layers, len(prompt.tokens)
    batch = prompt.tokens[None].expand(corruption.samples, -1)
    names = {
        "resid": "blocks.{}.hook_resid_post", "mlp": "blocks.{}.hook_mlp_out", "attn": "blocks.{}.hook_attn_out"
    }  # fmt: skip
    clean: dict[str, Tensor] = {}

    def record(value: Tensor, hook: object, name: str) -> None:
        clean[name] = value[0].clone()

    with torch.no_grad():
        wanted = ["embed.hook_out", *[names[kind].format(layer) for layer in range(n_layers)]]
        hooks = [(name, lambda v, hook, name=name: record(v, hook, name)) for name in wanted]
        model.run_with_hooks(prompt.tokens[None], fwd_hooks=hooks)
        noise = corruption.noise(clean["embed.hook_out"][start:end])

        def corrupt(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            value[:, start:end] += noise
            return value

        table = torch.full((length, n_layers), float("nan"))
        every = [(p, layer) for p in range(length) for layer in range(n_layers)]
        for position, layer in every if sites is None else sites:
            if kind == "resid":
                layers = range(layer, layer + 1)
            else:
                layers = range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))

            def restore(value: Tensor, hook: object, name: str, position: int = position) -> Tensor:
                value = value.clone()
                value[:, position] = clean[name][position]
                return value

            patched = [names[kind].format(one) for one in layers]
            patches = [(name, lambda v, hook, name=name, f=restore: f(v, hook, name)) for name in patched]
            with model.hooks(fwd_hooks=[("embed.hook_out", corrupt), *patches]):
                logits = model(batch)
            table[position, layer] = logits[:, -1].softmax(-1)[:, answer].mean()
    return table
