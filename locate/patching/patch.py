"""Activation patching: exchange one state between a clean and a corrupted run, and see what it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.branches import Graft
from locate.contrast.contrast import Contrast, as_contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric, Metrics, warn_of_small_effects
from locate.contrast.pairs import Text, check_direction
from locate.engine import Branch
from locate.engine.rows import cut
from locate.errors import FactError, LocateError, SiteError
from locate.facts.prompts import Positions, resolve_positions
from locate.model.anatomy import check_layer
from locate.model.precision import check_precision, computing_in
from locate.names import DEFAULT_BUDGET, Direction, Precision
from locate.patching.patches import Patches
from locate.patching.screening import estimate
from locate.patching.sites import PatchSite, patch_site

By = Sequence[Literal["layer", "position", "head", "neuron"]]


@torch.inference_mode(False)  # what screening takes gradients of is made along the way
def patch(
    model: TransformerBridge,
    clean: Text | Sequence[Text] | Contrast,
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
    precision: Precision | str = "model",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Patches:
    """Patch every site of a kind, one at a time, between a clean and a corrupted run.

    Args:
        model: a raw-mode bridge.
        clean: a fact, a text, or token ids; or a list of those with as many tokens each, over which is averaged.
            Or a ``Contrast`` of any two runs, whose source takes the clean run's part and has kept the sites' states.
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
    check_direction(direction)
    check_precision(precision, model)
    site = patch_site(model, sites, by)
    if "position" not in site.by and positions != "all":
        if by is not None:
            raise SiteError(
                f"positions: sites told apart by {', '.join(site.by)} are patched at all positions. Add position to "
                "by, or leave positions out."
            )
        site = patch_site(model, sites, ("position", *site.by))
    wanted = sorted({check_layer(model, one) for one in (site.layers(model) if layers is None else layers)})
    if not wanted:
        raise SiteError("layers: give at least one.")
    names = [name for layer in wanted for name in site.kept(layer)]
    contrast = as_contrast(
        model, clean, corrupt, direction=direction, keep=names, keep_target=names if site.of_both else (),
        metric=metric, budget=budget,
    )  # fmt: skip
    site.check(contrast.source, wanted)
    patcher = _Patcher(
        contrast=contrast, site=site, layers=wanted, columns=_columns(contrast, positions, site),
        units=_units(contrast, site, wanted[0], units), metrics=contrast.metrics(metric), direction=direction,
        precision=precision,
    )  # fmt: skip
    return patcher.patch(screen, progress)


def _columns(contrast: Contrast, positions: Positions, site: PatchSite) -> tuple[int, ...]:
    """The positions to visit, which must be the same in all prompts."""
    prompts = contrast.questions.prompts
    each = [resolve_positions(prompt, positions) for prompt in prompts]
    other = next((index for index, own in enumerate(each) if own != each[0]), None)
    if "position" in site.by and other is not None:
        raise FactError(
            f"positions={positions!r} are tokens {list(each[0])} of {prompts[0].text!r} and {list(each[other])} of "
            f"{prompts[other].text!r}. Patch prompts whose subjects stand elsewhere by themselves, or give indices."
        )
    return each[0]


def _units(contrast: Contrast, site: PatchSite, layer: int, units: Sequence[int] | None) -> list[int]:
    """The heads or neurons to visit; a single stand-in where a patch covers whole states."""
    if site.unit is None:
        if units is not None:
            raise SiteError(f"{site.name} has no heads or neurons to choose from; leave units out.")
        return [0]
    n = site.n_units(contrast.source.kept[site.kept(layer)[0]])
    if units is not None and not units:
        raise SiteError(f"units: give at least one {site.unit}.")
    for unit in units or ():
        if not -n <= unit < n:
            raise SiteError(f"The {site.unit} {unit} is out of range: {site.name} has {n} a layer, 0 to {n - 1}.")
    return list(range(n)) if units is None else sorted({unit % n for unit in units})


@dataclass(frozen=True, kw_only=True, eq=False)
class _Patcher:
    contrast: Contrast
    site: PatchSite
    layers: list[int]
    columns: tuple[int, ...]
    units: list[int]
    metrics: tuple[Metric, ...]
    direction: str
    precision: str

    def patch(self, screen: int | float | None, progress: bool) -> Patches:
        contrast, target = self.contrast, self.contrast.target
        ends, measure = contrast.ends(self.metrics), contrast.measure(self.metrics)
        high, low = (ends.source, ends.target) if self.direction == "restore" else ends
        warn_of_small_effects(self.metrics, high, low)
        shape = (len(self.layers), len(self._places()), len(self.units))
        # Before the first difference the two runs are alike, and patching changes nothing.
        values = ends.target.expand(*shape, -1, -1).clone()
        estimates: Tensor | None = None
        chosen = torch.ones(shape, dtype=torch.bool)
        if screen is not None:
            estimates = estimate(contrast, self.site, self.layers, self._places(), self.units, self.metrics[0])
            chosen = _best(estimates.abs(), screen)
        with tqdm(total=int(chosen.sum()), desc=f"patching {self.site.name}", disable=not progress, delay=1) as bar:
            for place, position in enumerate(self._places()):
                if not self._reached(position):
                    bar.update(int(chosen[:, place].sum()))
                    continue
                start = contrast.first if position is None else position
                graft = Graft(contrast, start, everywhere=position is None)
                units = [one.nonzero()[:, 0].tolist() for one in chosen[:, place]]
                # As many at a time as fit one pass, so that no more states are in memory.
                for part in cut(list(map(len, units)), target.rows_at_a_time(start) // len(contrast.rows)):
                    group = [(layer, units[layer][own]) for layer, own in part]
                    branches = [self._branch(graft, layer, own) for layer, own in group]
                    with computing_in(self.precision, target.model):
                        found = target.resume(start, branches, measure=measure).float().cpu()
                    found = rearrange(found, "(site row) metric -> site row metric", row=len(contrast.rows))
                    for (layer, own), measured in zip(group, found.split([len(own) for _, own in group]), strict=True):
                        values[layer, place, own] = measured
                        bar.update(len(own))
        return self._result(values, high, low, estimates, chosen if screen is not None else None)

    def _places(self) -> list[int | None]:
        return list(self.columns) if "position" in self.site.by else [None]

    def _reached(self, position: int | None) -> bool:
        return position is None or position >= self.contrast.first

    def _branch(self, graft: Graft, layer: int, units: list[int]) -> Branch:
        return self.site.branch(graft, self.layers[layer], [self.units[unit] for unit in units])

    def _result(
        self,
        values: Float[Tensor, "layer place unit row metric"],
        high: Float[Tensor, "row metric"],
        low: Float[Tensor, "row metric"],
        estimates: Tensor | None,
        chosen: Tensor | None,
    ) -> Patches:
        coords: dict[str, Any] = {"layer": self.layers}
        kept: list[Any] = [slice(None)]
        if "position" in self.site.by:
            coords["position"] = list(self.columns)
        kept.append(slice(None) if "position" in self.site.by else 0)
        if self.site.unit is not None:
            coords[self.site.unit] = self.units
        kept.append(slice(None) if self.site.unit is not None else 0)
        dims = tuple(coords)
        mean, error = (rearrange(part, "... metric -> metric ...") for part in self.contrast.mean(values))
        clean, corrupted = (self.contrast.mean(end)[0] for end in (high, low))
        index = tuple(kept)
        data: dict[str, Any] = {
            "values": (("metric", *dims), mean[:, *index].numpy()),
            "standard_error": (("metric", *dims), error[:, *index].numpy()),
            "clean": ("metric", clean.numpy()),
            "corrupted": ("metric", corrupted.numpy()),
        }
        if chosen is not None and estimates is not None:
            data["confirmed"] = (dims, chosen[index].numpy())
            data["estimate"] = (dims, estimates[index].numpy())
        info = {
            **self.contrast.record, "sites": self.site.name, "by": list(dims), "direction": self.direction,
            "precision": self.precision, "metrics": {metric.name: metric.label for metric in self.metrics},
        }  # fmt: skip
        table = xr.Dataset(data, coords={"metric": [metric.name for metric in self.metrics], **coords})
        if chosen is not None and estimates is not None:
            # What was not patched keeps its estimate, which is of the first metric.
            guess = table["estimate"] + float((corrupted if self.direction == "restore" else clean)[0])
            first = table["metric"] == self.metrics[0].name
            table["values"] = (
                table["values"].where(table["confirmed"], guess.where(first, np.nan)).transpose("metric", *dims)
            )
            table["standard_error"] = table["standard_error"].where(table["confirmed"])
        return Patches(data=table, metric=self.metrics[0].name, info=info)


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
