"""Mean normalised scores of patches over facts."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from locate.contrast.metrics import hardly_differ
from locate.errors import LocateError, counted
from locate.patching.patches import Patches, site_patched
from locate.results import Result, place_of_largest
from locate.showing import shown
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePatches(Result):
    """Mean scores over facts, 0 for the corrupted run and 1 for the clean one in each.

    Attributes:
        data: ``score`` and ``standard_error`` (over facts, NaN for a single one) with dims by which sites are told
            apart; where sites were screened, ``confirmed``, the share of facts in which one was patched and not
            estimated.
        metric: what was scored.
        n_facts: how many facts were averaged.
        info: what was patched, and which way.

    >>> heads = locate.patch(model, fact, locate.TokenSwap(), sites="attn_head_z", layers=[3, 4], progress=False)
    >>> locate.average_patches([heads]).data["score"].dims
    ('layer', 'head')
    """

    stored_as = "average_patches"
    format = 2
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.patching.figures:plot_average_patches"}

    metric: str
    n_facts: int
    info: dict[str, Any]

    def top(self, n: int = 10) -> Any:
        """The ``n`` sites of the largest mean scores, either way, as a table.

        >>> heads = locate.patch(model, fact, locate.TokenSwap(), sites="attn_head_z", layers=[3, 4], progress=False)
        >>> list(locate.average_patches([heads]).top(2).columns)
        ['layer', 'head', 'score', 'standard_error']
        """
        return self.to_dataframe().sort_values("score", ascending=False, key=abs, ignore_index=True).head(n)

    def best(self) -> Site:
        """The site of the largest mean effect in the direction that restores the answer.

        Of patches that break, the one that takes away most. Sites that screening left out in all facts do not count.
        Of paths to receivers, the best sender.

        Raises:
            SiteError: what was patched has no name among sites, as a hook point of one's own.

        >>> heads = locate.patch(model, fact, locate.TokenSwap(), sites="attn_head_z", layers=[3, 4], progress=False)
        >>> locate.average_patches([heads]).best() == heads.best()
        True
        """
        gained = self.data["score"] if self.info["direction"] == "restore" else -self.data["score"]
        if "confirmed" in self.data:
            gained = gained.where(self.data["confirmed"] > 0)
        return site_patched(self.info, place_of_largest(gained))

    def _on(self) -> str:
        return f"{counted(self.n_facts, 'fact')}, {self.info['sites']}"

    def _found(self) -> str:
        best = self.top(1).iloc[0]
        error = shown(float(best["standard_error"]))
        return f"{self.metric}, score at best {shown(float(best['score']))}{error and f' ± {error}'}"

    def plot(self, **options: Any) -> "Figure":
        """A heat map; see ``locate.plots.plot_average_patches``."""
        return self.draw(**options)


def average_patches(patches: Sequence[Patches]) -> AveragePatches:
    """Mean normalised scores over facts, where the sites of all facts can be told to be the same.

    Positions differ from prompt to prompt, so that sites told apart by them have no mean. A single one, such as the
    last, plays the same part in each. Facts whose clean and corrupted runs measure the same have no score, and are
    left out with a warning.

    Args:
        patches: one for each fact, of the metric that each has in view.

    Raises:
        LocateError: there are none with a score, or their metrics, sites or directions differ.

    >>> how = {"sites": "attn_head_z", "layers": [3, 4], "progress": False}
    >>> patches = [locate.patch(model, one, locate.TokenSwap(), **how) for one in facts[:2]]
    >>> locate.average_patches(patches).n_facts
    2
    """
    scored = [one for one in patches if not hardly_differ(one.clean, one.corrupted)]
    if left_out := len(patches) - len(scored):
        warnings.warn(
            f"{left_out} of {len(patches)} facts have equal ends, and no score that could be averaged.", stacklevel=2
        )
    if not scored:
        raise LocateError("There are no scores to average.")
    metrics = Counter(one.metric for one in scored)
    if len(metrics) > 1:
        found = ", ".join(f"{name} of {count}" for name, count in metrics.items())
        raise LocateError(f"Scores of different metrics ({found}) do not average. Choose one metric for all facts.")
    for what, name in (("sites", "sites"), ("directions", "direction")):
        if len(kinds := Counter(one.info[name] for one in scored)) > 1:
            raise LocateError(f"Patches of different {what} ({', '.join(kinds)}) do not average.")
    tables = {"score": _same_sites([one.scores for one in scored])}
    if all("confirmed" in one.data for one in scored):
        tables["confirmed"] = _same_sites([one.data["confirmed"].astype(float) for one in scored])
    scores, n = tables["score"], len(scored)
    error = scores.std("fact", ddof=1) / n**0.5 if n > 1 else xr.full_like(scores[0], np.nan)
    means = {name: table.mean("fact") for name, table in tables.items()}
    first = scored[0].info
    info = {name: first[name] for name in ("model", "sites", "by", "direction", "receivers") if name in first}
    info["label"] = first["metrics"][scored[0].metric]
    data = xr.Dataset({**means, "standard_error": error})
    return AveragePatches(data=data, metric=scored[0].metric, n_facts=n, info=info)


def _same_sites(tables: Sequence[xr.DataArray]) -> xr.DataArray:
    """The tables of all facts as one, with a dim ``fact``."""
    if all(table.sizes.get("position") == 1 for table in tables):
        tables = [table.squeeze("position", drop=True) for table in tables]
    if any("position" in table.dims for table in tables):
        raise LocateError(
            "Sites told apart by position have no mean over facts, whose positions differ. Patch a single one, such as "
            "the subject's last, or leave position out."
        )
    if any(not table.coords.to_dataset().equals(tables[0].coords.to_dataset()) for table in tables):
        raise LocateError("These patches are not of the same layers, heads or neurons in all facts.")
    return xr.concat(tables, dim="fact")
