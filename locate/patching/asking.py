"""What is asked of patches: two runs, sites of a kind, where they are visited; and the table of what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast, as_contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric, Metrics, warn_of_small_effects
from locate.contrast.pairs import Text, check_direction
from locate.errors import FactError, SiteError
from locate.facts.prompts import Positions, resolve_positions
from locate.model.anatomy import check_layer
from locate.patching.patches import Patches
from locate.patching.sites import PatchSite, patch_site

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

    def clean_and_corrupted(self) -> tuple[Float[Tensor, "row metric"], Float[Tensor, "row metric"]]:
        """The metrics of both runs, on behalf of the caller's caller, whom they warn where they hardly differ."""
        ends = self.contrast.ends(self.metrics)
        high, low = (ends.source, ends.target) if self.direction == "restore" else ends
        warn_of_small_effects(self.metrics, high, low)
        return high, low

    def result(
        self,
        values: Values,
        high: Float[Tensor, "row metric"],
        low: Float[Tensor, "row metric"],
        info: Mapping[str, Any],
        tables: Mapping[str, Shaped[Tensor, "layer place unit"]] | None = None,
    ) -> Patches:
        """What was found, averaged over rows; with further tables of sites."""
        coords: dict[str, Any] = {"layer": self.layers}
        kept: list[Any] = [slice(None)]
        if "position" in self.site.by:
            coords["position"] = list(self.columns)
        kept.append(slice(None) if "position" in self.site.by else 0)
        if self.site.unit is not None:
            coords[self.site.unit] = self.units
        kept.append(slice(None) if self.site.unit is not None else 0)
        dims, index = tuple(coords), tuple(kept)
        mean, error = (rearrange(part, "... metric -> metric ...") for part in self.contrast.mean(values))
        clean, corrupted = (self.contrast.mean(end)[0] for end in (high, low))
        data: dict[str, Any] = {
            "values": (("metric", *dims), mean[:, *index].numpy()),
            "standard_error": (("metric", *dims), error[:, *index].numpy()),
            "clean": ("metric", clean.numpy()),
            "corrupted": ("metric", corrupted.numpy()),
            **{name: (dims, np.asarray(table[index])) for name, table in (tables or {}).items()},
        }
        described = {
            **self.contrast.record, "sites": self.site.name, "by": list(dims), "direction": self.direction,
            "metrics": {metric.name: metric.label for metric in self.metrics}, **info,
        }  # fmt: skip
        table = xr.Dataset(data, coords={"metric": [metric.name for metric in self.metrics], **coords})
        return Patches(data=table, metric=self.metrics[0].name, info=described)


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
