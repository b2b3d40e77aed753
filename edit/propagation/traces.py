"""Whether an edit took over the old fact's site: its causal trace before and after."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from edit.propagation.likeness import earth_movers, overlap, spearman
from edit.propagation.sides import Changed, sides_of
from edit.propagation.unrelated import FEW, About, Shift, unrelated_facts, unrelated_pairs
from edit.requests.requests import Case, EditRequest, as_request
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric
from locate.contrast.noise import GaussianNoise
from locate.errors import LocateError, SiteError
from locate.facts.facts import Fact
from locate.facts.prompts import Positions
from locate.names import DEFAULT_BUDGET
from locate.results import restoring
from locate.sites.site import Site, check_kind
from locate.tracing.average import ROLES, by_role, token_roles
from locate.tracing.causal import causal_trace
from locate.tracing.trace import Trace, check_comparable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = ("before", "after")
Side = Literal["before", "after"]
# Of which a dozen traces take seconds each: what a map of effects is like needs less than a number from it does.
_SAMPLES, _KINDS, _POSITIONS = 2, ("mlp",), ("subject", "last")
_MEASURES = {"overlap": True, "earth_mover": False, "spearman": True, "best_apart": False}


@dataclass(frozen=True, kw_only=True, eq=False)
class TraceShift(Shift):
    """The causal trace of o in the base model against that of o* in the edited one.

    Attributes:
        data: ``effect``, the indirect effects of both (dims ``side, kind, position, layer``), ``total_effect`` (dim
            ``side``) and ``best``, layer and position of the largest effect (dims ``side, kind, place``); with dims
            ``kind, measure`` the ``shift`` of each kind of site, ``comparable`` by role of the token, and with a dim
            ``pair`` the ``null``. Measures are ``overlap`` of the k sites of the largest effect, ``earth_mover`` (see
            ``earth_movers``: over layers and positions, each axis of length 1), ``spearman`` over all sites, and
            ``best_apart``, how many layers lie between the best sites.
        tokens: the prompt's.
        subject_span: half-open range of the subject's positions.

    >>> traced_shift.data["shift"].dims, traced_shift.best("mlp").kind
    (('kind', 'measure'), 'mlp')
    """

    stored_as = "trace_shift"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.shift_figures:plot_trace_shift"}
    compared, alike = "kind", _MEASURES

    tokens: tuple[str, ...]
    subject_span: tuple[int, int]

    def best(self, kind: str = "mlp", *, side: Side | str = "after") -> Site:
        """The site of the largest effect ``before`` (of o) or ``after`` (of o*), where the shift was asked to look.

        Raises:
            SiteError: no such kind was traced, or there is no such side.
        """
        kind = check_kind(kind)
        for name, given in (("kind", kind), ("side", side)):
            if given not in (known := [str(one) for one in self.data[name].values]):
                raise SiteError(f"{name}: this shift has {', '.join(known)}; found {given!r}.")
        layer, position = self.data["best"].sel(kind=kind, side=side).values.tolist()
        return Site(kind, layer=layer, position=position)

    def moved(self, kind: str = "mlp") -> bool:
        """Whether the best site of o* after the edit is another than that of o before it.

        >>> traced_shift.moved() == (traced_shift.best() != traced_shift.best(side="before"))
        True
        """
        return self.best(kind, side="before") != self.best(kind, side="after")

    def plot(self, **options: Any) -> "Figure":
        """Both traces, and the measures beside those of unrelated facts; see ``edit.propagation.shift_figures``."""
        return self.draw(**options)


def trace_shift(
    model: TransformerBridge,
    change: Changed,
    request: Case,
    *,
    null: int | Sequence[Fact] | Sequence[Trace] = FEW,
    kinds: Sequence[str] = _KINDS,
    positions: Positions = _POSITIONS,
    k: int = 10,
    within: str = "subject",
    corruption: Corruption | None = None,
    metric: str | Metric = "probability",
    window: int | None = None,
    confidence: float = 0.95,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> TraceShift:
    """Compare the causal trace of o in the base model with that of o* in the edited one, on the same prompt.

    Effects are taken in the direction of the total effect, so that traces of any height are compared by their shape.
    What the shift is large or small beside is how far the traces of two unrelated facts lie apart in the base model,
    where tokens of one role (``average_traces``) take the place of positions; ``comparable`` is the shift in that form.
    As two traces of one prompt have more in common than those of two prompts, this null is one from above.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        request: what was edited.
        null: how many unrelated facts to trace (of those that ship), which ones, or their traces, which
            ``unrelated_traces`` makes once for many edits; 0 for none.
        kinds: one or more of ``resid``, ``mlp`` and ``attn``; each takes as long again.
        positions: of ``causal_trace``.
        k: how many sites ``overlap`` is of.
        within: where the best site is looked for: ``"subject"``, ``"last"`` or ``"all"``.
        corruption: by default ``GaussianNoise(samples=2)``.
        metric: of the answer.
        window: of ``causal_trace``.
        confidence: of the null's interval.
        budget: the most tokens in one pass.
        progress: whether to show bars.

    Raises:
        FactError: no two of the facts of the null are unrelated; or as ``causal_trace`` does.
        LocateError: traces of the null were made otherwise; or as ``causal_trace`` does.
        UpdateError: the update does not fit the model, is not one of its weights, or changes nothing.

    >>> traced_shift = edit.trace_shift(model, update, request, null=2, progress=False)
    >>> list(traced_shift.to_dataframe().columns[:4])
    ['kind', 'measure', 'value', 'comparable']
    """
    sides, request = sides_of(model, change), as_request(request)
    if k < 1:
        raise LocateError(f"k: must be 1 or more, found {k}.")
    kinds = tuple(check_kind(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
    corruption = GaussianNoise(samples=_SAMPLES) if corruption is None else corruption
    how: dict[str, Any] = {
        "kinds": kinds, "positions": positions, "corruption": corruption, "metric": metric, "window": window,
        "budget": budget, "progress": progress,
    }  # fmt: skip
    fact = request.fact
    sides.check_tokens(fact.text)
    old, new = (replace(fact, target=a, target_new=b, consequences=()) for a, b in _both(request))
    with sides.before.entered():
        before = causal_trace(model, old, **how)
        if isinstance(null, int):
            null = unrelated_traces(model, null, apart_from=fact, **how)
        elif not all(isinstance(one, Trace) for one in null):
            null = unrelated_traces(model, [one for one in null if isinstance(one, Fact)], **how)
    with sides.after.entered():
        after = causal_trace(model, new, **how)
    others = [one for one in null if isinstance(one, Trace)]
    check_comparable([before, *others])
    everything = [before, *others]
    pairs = unrelated_pairs([_about(one) for one in everything])
    found = [_measures(everything[a], everything[b], kinds, k, within, roles=True) for a, b in pairs]
    dims = ("kind", "measure")
    data = xr.Dataset(
        {
            "effect": xr.concat([before.indirect_effect, after.indirect_effect], "side"),
            "total_effect": ("side", [before.total_effect, after.total_effect]),
            "best": (("side", "kind", "place"), [_best(one, kinds, within) for one in (before, after)]),
            "shift": (dims, _measures(before, after, kinds, k, within, roles=False)),
            "comparable": (dims, _measures(before, after, kinds, k, within, roles=True)),
            "null": (("pair", *dims), np.reshape(found, (len(found), len(kinds), len(_MEASURES)))),
        },
        coords={
            "side": list(SIDES),
            "kind": list(kinds),
            "measure": list(_MEASURES),
            "place": ["layer", "position"],
        },
    )
    info = {
        "model": str(model.cfg.model_name), "method": sides.described["method"], "prompt": before.info["prompt"],
        "old": fact.target, "new": request.target_new, "answers": [before.answer, after.answer],
        "ranks": [before.answer_rank, after.answer_rank], "k": k, "within": within, "confidence": confidence,
        "metric": before.metric, "corruption": before.info["corruption"], "window": before.info["window"],
        "null": [one.info["prompt"] for one in others], "null_known": sum(one.answer_rank == 1 for one in others),
    }  # fmt: skip
    return TraceShift(data=data, tokens=before.tokens, subject_span=before.subject_span, info=info)


def unrelated_traces(
    model: TransformerBridge, facts: int | Sequence[Fact] = FEW, *, apart_from: Fact | None = None, **how: Any
) -> list[Trace]:
    """Traces of facts that have nothing to do with each other, for many a ``trace_shift`` to be held against.

    Args:
        model: as it is now; it should be the base model.
        facts: which, or how many of those that ship.
        apart_from: a fact that they must not be related to.
        how: of ``causal_trace``; ``kinds``, ``positions`` and ``corruption`` are by default those of ``trace_shift``.

    >>> null = edit.unrelated_traces(model, 2, progress=False)
    >>> len(edit.trace_shift(model, update, request, null=null, progress=False).info["null"])
    2
    """
    chosen = unrelated_facts(model, apart_from, facts) if isinstance(facts, int) else list(facts)
    if not chosen:
        return []
    with warnings.catch_warnings():  # whether the model knows them is in the record
        warnings.simplefilter("ignore", UserWarning)
        usual = {"kinds": _KINDS, "positions": _POSITIONS, "corruption": GaussianNoise(samples=_SAMPLES)}
        return causal_trace(model, chosen, **{**usual, **how})


def load_trace_shift(path: str | Path) -> TraceShift:
    """Read a shift that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_trace_shift(traced_shift.save("shift.nc")).tokens == traced_shift.tokens
    True
    """
    return TraceShift.load(path)


def _both(request: EditRequest) -> tuple[tuple[str, str], tuple[str, str]]:
    """The answer of each side with the other one, so that both prompts get what the two begin with."""
    old, new = request.fact.target, request.target_new
    return (old, new), (new, old)


def _about(trace: Trace) -> About:
    info = trace.info
    return About(info["subject"], info["target"], info["relation"] or info["prompt"].replace(info["subject"], "{}"))


def _best(trace: Trace, kinds: Sequence[str], within: str) -> list[list[int]]:
    sites = [trace.best(kind, within=within) for kind in kinds]
    return [[site.layer, int(site.position or 0)] for site in sites]


def _measures(
    one: Trace, other: Trace, kinds: Sequence[str], k: int, within: str, *, roles: bool
) -> Float[np.ndarray, "kind measure"]:
    tables = [_tables(trace, other if trace is one else one, roles) for trace in (one, other)]
    rows = []
    sites = [[layer for layer, _ in _best(trace, kinds, within)] for trace in (one, other)]
    for first, second, here, there in zip(*tables, *sites, strict=True):
        apart = abs(here - there)
        rows.append([overlap(first, second, k), earth_movers(first, second), spearman(first, second), apart])
    return np.array(rows, dtype=float)


def _tables(trace: Trace, other: Trace, roles: bool) -> Float[np.ndarray, "kind place layer"]:
    """Effects in the direction of the total effect, by position; or by the roles that both prompts have."""
    effects = restoring(trace.indirect_effect, trace.total_effect)
    if not roles:
        return effects.values
    groups = [token_roles(each) for each in (trace, other)]
    return by_role(trace, effects)[:, [all(one[role] for one in groups) for role in ROLES]]
