"""First-order estimates of what a patch would do, for all sites from one backward pass."""

from collections.abc import Sequence

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from locate.contrast.contrast import Contrast
from locate.contrast.metrics import Metric
from locate.engine.gradients import state_gradients
from locate.patching.sites import PatchSite


def estimate(
    contrast: Contrast,
    site: PatchSite,
    layers: Sequence[int],
    places: Sequence[int | None],
    units: Sequence[int],
    metric: Metric,
) -> Float[Tensor, "layer place unit"]:
    """Attribution patching (Nanda 2023; Kramár et al. 2024, arXiv:2403.00745): (n′ − n) · ∂m/∂n for every site n.

    ``n`` is the state in the run that is patched and ``n′`` the one that it would get. Averaged over rows.

    Raises:
        LocateError: the metric has no gradient.
    """
    target, source, rows = contrast.target, contrast.source, contrast.rows
    names = {layer: site.gradient_hook(layer) for layer in layers}
    values, gradients = state_gradients(target, list(names.values()), contrast.measure(metric))
    result = torch.zeros(len(layers), len(places), len(units), dtype=torch.float32)
    chosen = torch.tensor(units)
    for index, layer in enumerate(layers):
        name = names[layer]
        wanted = site.states(source, layer)[rows.source]
        own = site.states(target, layer) if site.is_middle else values[name]
        # A row of the target that is patched from several sources has the gradient of its own answer alone.
        product = (wanted.to(own) - own[rows.target]) * gradients[name][rows.target]
        product = product.float().cpu().mean(0)
        if site.is_pattern:
            per = reduce(product, "head query key -> query head", "sum")[:, chosen]
        elif site.unit == "head":
            per = reduce(product, "position head d_head -> position head", "sum")[:, chosen]
        elif site.unit == "neuron":
            per = product[:, chosen]
        else:
            per = reduce(product, "position ... -> position 1", "sum")
        for place, position in enumerate(places):
            result[index, place] = per.sum(0) if position is None else per[position]
    return result
