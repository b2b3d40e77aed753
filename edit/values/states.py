"""Reading keys and states at the subject's last token of many texts, as far up as needed."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.values.contexts import Contexts
from locate.engine import DEFAULT_BUDGET
from locate.engine.rows import Budget, Extent, padded, passes
from locate.model.devices import input_device
from locate.model.running import running

States = Mapping[str, list[Float[Tensor, "prefix _"]]]


def read_at_sites(
    model: TransformerBridge,
    contexts: Sequence[Contexts],
    names: Sequence[str],
    layer: int,
    *,
    bare: Sequence[str] = (),
    budget: int = DEFAULT_BUDGET,
) -> States:
    """States at the subject's last token under every prefix, by hook point and request.

    Texts end at the site and blocks above ``layer`` do not run. Each text is run once, however many requests
    share it.

    Args:
        model: a raw-mode bridge.
        contexts: of each request.
        names: hook points, up to and including the layer's.
        layer: the last block to run.
        bare: hook points that are wanted under the bare prompt alone (a single row).
        budget: the most tokens in one pass.

    >>> from edit.values.contexts import build_contexts
    >>> contexts = [build_contexts(model, request, ["", "I am here. "])]
    >>> read_at_sites(model, contexts, ["blocks.3.mlp.out.hook_in"], 3)["blocks.3.mlp.out.hook_in"][0].shape
    torch.Size([2, 1536])
    """
    texts: dict[tuple[int, ...], int] = {}
    wanted = [[texts.setdefault(tuple(row.up_to_site.tolist()), len(texts)) for row in one.asking] for one in contexts]
    rows = [torch.tensor(text) for text in texts]
    found: dict[str, dict[int, Tensor]] = {name: {} for name in (*names, *bare)}
    device = input_device(model)
    for group in passes([Extent(length=len(row)) for row in rows], Budget.of(model, budget)):
        tokens = padded([rows[i] for i in group]).to(device)
        at = torch.tensor([len(rows[i]) - 1 for i in group])

        def keep(value: Tensor, hook: object, name: str, group: list[int] = group, at: Tensor = at) -> None:
            own = value[torch.arange(len(group)), at.to(value.device)].float().cpu()
            found[name].update(zip(group, own, strict=True))

        hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in found]
        with running(model), model.hooks(fwd_hooks=hooks):
            model(tokens, stop_at_layer=layer + 1)
    return {
        name: [torch.stack([found[name][i] for i in (own[:1] if name in bare else own)]) for own in wanted]
        for name in found
    }
