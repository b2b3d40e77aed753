"""What each part of the model writes to the answer, before and after: the total effect as a sum over parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from edit.propagation.asking import asked_of
from edit.propagation.sides import Changed, sides_of
from edit.requests.probes import Probed
from locate.errors import SiteError
from locate.lens.attribution import LogitAttribution, logit_attribution
from locate.lens.parts import part_name, part_site
from locate.names import DEFAULT_BUDGET
from locate.results import Result
from locate.showing import first_of
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = ("base", "edited")


@dataclass(frozen=True, kw_only=True, eq=False)
class ContributionShift(Result):
    """Direct contributions of all parts to logit(o*) − logit(o) in the base and the edited model, probe by probe.

    Attributes:
        data: ``contribution`` (dims ``probe, side, part``), which sums over parts to each model's own logit difference;
            of each part its ``kind``, ``layer`` and ``unit``, as in ``locate.LogitAttribution``.
        texts: of the probes.
        roles: of the probes.
        answers: the old and the new one of each.
        info: how it was made.

    >>> found = edit.contribution_shift(model, update, request)
    >>> bool(abs(found.shift(0).sum() - flow.totals.loc[0, "total_effect"]) < 1e-3)
    True
    """

    stored_as = "contribution_shift"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.contribution_figures:plot_waterfall"}

    texts: tuple[str, ...]
    roles: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    info: dict[str, Any]

    def shift(self, probe: int = 0) -> xr.DataArray:
        """By how much each part's contribution grew with the change, in logits; dim ``part``.

        Raises:
            SiteError: there is no such probe.
        """
        if not 0 <= probe < len(self.texts):
            raise SiteError(f"There is no probe {probe}: there are {len(self.texts)}, from 0.")
        own = self.data["contribution"].sel(probe=probe)
        return own.sel(side="edited") - own.sel(side="base")

    def table(self, probe: int = 0) -> pd.DataFrame:
        """The parts of a probe, with both contributions and the shift, the largest either way first.

        >>> list(edit.contribution_shift(model, update, request).table().columns)
        ['name', 'kind', 'layer', 'unit', 'base', 'edited', 'shift']
        """
        shift = self.shift(probe)
        own = self.data["contribution"].sel(probe=probe)
        columns = {name: self.data[name].values.tolist() for name in ("kind", "layer", "unit")}
        table = pd.DataFrame({"name": list(map(part_name, *columns.values())), **columns})
        table = table.assign(**{side: own.sel(side=side).values for side in SIDES}, shift=shift.values)
        return table.sort_values("shift", key=abs, ascending=False, kind="stable", ignore_index=True)

    def best(self, probe: int = 0) -> Site:
        """The site whose contribution grew most.

        >>> edit.contribution_shift(model, update, request).best().layer >= 4
        True
        """
        table: Any = self.table(probe).sort_values("shift", ascending=False, kind="stable")
        for row in table.itertuples():
            if (site := part_site(row.kind, int(row.layer), int(row.unit))) is not None:
                return site
        raise SiteError("This attribution has no part that is a site.")

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: of the first probe, what attention and MLPs of each third of the layers add.

        >>> sorted(edit.contribution_shift(model, update, request).summary())[0]
        'MLPs, early'
        """
        table: Any = self.table(0)
        n = int(self.info["layers"])
        found: dict[str, float] = {}
        for third, name in enumerate(("early", "middle", "late")):
            own = table[(3 * table["layer"].clip(upper=n - 1) // n == third) & (table["layer"] >= 0)]
            mlp = own["kind"] == "mlp"
            for what, part in (("attention", own[~mlp]), ("MLPs", own[mlp])):
                found[f"{what}, {name}"] = float(part["shift"].sum())
        return found

    def _on(self) -> str:
        return f"{first_of(self.texts)}: {' → '.join(self.answers[0])}"

    def _rows(self) -> pd.DataFrame:
        """The parts of the first probe that shifted most."""
        return pd.DataFrame(self.table(0)[["name", "base", "edited", "shift"]])

    def plot(self, **options: Any) -> "Figure":
        """From the base to the edited logit difference, part by part; see ``edit.propagation.contribution_figures``."""
        return self.draw(**options)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each probe and part."""
        each = [self.table(index).assign(probe=index, text=text) for index, text in enumerate(self.texts)]
        return pd.concat(each, ignore_index=True)


def contribution_shift(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    by: str = "head",
    budget: int = DEFAULT_BUDGET,
) -> ContributionShift:
    """Tell apart which parts of the model write more to o*, and less to o, than before the change.

    Each model's logit difference is the sum of what its parts write, with its own final norm's scale held
    (``locate.logit_attribution``); so the total effect is the sum of their differences. What a part writes may differ
    because the part itself was changed or because it reads what others write now.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        probes: what to ask, or a request whose fact provides the probes.
        by: ``"component"``, ``"head"`` or ``"layer"``; see ``locate.logit_attribution``.
        budget: the most tokens in one pass.

    Raises:
        FactError: no probes, or one whose answers no token tells apart.
        ModelError: the model's stream cannot be told apart so.

    >>> edit.contribution_shift(model, update, request, by="layer").data.sizes["side"]
    2
    """
    sides = sides_of(model, change)
    asked = asked_of(sides, probes)
    texts = [one.prompt.tokens for one in asked]
    answers = [(one.new, one.old) for one in asked]
    found: list[LogitAttribution] = []
    for weights in (sides.before, sides.after):
        with weights.entered():
            found.append(logit_attribution(model, texts, answers, by=by, budget=budget, progress=False))
    values = np.stack([one.contributions.values for one in found], axis=1)
    first = found[0].data
    data = xr.Dataset(
        {"contribution": (("probe", "side", "part"), values)},
        coords={
            "probe": np.arange(len(asked)), "side": list(SIDES),
            **{name: ("part", first[name].values) for name in ("kind", "layer", "unit")},
        },
    )  # fmt: skip
    return ContributionShift(
        data=data, texts=tuple(one.probe.text for one in asked), roles=tuple(str(one.probe.role) for one in asked),
        answers=tuple((one.probe.old, one.probe.new) for one in asked),
        info={
            "model": str(model.cfg.model_name), "method": sides.described["method"], "by": by,
            "layers": model.cfg.n_layers,
        },
    )  # fmt: skip
