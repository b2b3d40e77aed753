"""The way of an edit over layers and tokens: mediated effects as places, scored edges as arrows between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from edit.names import DIRECTIONS
from edit.propagation.asking import asked_of
from edit.propagation.mediation import mediate
from edit.propagation.propagation import Propagation
from edit.propagation.sides import Changed, sides_of
from edit.requests.probes import Probed, named_roles
from locate.circuits.circuit import Circuit
from locate.circuits.finding import find_circuit
from locate.circuits.written import written_hooks
from locate.errors import LocateError, SiteError
from locate.figures.flow import LOGITS, Flow
from locate.names import DEFAULT_BUDGET
from locate.results import Result, place_of_largest, restoring
from locate.showing import first_of
from locate.sites.components import parse
from locate.sites.site import KINDS, Site, check_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is drawn carries such a share of the effect, either way, at least; and arrows at most so many.
_LEAST, _MOST = 0.002, 400
_TITLES = {"resid": "residual state", "attn": "attention", "mlp": "MLP"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowMap(Result):
    """How an edit reaches the answers of some probes, place by place.

    Attributes:
        data: ``effect`` (dims ``probe, direction, kind, position, layer``: exact mediation), ``total`` (dim ``probe``),
            and ``weight`` (dim ``arrow``, with ``probe``, ``start`` and ``end``), both in logits.
        tokens: of each probe.
        answers: the old and the new one of each.
        texts: of the probes.
        layers: the edited ones.
        info: how it was made.

    >>> mapped.best().kind
    'mlp'
    """

    stored_as = "flow_map"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.flowing_figures:plot_flow_map"}

    tokens: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    layers: tuple[int, ...]
    info: dict[str, Any]

    def flow(self, probe: int = 0, direction: str = "gained") -> Flow:
        """A probe's flow as plain data, to be drawn.

        Raises:
            LocateError: there is no such probe or direction.

        >>> mapped.flow().n_layers
        9
        """
        if not 0 <= probe < len(self.texts) or direction not in DIRECTIONS:
            raise LocateError(
                f"There are probes 0 to {len(self.texts) - 1} and directions {', '.join(DIRECTIONS)}; found {probe} "
                f"and {direction!r}."
            )
        own = self.data["effect"].sel(probe=probe, direction=direction).isel(position=slice(len(self.tokens[probe])))
        nodes: Any = own.to_series().dropna().rename("effect").reset_index()
        nodes.index = pd.Index(_named(*(nodes[name].tolist() for name in ("kind", "layer", "position"))))
        nodes = nodes.assign(head=None, label=[f"{_TITLES[one.kind]} {one.layer}" for one in nodes.itertuples()])
        sites = self._sites(probe)
        # What the edited MLP writes at its site comes from there.
        begun = {f"mlp {layer} @{position}": name for name, (layer, position) in sites.items()}
        arrows: Any = self.data[["weight", "start", "end", "of"]].to_dataframe()
        arrows = arrows[arrows["of"] == probe].replace({"start": begun})
        arrows = arrows[arrows["start"].isin([*nodes.index, *sites]) & arrows["end"].isin([*nodes.index, LOGITS])]
        return Flow(
            tokens=list(self.tokens[probe]), n_layers=self.data.sizes["layer"], nodes=nodes, arrows=arrows,
            edited=sites, answers=self.answers[probe], total=float(self.data["total"].sel(probe=probe)),
        )  # fmt: skip

    def best(self, kind: str = "mlp", *, probe: int = 0) -> Site:
        """The place that carries most by itself, in the direction of the total effect; see ``Propagation.best``.

        Raises:
            SiteError: none carries anything.
        """
        effect = self.data["effect"].sel(probe=probe, direction="gained", kind=check_kind(kind))
        towards = restoring(effect, float(self.data["total"].sel(probe=probe)))
        if not bool((towards > 0).any()):
            raise SiteError(f"No state of kind {kind!r} carries the change to probe {probe} by itself. Take another.")
        return Site(check_kind(kind), **place_of_largest(towards))

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: of the first probe, the share of arrows to the answer that attention brings.

        >>> list(mapped.summary())
        ['brought by attention', 'brought by MLPs']
        """
        table: Any = self.data[["weight", "start", "end", "of"]].to_dataframe()
        own = table[(table["of"] == 0) & (table["end"] == LOGITS)]
        whole = float(self.data["total"].sel(probe=0)) or np.nan
        attention = own.loc[own["start"].str.startswith("attn"), "weight"].sum()
        others = own.loc[~own["start"].str.startswith("attn"), "weight"].sum()
        return {"brought by attention": float(attention) / whole, "brought by MLPs": float(others) / whole}

    def plot(self, **options: Any) -> "Figure":
        """The flow map; see ``edit.propagation.flowing_figures``."""
        return self.draw(**options)

    def html(self, **options: Any) -> str:
        """The flow maps of all probes and both directions as a fragment of a page; see ``locate.figures.flow_html``.

        >>> "<svg" in mapped.html()
        True
        """
        from locate.figures.flow_html import flow_html

        flows = {
            (f"{index + 1}. {text}", direction): self.flow(index, direction)
            for index, text in enumerate(self.texts) for direction in DIRECTIONS[::-1]
        }  # fmt: skip
        old, new = self.answers[0]
        return flow_html(flows, **{"title": f"How “{old} → {new}” reaches the answer", **options})

    def _on(self) -> str:
        return f"{first_of(self.texts)}: {' → '.join(self.answers[0])}"

    def _rows(self) -> pd.DataFrame:
        """The places of the largest effects, either way."""
        table = self.data["effect"].to_series().dropna().reset_index()
        return table.sort_values("effect", key=abs, ascending=False, ignore_index=True)

    def _tables(self) -> Sequence[xr.Dataset]:
        """Places, then arrows: every arrow at every place would be millions of rows."""
        arrows = self.data[["of", "start", "end", "weight"]].rename(of="probe")
        return [self.data[["effect", "total"]], arrows]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        own: Any = table[table["effect"].notna() | table["weight"].notna()].reset_index(drop=True)
        return own.astype(dict.fromkeys(["position", "layer", "arrow"], "Int64"))  # empty for the others

    def _sites(self, probe: int) -> dict[str, tuple[int, int | None]]:
        """Where an edited layer's MLP carries most."""
        mlp = self.data["effect"].sel(probe=probe, direction="gained", kind="mlp")
        found: dict[str, tuple[int, int | None]] = {}
        for layer in self.layers:
            own = mlp.sel(layer=layer).values
            found[f"edit {layer}"] = (layer, None if np.isnan(own).all() else int(np.nanargmax(np.abs(own))))
        return found


def flow_map(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    flow: Propagation | None = None,
    roles: Sequence[str] | str | None = None,
    steps: int = 5,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> FlowMap:
    """The way of an edit over layers and tokens, probe by probe.

    Places are exact: the mediated effect of each residual state, attention output and MLP output. Arrows are estimates:
    the scores of edges between components (EAP-IG along the weights), position by position, heads of a layer summed.
    Where attention reads keys and values of an earlier token, the arrow ends at its output at the last token.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        probes: what to ask, or a request whose fact provides the probes.
        flow: the mediation of these probes, where it was measured before.
        roles: of the probes that are drawn, the first of each that the change reaches; by default those whose mediation
            there is.
        steps: of integration.
        budget: the most tokens in one pass.
        progress: whether to show bars on anything longer than a second.

    Raises:
        LocateError: no probe of these roles that the change reaches, or a mediation of other probes.
        ModelError: the architecture writes to the stream what is neither attention nor an MLP.

    >>> found = edit.flow_map(model, update, request, roles="edit")
    >>> found.texts
    ('The Eiffel Tower is located in the city of',)
    """
    sides = sides_of(model, change)
    asked = asked_of(sides, probes)
    if flow is None:
        wanted = {} if roles is None else {"roles": roles}
        every = [one.probe for one in asked]
        flow = mediate(model, sides, every, kinds=KINDS, budget=budget, progress=progress, **wanted)
    chosen = _chosen(flow, asked, roles)
    keep, arrows = written_hooks(model), []
    for place, index in enumerate(chosen):
        contrast = asked[index].contrast(sides, keep=keep, budget=budget)
        circuit = find_circuit(
            model, contrast, method="eap-ig", steps=steps, by_position=True, budget=budget, progress=progress
        )
        arrows.append(_arrows(circuit, float(flow.totals.loc[index, "total_effect"])).assign(of=place))
    table = pd.concat(arrows, ignore_index=True).rename_axis("arrow")
    effect = flow.mediation.isel(probe=chosen).assign_coords(probe=np.arange(len(chosen))).rename("effect")
    total = xr.DataArray(flow.totals["total_effect"].to_numpy(float)[chosen], dims="probe")
    own = flow.totals.loc[chosen]
    return FlowMap(
        data=xr.merge([effect, table.to_xarray(), total.rename("total")]),
        tokens=tuple(flow.tokens[index] for index in chosen), texts=tuple(own["text"]),
        answers=tuple(zip(own["old"], own["new"], strict=True)), layers=sides.layers,
        info={"model": flow.info["model"], "method": flow.info["method"], "steps": steps, "roles": list(own["role"])},
    )  # fmt: skip


def _chosen(flow: Propagation, asked: Sequence[Any], roles: Sequence[str] | str | None) -> list[int]:
    """The first mediated probe of each role that the change does anything to."""
    if flow.totals["text"].tolist() != [one.probe.text for one in asked]:
        raise LocateError("flow: it is of other probes than those given. Give the probes that it was measured on.")
    wanted = flow.info["roles"] if roles is None else named_roles(roles)
    first: dict[str, int] = {}
    for index in (one for one in flow.mediated if flow.totals.loc[one, "total_effect"]):
        first.setdefault(str(flow.totals.loc[index, "role"]), index)
    found = [index for role, index in first.items() if role in wanted]
    if not found:
        raise LocateError(f"There is no mediated probe of the roles {', '.join(wanted)} that the change reaches.")
    return found


def _arrows(circuit: Circuit, total: float) -> pd.DataFrame:
    """Scored edges between attention and MLPs of layers, as what they carry of the effect."""
    assert circuit.by_position is not None
    scores = -circuit.by_position.transpose("position", "writer", "reader").values.astype(float)
    last = len(scores) - 1
    starts = [_component(str(name)) for name in circuit.scores["writer"].values]
    readers = [str(name) for name in circuit.scores["reader"].values]
    at, writer, reader = np.nonzero(np.abs(np.nan_to_num(scores)) > _LEAST / 20 * abs(total))
    table = pd.DataFrame({
        "start": [f"{starts[i]} @{position}" for position, i in zip(at, writer, strict=True)],
        "end": [_end(readers[j], position, last) for position, j in zip(at.tolist(), reader, strict=True)],
        "weight": scores[at, writer, reader],
    })  # fmt: skip
    summed: Any = table.groupby(["start", "end"], sort=False, as_index=False)["weight"].sum()
    summed = summed[summed["weight"].abs() > _LEAST * abs(total)]
    return summed.sort_values("weight", key=abs, ascending=False, kind="stable").head(_MOST)


def _component(name: str) -> str:
    """The layer's attention or MLP that a component belongs to."""
    parts = parse(name)
    return parts.end or f"{'mlp' if parts.head is None else 'attn'} {parts.layer}"


def _end(reader: str, position: int, last: int) -> str:
    """Where an arrow to a reader ends: keys and values are read from tokens further on, of which the last counts."""
    parts = parse(reader)
    if parts.end:
        return LOGITS
    return f"{_component(reader)} @{last if parts.input in ('k', 'v') else position}"


def _named(kinds: Sequence[str], layers: Sequence[int], positions: Sequence[int]) -> list[str]:
    return [f"{kind} {layer} @{position}" for kind, layer, position in zip(kinds, layers, positions, strict=True)]
