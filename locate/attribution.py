"""First-order estimates of what a patch would do, for all sites from one backward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import FrozenRun, hook_points
from locate.engine.hooking import listen
from locate.engine.readout import only_logits_at
from locate.errors import LocateError
from locate.metrics import Metric, joint_measure
from locate.pairs import PairedRuns
from locate.parameters import frozen_parameters
from locate.patchsites import PatchSite


def estimate(
    runs: PairedRuns,
    site: PatchSite,
    layers: Sequence[int],
    places: Sequence[int | None],
    units: Sequence[int],
    metric: Metric,
    direction: str,
) -> Float[Tensor, "layer place unit"]:
    """Attribution patching (Nanda 2023; Kramár et al. 2024, arXiv:2403.00745): (n′ − n) · ∂m/∂n for every site n.

    ``n`` is the state in the run that is patched and ``n′`` the one that it would get. Averaged over rows.

    Raises:
        LocateError: the metric has no gradient.
    """
    target, source, pairing, questioned = runs.direction(direction)
    names = {layer: _hook(site, layer, target.n_layers) for layer in layers}
    measure = joint_measure([metric], runs.questions, questioned)
    values, gradients = state_gradients(target, list(names.values()), measure)
    result = torch.zeros(len(layers), len(places), len(units))
    chosen = torch.tensor(units)
    for index, layer in enumerate(layers):
        name = names[layer]
        wanted = _source_values(site, source, layer, name)[_rows(source, pairing.source)]
        own = values[name] if site.name != "resid_mid" else _source_values(site, target, layer, name)
        here = pairing.target if len(target.tokens) > 1 else torch.zeros_like(pairing.target)
        # A row of the target that is patched from several sources has the gradient of its own answer alone.
        product = (wanted.to(own) - own[here]) * gradients[name][here]
        product = product.float().cpu().mean(0)
        if site.name == "attn_head_pattern":
            per = product.sum(-1).transpose(0, 1)[:, chosen]  # query, head
        elif site.unit == "head":
            per = product.sum(-1)[:, chosen]
        elif site.unit == "neuron":
            per = product[:, chosen]
        else:
            per = product.flatten(1).sum(-1, keepdim=True)
        for place, position in enumerate(places):
            result[index, place] = per.sum(0) if position is None else per[position]
    return result


def state_gradients(
    run: FrozenRun, names: Sequence[str], measure: Callable[..., Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states at some hook points of a run, and the gradients of its rows' first measure with respect to them.

    Raises:
        LocateError: the measure has no gradient.
    """
    values: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}

    def shifter(name: str) -> Callable[[Tensor], Tensor]:
        def hook(output: Tensor) -> Tensor:
            # The gradient of a shift of nothing is the gradient of the state, also where the state is a view.
            values[name] = output.detach()
            shifts[name] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[name]

        return hook

    rows = torch.arange(len(run.tokens))
    last = torch.full_like(rows, run.tokens.shape[1] - 1)
    model: TransformerBridge = run.model
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(frozen_parameters(model))
        stack.enter_context(model.hooks(fwd_hooks=list(run.hooks)))
        for name, point in hook_points(model, list(names)).items():
            stack.callback(listen(point, shifter(name)).remove)
        stack.enter_context(only_logits_at(model, rows, last))
        logits = model(run.tokens, attention_mask=run.attention_mask)[0]
        measured = measure(logits, rows)[..., 0].sum()
        if not measured.requires_grad:
            raise LocateError("Screening needs a metric with a gradient; a rank has none. Choose another first metric.")
        found = torch.autograd.grad(measured, [shifts[name] for name in names], allow_unused=True)
    gradients = {
        name: torch.zeros_like(values[name]) if gradient is None else gradient
        for name, gradient in zip(names, found, strict=True)
    }
    return values, gradients


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


def _rows(run: FrozenRun, rows: Tensor) -> Tensor:
    return rows if len(run.tokens) > 1 else torch.zeros_like(rows)
