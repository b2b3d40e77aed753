"""First-order estimates of what a patch would do, for all sites from one backward pass."""

from collections.abc import Sequence

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from locate.contrast.contrast import Contrast
from locate.contrast.metrics import Metric
from locate.engine import FrozenRun
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
    names = {layer: _hook(site, layer, target.n_layers) for layer in layers}
    values, gradients = state_gradients(target, list(names.values()), contrast.measure(metric))
    result = torch.zeros(len(layers), len(places), len(units))
    chosen = torch.tensor(units)
    for index, layer in enumerate(layers):
        name = names[layer]
        wanted = _source_values(site, source, layer, name)[rows.source]
        own = values[name] if site.name != "resid_mid" else _source_values(site, target, layer, name)
        # A row of the target that is patched from several sources has the gradient of its own answer alone.
        product = (wanted.to(own) - own[rows.target]) * gradients[name][rows.target]
        product = product.float().cpu().mean(0)
        if site.name == "attn_head_pattern":
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


def _hook(site: PatchSite, layer: int, n_layers: int) -> str:
    if site.hook is not None:
        return f"blocks.{layer}.{site.hook}"
    if layer + site.offset < n_layers:
        return f"blocks.{layer + site.offset}.hook_in"
    return "ln_final.hook_in"


def _source_values(site: PatchSite, run: FrozenRun, layer: int, name: str) -> Tensor:
    if site.name == "resid_mid":
        return run.residuals[layer] + run.kept[f"blocks.{layer}.hook_attn_out"]
    return run.residuals[layer + site.offset] if site.hook is None else run.kept[name]
