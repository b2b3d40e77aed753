"""Activation patching: exchange one state between a clean and a corrupted run, and see what it does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.branches import Graft
from locate.contrast.contrast import Contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metrics
from locate.contrast.pairs import Text
from locate.engine import Branch
from locate.engine.rows import cut
from locate.errors import LocateError
from locate.facts.prompts import Positions
from locate.model.precision import check_precision, computing_in
from locate.names import DEFAULT_BUDGET, Direction, Precision
from locate.patching.asking import Asked, By, Values, asked_each, patches_of
from locate.patching.estimating import default_method, estimate, estimator
from locate.patching.patches import Patches
from locate.tasks.paired import PairedPrompts


@torch.inference_mode(False)  # what screening takes gradients of is made along the way
def patch(
    model: TransformerBridge,
    clean: PairedPrompts | Text | Sequence[Text] | Contrast,
    corrupt: Corruption | Text | Sequence[Text] | None = None,
    *,
    sites: str = "resid_pre",
    by: By | None = None,
    metric: Metrics | None = None,
    direction: Direction | str = "restore",
    layers: Sequence[int] | None = None,
    positions: Positions = "all",
    units: Sequence[int] | None = None,
    screen: int | float | None = None,
    method: str | None = None,
    precision: Precision | str = "model",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Patches:
    """Patch every site of a kind, one at a time, between a clean and a corrupted run.

    Args:
        model: a raw-mode bridge.
        clean: a fact, a text, or token ids; or a list of those with as many tokens each, over which is averaged.
            Or a ``Contrast`` of any two runs, whose source takes the clean run's part and has kept the sites' states.
            Or paired prompts (``locate.tasks``), whose lengths may differ where sites have no position.
        corrupt: the same, or a corruption of the clean fact's subject.
        sites: ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn_out``, ``mlp_out``; of single heads
            ``attn_head_z``, ``attn_head_q``, ``attn_head_k``, ``attn_head_v``, ``attn_head_result``,
            ``attn_head_pattern``; single MLP
            activations ``mlp_neurons``; or the name of a hook point within a block, such as ``mlp.hook_in``.
        by: what the sites are told apart by. By default layer and position, for heads layer and head, for neurons
            layer and neuron, and by position as well where ``positions`` are given. Without ``"position"`` a patch
            covers all positions (for patterns: all queries).
        metric: one or more metrics. By default the logit of the clean answer over the other one, where both are known
            and a token tells them apart, else the probability of the clean one. The other answer is that of the
            corrupted fact where one is given, else the clean fact's ``target_new``. What two answers begin with joins
            the prompts; behind them stands the answer that a metric asks all of, which patches of all positions reach.
        direction: ``"restore"`` puts clean states into the corrupted run, ``"break"`` corrupted ones into the clean.
        layers: by default all.
        positions: which positions to visit; by default all.
        units: which heads or neurons; by default all.
        screen: patch only this many sites (or this share of them, as a fraction): those that a first-order estimate of
            their effect puts first. The others keep the estimate.
        method: of that estimate; see ``attribute``.
        precision: ``"bfloat16"`` runs the patched runs' matrix products in bfloat16.
        budget: the most tokens (rows × positions) in one pass; less needs less memory.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: clean and corrupted prompts do not fit each other, or named positions are not the same in all.
        SiteError: an unknown site; a layer, position, head or neuron out of range; positions of sites that are not
            told apart by them.
        LocateError: a metric that does not work, or one without a gradient where sites are screened.

    >>> patches = locate.patch(model, fact, locate.TokenSwap("The Colosseum"), sites="attn_head_z")
    >>> patches.scores.dims
    ('layer', 'head')
    """
    check_precision(precision, model)
    method = default_method(model) if method is None else method
    how = None if screen is None else estimator(method)
    every = asked_each(
        model, clean, corrupt, sites=sites, by=by, metric=metric, direction=direction, layers=layers,
        positions=positions, units=units, budget=budget, of_both=how is not None and how.integrated,
    )  # fmt: skip
    info: dict[str, Any] = {"precision": precision}
    if how is None or screen is None:
        shape = len(every[0].layers), len(every[0].places), len(every[0].units)
        return patches_of(every, _patched(every, torch.ones(shape, dtype=torch.bool), precision, progress), info)
    each = [one.contrast.by_question(estimate(one, one.metrics[0], how)[..., None]) for one in every]
    estimates = torch.cat(each, dim=-2).mean(-2)[..., 0]
    chosen = _best(estimates.abs(), screen)
    values = _patched(every, chosen, precision, progress)
    patches = patches_of(every, values, {**info, "method": method}, {"confirmed": chosen, "estimate": estimates})
    return _estimated_elsewhere(patches)


def _patched(
    every: Sequence[Asked], chosen: Bool[Tensor, "layer place unit"], precision: Precision | str, progress: bool
) -> list[Values]:
    """The metrics with each chosen site patched; elsewhere those of the run as it is."""
    total = int(chosen.sum()) * len(every)
    with tqdm(total=total, desc=f"patching {every[0].site.name}", disable=not progress, delay=1) as bar:
        return [_patched_alike(one, chosen, precision, bar) for one in every]


def _patched_alike(asked: Asked, chosen: Tensor, precision: Precision | str, bar: tqdm) -> Values:
    contrast, target = asked.contrast, asked.contrast.target
    measure = contrast.measure(asked.metrics)
    # Before the first difference the two runs are alike, and patching changes nothing.
    values = asked.unchanged()
    for place, position in enumerate(asked.places):
        if not asked.reached(position):
            bar.update(int(chosen[:, place].sum()))
            continue
        start = contrast.first if position is None else position
        graft = Graft(contrast, start, everywhere=position is None)
        units = [one.nonzero()[:, 0].tolist() for one in chosen[:, place]]
        # As many at a time as fit one pass, so that no more states are in memory.
        for part in cut(list(map(len, units)), target.rows_at_a_time(start) // len(contrast.rows)):
            group = [(layer, units[layer][own]) for layer, own in part]
            branches = [_branch(asked, graft, layer, own) for layer, own in group]
            with computing_in(precision, target.model):
                found = target.resume(start, branches, measure=measure).float().cpu()
            found = rearrange(found, "(site row) metric -> site row metric", row=len(contrast.rows))
            for (layer, own), measured in zip(group, found.split([len(own) for _, own in group]), strict=True):
                values[layer, place, own] = measured
                bar.update(len(own))
    return values


def _branch(asked: Asked, graft: Graft, layer: int, units: list[int]) -> Branch:
    return asked.site.branch(graft, asked.layers[layer], [asked.units[unit] for unit in units])


def _estimated_elsewhere(patches: Patches) -> Patches:
    """What was not patched keeps its estimate, which is of the first metric."""
    table, dims = patches.data, patches.values.dims
    guess = table["estimate"] + (patches.corrupted if patches.info["direction"] == "restore" else patches.clean)
    first = table["metric"] == patches.metric
    values = table["values"].where(table["confirmed"], guess.where(first, np.nan)).transpose("metric", *dims)
    error = table["standard_error"].where(table["confirmed"])
    return replace(patches, data=table.assign(values=values, standard_error=error))


def _best(scores: Tensor, screen: int | float) -> Tensor:
    total = scores.numel()
    n = round(screen * total) if isinstance(screen, float) and screen <= 1 else screen
    if n != int(n) or not 1 <= n <= total:
        raise LocateError(
            f"screen: there are {total} sites; give a number of them or a share up to 1.0, found {screen}."
        )
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[scores.flatten().topk(int(n)).indices] = True
    return chosen.view(scores.shape)
