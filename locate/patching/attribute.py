"""Attribution: what every patch would do, estimated for all sites at once from a few backward passes."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metrics
from locate.contrast.pairs import Text
from locate.errors import LocateError
from locate.facts.prompts import Positions
from locate.names import DEFAULT_BUDGET, Direction
from locate.patching.asking import By, asked_each, patches_of
from locate.patching.estimating import default_method, estimate, estimator
from locate.patching.patches import Patches
from locate.tasks.paired import PairedPrompts


@torch.inference_mode(False)
def attribute(
    model: TransformerBridge,
    clean: PairedPrompts | Text | Sequence[Text] | Contrast,
    corrupt: Corruption | Text | Sequence[Text] | None = None,
    *,
    method: str | None = None,
    sites: str = "resid_pre",
    by: By | None = None,
    metric: Metrics | None = None,
    direction: Direction | str = "break",
    layers: Sequence[int] | None = None,
    positions: Positions = "all",
    units: Sequence[int] | None = None,
    pattern: str = "gradient",
    steps: int = 5,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Patches:
    """Estimate what patching every site of a kind would do: (n′ − n) · ∂m/∂n, with a gradient of the method's own.

    Args:
        model: a raw-mode bridge.
        clean: as in ``patch``.
        corrupt: as in ``patch``.
        method: ``"atp"`` takes gradients as they are (Nanda 2023). ``"relp"`` takes the coefficients of relevance
            propagation (Rezaei Jafari et al. 2025, arXiv:2508.21258): a norm's scale is constant, an activation
            function f is the factor f(x) / x, of a gate and what it multiplies each gets half. ``"gim"``
            (arXiv:2505.17630) holds norms constant, takes the softmax's derivative at temperature 2, and weighs the
            sides of products. ``"atp*"`` (Kramár et al. 2024, arXiv:2403.00745) computes the change of the attention
            pattern for queries and keys, and averages sizes over passes that drop one layer each, with the sign of
            their mean. ``"ig"``, the default, averages gradients over ``steps`` points between the two runs'
            embeddings, and ``"relp-ig"`` coefficients of relevance propagation there. In models whose tokens bring more
            than the residual stream, which have no straight path between two of them, the default is ``"relp"``.
        sites: as in ``patch``.
        by: as in ``patch``.
        metric: as in ``patch``; those that have a gradient.
        direction: ``"break"`` estimates patches of the clean run, at whose states gradients are taken; ``"restore"``
            those of the corrupted one.
        layers: as in ``patch``.
        positions: as in ``patch``.
        units: as in ``patch``.
        pattern: of relevance propagation: whether attention's pattern and values have their gradients
            (``"gradient"``), half of them each (``"half"``), or the pattern is a constant (``"frozen"``), through which
            nothing is attributed to queries and keys.
        steps: of integration.
        budget: the most tokens in one pass, an eighth of it here, where gradients are kept.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        Patches whose values are those of the run that is patched and the estimated effect.

    Raises:
        FactError: clean and corrupted prompts do not fit each other.
        SiteError: as in ``patch``.
        LocateError: an unknown method, or a metric without a gradient.
        ModelError: a method that has no meaning in this architecture.

    >>> guess = locate.attribute(model, fact, locate.TokenSwap("The Colosseum"), sites="mlp_out", progress=False)
    >>> guess.scores.dims, guess.info["method"]
    (('layer', 'position'), 'ig')
    """
    method = default_method(model) if method is None else method
    how = estimator(method, pattern=pattern)
    if steps < 1:
        raise LocateError(f"steps: must be 1 or more, found {steps}.")
    every = asked_each(
        model, clean, corrupt, sites=sites, by=by, metric=metric, direction=direction, layers=layers,
        positions=positions, units=units, budget=budget, of_both=how.integrated,
    )  # fmt: skip
    values = [one.unchanged() for one in every]
    n_rows = sum(len(one.contrast.rows) for one in every) * len(every[0].metrics)
    total = n_rows * (steps if how.integrated else 1)
    with tqdm(total=total, desc=f"attributing to {every[0].site.name}", disable=not progress, delay=1) as bar:
        for asked, own in zip(every, values, strict=True):
            for index, one in enumerate(asked.metrics):
                own[..., index] += estimate(asked, one, how, steps=steps, progress=bar.update)
    info: dict[str, Any] = {"precision": "model", "method": method}
    if how.rules.identity:
        info["pattern"] = pattern
    if how.integrated:
        info["steps"] = steps
    return patches_of(every, values, info)
