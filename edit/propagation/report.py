"""All that is to be said of how a change travels, in one call and one folder."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.names import CONTENTS
from edit.propagation import mediation
from edit.propagation.asking import asked_of
from edit.propagation.parts import PARTS, Given, wanted_parts
from edit.propagation.propagation import Propagation
from edit.propagation.sides import Changed, sides_of
from edit.requests.probes import REACHED, Probed, as_probed
from edit.requests.requests import Case, EditRequest, as_request
from locate.errors import DataError, LocateError
from locate.names import DEFAULT_BUDGET
from locate.showing import Shown
from locate.sites.site import Site
from locate.store.files import load_json, save_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLOW = "flow.nc"


@dataclass(frozen=True, kw_only=True, eq=False)
class PropagationReport(Shown):
    """How a change reaches the answers: what it does to each probe, what carries it, and what it leaves as it was.

    Reports of many edits are averaged, with intervals over facts, by ``edit.compare_propagation({"ROME": reports})``;
    ``edit.study`` makes the edits as well.

    Attributes:
        flow: totals of all probes, and exact mediation.
        parts: by name, what else was found; ``report["circuit"]`` is one of them.
        left_out: by name, why a part is not there.

    >>> followed.best("mlp").layer == followed.flow.best("mlp").layer
    True
    """

    flow: Propagation
    parts: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def totals(self) -> pd.DataFrame:
        """One row per probe; see ``Propagation``."""
        return self.flow.totals

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """Each probe's tokens as text."""
        return self.flow.tokens

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers."""
        return self.flow.layers

    @property
    def mediation(self) -> xr.DataArray:
        """See ``Propagation.mediation``."""
        return self.flow.mediation

    def __getitem__(self, name: str) -> Any:
        """A part.

        Raises:
            LocateError: it is not there; the message says why.
        """
        if name in self.parts:
            return self.parts[name]
        wanted_parts(name)
        raise LocateError(f"This report has no {name!r}: {self.left_out.get(name, 'it was not asked for in parts=….')}")

    def share(self, probe: int = 0, kind: str | None = None) -> xr.DataArray:
        """See ``Propagation.share``."""
        return self.flow.share(probe, kind)

    def best(self, kind: str = "mlp", **options: Any) -> Site:
        """The site that carries most of the edit; see ``Propagation.best``."""
        return self.flow.best(kind, **options)

    def retention(self, **options: Any) -> pd.DataFrame:
        """What reaches each role of probes, as a share of what reaches the edit's own; see ``Propagation``."""
        return self.flow.retention(**options)

    def plot(self, name: str = "flow", **options: Any) -> "Figure":
        """The figure of the flow, or of a part.

        >>> len(followed.plot().axes) > 3
        True
        """
        return self.flow.plot(**options) if name == "flow" else self[name].plot(**options)

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by, each with the part that it is of.

        >>> followed.summary()["flow: edit"] != 0
        True
        """
        found = {f"flow: {name}": value for name, value in self.flow.summary().items()}
        for part, one in self.parts.items():
            found |= {f"{part}: {name}": float(value) for name, value in one.summary().items()}
        return found

    def to_dataframe(self, name: str = "flow") -> pd.DataFrame:
        """The table of the flow, or of a part."""
        return (self.flow if name == "flow" else self[name]).to_dataframe()

    def save(self, folder: str | Path) -> Path:
        """Write everything to a folder, which ``load_propagation_report`` reads back.

        >>> followed.save("report").name
        'report'
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.flow.save(place / _FLOW)
        for name, part in self.parts.items():
            part.save(place / f"{name}.{PARTS[name].file}")
        save_json(place / CONTENTS, {"parts": list(self.parts), "left_out": dict(self.left_out)})
        return place

    def _headline(self) -> Mapping[str, str]:
        return {**self.flow._headline(), "sizes": f"parts: {', '.join(self.parts) or 'none'}"}

    def _rows(self) -> pd.DataFrame:
        return self.flow._rows()

    def _picture(self) -> "Figure | None":
        return self.flow._picture()

    @property
    def info(self) -> Mapping[str, Any]:
        """How the flow was made."""
        return self.flow.info


def load_propagation_report(folder: str | Path) -> PropagationReport:
    """Read a report that was saved.

    Raises:
        DataError: the folder holds none, or a damaged one.

    >>> folder = followed.save("report")
    >>> edit.load_propagation_report(folder).totals.loc[0, "role"]
    'edit'
    """
    place = Path(folder)
    contents = load_json(place / CONTENTS)
    try:
        parts = {name: PARTS[name].load(place / f"{name}.{PARTS[name].file}") for name in contents["parts"]}
        left_out = dict(contents["left_out"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{place / CONTENTS} is not of a propagation report: {error}.") from error
    return PropagationReport(flow=Propagation.load(place / _FLOW), parts=parts, left_out=left_out)


def propagate(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    request: Case | None = None,
    parts: Sequence[str] | str = "all",
    mediate: Sequence[str] | str = REACHED,
    kinds: Sequence[str] | str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> PropagationReport:
    """Follow a change of a model to its answers: what it does to each probe, which states carry it, along which edges.

    Base and edited model read the same tokens, so that each state has a base and an edited value; what comes before the
    change is run once. Totals and mediation are exact (``edit.mediate``). Each further part is a function of its own,
    and takes the time that it takes alone.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build, such as a fine-tune of it.
        probes: what to ask (see ``probes_for``), or a request, or a fact with a new target, which provides them.
        request: the edit, for the parts that are about the edited fact, where ``probes`` are given one by one.
        parts: names of what is wanted beside totals and mediation (``edit.propagation.parts.PARTS``). With ``"all"``, a
            part that cannot be made of what is given is left out with its reason.
        mediate: roles of the probes whose mediation is measured.
        kinds: which states to exchange; see ``edit.mediate``.
        options: by part, what its function takes.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probes, or one whose answers no token tells apart, or that the two models spell otherwise.
        UpdateError: the update does not fit the model, is not one of its weights, or changes nothing.
        ModelError: the other model is of another build.
        LocateError: a part that was asked for by name cannot be made.

    >>> flow = edit.propagate(model, update, request, parts=(), mediate="edit", kinds=["mlp"])
    >>> bool(flow.totals.loc[0, "total_effect"] != 0)
    True
    """
    names, options = wanted_parts(parts), dict(options or {})
    wanted_parts(list(options))
    sides = sides_of(model, change)
    probes = as_probed(probes)
    if isinstance(probes, EditRequest):
        request = request or probes
    about = None if request is None else as_request(request)
    asked = [one.probe for one in asked_of(sides, probes)]
    flow = mediation.mediate(model, sides, asked, roles=mediate, kinds=kinds, budget=budget, progress=progress)
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in (bar := tqdm(names, "parts", disable=not progress, delay=1)):
        bar.set_description(f"parts: {name}", refresh=False)
        given = Given(
            sides=sides, probes=asked, request=about, flow=flow, options=options.get(name, {}), progress=progress
        )
        try:
            found[name] = PARTS[name].make(given)
        except LocateError as error:
            if parts != "all":
                raise
            left_out[name] = str(error)
            warnings.warn(f"{name}: left out: {error}", stacklevel=2)
    return PropagationReport(flow=flow, parts=found, left_out=left_out)
