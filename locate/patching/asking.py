"""What is asked of patches: two runs, sites of a kind, where they are visited; and the table of what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast, as_contrast, mean_and_error
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric, Metrics, warn_of_small_effects
from locate.contrast.pairs import Text, check_direction
from locate.errors import FactError, SiteError
from locate.facts.prompts import Positions, resolve_positions
from locate.model.anatomy import check_layer
from locate.patching.patches import Patches
from locate.patching.sites import PatchSite, patch_site
from locate.tasks.paired import PairedPrompts

By = Sequence[Literal["layer", "position", "head", "neuron"]]
Values = Float[Tensor, "layer place unit row metric"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Sites of a kind in two runs.

    Attributes:
        contrast: the runs.
        site: the kind.
        layers: where there are such sites.
        columns: the positions to visit.
        units: the heads or neurons to visit; a single stand-in where sites are whole states.
        metrics: what is measured.
        direction: which of the runs is patched.
    """

    contrast: Contrast
    site: PatchSite
    layers: list[int]
    columns: tuple[int, ...]
    units: list[int]
    metrics: tuple[Metric, ...]
    direction: str

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        clean: Text | Sequence[Text] | Contrast,
        corrupt: Corruption | Text | Sequence[Text] | None,
        *,
        sites: str,
        by: By | None,
        metric: Metrics | None,
        direction: str,
        layers: Sequence[int] | None,
        positions: Positions,
        units: Sequence[int] | None,
        budget: int,
        of_both: bool = False,
    ) -> "Asked":
        """What a user asks for; see ``locate.patch``.

        Args:
            of_both: whether a run that is made here keeps what the other one does, as its own states are needed too.
        """
        check_direction(direction)
        site = patch_site(model, sites, by)
        if "position" not in site.by and positions != "all":
            if by is not None:
                raise SiteError(
                    f"positions: sites told apart by {', '.join(site.by)} are patched at all positions. Add position "
                    "to by, or leave positions out."
                )
            site = patch_site(model, sites, ("position", *site.by))
        wanted = sorted({check_layer(model, one) for one in (site.layers(model) if layers is None else layers)})
        if not wanted:
            raise SiteError("layers: give at least one.")
        names = [name for layer in wanted for name in site.kept(layer)]
        both = site.of_both or (of_both and not isinstance(clean, Contrast))
        contrast = as_contrast(
            model, clean, corrupt, direction=direction, keep=names, keep_target=names if both else (), metric=metric,
            budget=budget,
        )  # fmt: skip
        site.check(contrast.source, wanted)
        return cls(
            contrast=contrast, site=site, layers=wanted, columns=_columns(contrast, positions, site),
            units=_units(contrast, site, wanted[0], units), metrics=contrast.metrics(metric), direction=direction,
        )  # fmt: skip

    @property
    def places(self) -> list[int | None]:
        """The positions that are visited one by one; None stands for all of them together."""
        return list(self.columns) if "position" in self.site.by else [None]

    def reached(self, position: int | None) -> bool:
        """Whether the two runs can differ there."""
        return position is None or position >= self.contrast.first

    def unchanged(self) -> Values:
        """The metrics of the run that is patched, at every site."""
        ends = self.contrast.ends(self.metrics)
        return ends.target.expand(len(self.layers), len(self.places), len(self.units), -1, -1).clone()

    def clean_and_corrupted(self) -> tuple[Float[Tensor, "question metric"], Float[Tensor, "question metric"]]:
        """The metrics of both runs."""
        ends = (self.contrast.by_question(end) for end in self.contrast.ends(self.metrics))
        target, source = ends
        return (source, target) if self.direction == "restore" else (target, source)


def asked_each(
    model: TransformerBridge,
    clean: PairedPrompts | Text | Sequence[Text] | Contrast,
    corrupt: Corruption | Text | Sequence[Text] | None,
    *,
    metric: Metrics | None,
    **options: Any,
) -> list[Asked]:
    """What a user asks for, for each length of prompts; they warn the caller's caller where metrics hardly differ.

    Raises:
        FactError: paired prompts have several lengths and sites are told apart by position.
    """
    if not isinstance(clean, PairedPrompts):
        every = [Asked.of(model, clean, corrupt, metric=metric, **options)]
    else:
        if corrupt is not None:
            raise FactError("corrupt: paired prompts bring their own; leave it out.")
        groups = clean.by_length(model)
        every = [
            Asked.of(model, one.pairs.clean, one.pairs.corrupt, metric=metric or one.pairs.metric, **options)
            for one in groups
        ]
        if len(groups) > 1 and "position" in every[0].site.by:
            lengths = [len(one.contrast.target.tokens[0]) for one in every]
            raise FactError(
                f"{clean.name}: prompts have {lengths} tokens, and positions are those of one length. Take one of "
                "by_length(model), or tell sites apart by layer and unit alone."
            )
    high, low = ends_of(every)
    warn_of_small_effects(every[0].metrics, high, low)
    return every


def ends_of(every: Sequence[Asked]) -> tuple[Float[Tensor, "question metric"], Float[Tensor, "question metric"]]:
    """The metrics of all clean runs, and of all corrupted ones."""
    high, low = zip(*(one.clean_and_corrupted() for one in every), strict=True)
    return torch.cat(high), torch.cat(low)


def patches_of(
    every: Sequence[Asked],
    values: Sequence[Values],
    info: Mapping[str, Any],
    tables: Mapping[str, Shaped[Tensor, "layer place unit"]] | None = None,
) -> Patches:
    """What was found, averaged over all questions; with further tables of sites."""
    asked = every[0]
    coords: dict[str, Any] = {"layer": asked.layers}
    kept: list[Any] = [slice(None)]
    if "position" in asked.site.by:
        coords["position"] = list(asked.columns)
    kept.append(slice(None) if "position" in asked.site.by else 0)
    if asked.site.unit is not None:
        coords[asked.site.unit] = asked.units
    kept.append(slice(None) if asked.site.unit is not None else 0)
    dims, index = tuple(coords), tuple(kept)
    whole = torch.cat([one.contrast.by_question(own) for one, own in zip(every, values, strict=True)], dim=-2)
    mean, error = (rearrange(part, "... metric -> metric ...") for part in mean_and_error(whole))
    clean, corrupted = (mean_and_error(end)[0] for end in ends_of(every))
    data: dict[str, Any] = {
        "values": (("metric", *dims), mean[:, *index].numpy()),
        "standard_error": (("metric", *dims), error[:, *index].numpy()),
        "clean": ("metric", clean.numpy()),
        "corrupted": ("metric", corrupted.numpy()),
        **{name: (dims, np.asarray(table[index])) for name, table in (tables or {}).items()},
    }
    described = {
        **asked.contrast.record, "pairs": sum(len(one.contrast.questions.prompts) for one in every),
        "sites": asked.site.name, "by": list(dims), "direction": asked.direction,
        "metrics": {metric.name: metric.label for metric in asked.metrics}, **info,
    }  # fmt: skip
    table = xr.Dataset(data, coords={"metric": [metric.name for metric in asked.metrics], **coords})
    return Patches(data=table, metric=asked.metrics[0].name, info=described)


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
