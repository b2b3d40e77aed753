"""Facts traced, edited each by itself, judged and followed in one call."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change
from edit.evaluation import Baseline, baseline
from edit.evaluation import evaluate as judge
from edit.methods import EditingMethod
from edit.propagation.report import propagate as follow
from edit.requests.requests import Cases, EditRequest, as_requests
from edit.studies.placing import TRACED, At, average_layer, best_of, name_of, places_of
from edit.studies.result import EditStudy
from locate.engine.rows import in_parts
from locate.errors import FactError, LocateError
from locate.facts.keys import case_keys
from locate.model.weights import model_fingerprint
from locate.store.folders import RunFolder
from locate.store.hashes import fingerprint
from locate.tracing.causal import causal_trace
from locate.tracing.trace import Trace, load_trace

# Facts that are traced, and edits that are found, together; and lost together where a run is stopped.
_TOGETHER = 10
# How facts are traced to be edited there.
TRACE: dict[str, Any] = {"kinds": ["mlp"], "positions": "subject_last"}


def study(
    model: TransformerBridge,
    facts: Cases,
    methods: EditingMethod | Mapping[str, EditingMethod],
    *,
    layer: At | list[At] = "traced",
    trace: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    parts: Sequence[str] | str | None = (),
    propagate: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    retry_failed: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> EditStudy:
    """Trace each fact, edit it by itself where its trace says, evaluate the edit and follow it; then all together.

    What cannot be traced, edited or followed is a row with its reason, and does not cost the others.

    Args:
        model: a raw-mode bridge; it is left unedited.
        facts: with new targets, or requests.
        methods: one, or several by name.
        layer: where to edit: ``"traced"``, at each fact's own traced layer; ``"average"``, at the one that their
            averaged trace names; None, where the method would; a layer, or what else ``fit`` takes. For controls,
            ``"shuffled"`` takes another fact's traced layer, and ``"random"`` any. A list compares several of these.
        trace: of ``locate.causal_trace``; by default MLP outputs at the subject's last token. The first of its kinds
            says where to edit.
        evaluate: of ``edit.evaluate``, such as ``{"generate": False}``.
        parts: of each propagation, beside totals and mediation; None to follow no edit.
        propagate: of ``edit.propagate``; by default the mediation of the edit's own prompt.
        folder: where traces, updates, reports and all that is finished is kept: a run that was stopped goes on there.
        retry_failed: whether what failed in that folder is tried again.
        seed: of the controls.
        progress: whether to show bars.

    Raises:
        FactError: no facts, one without a new target, or no methods.
        SiteError: there is no such choice or layer.
        DataError: the folder is another run's.

    >>> found = edit.study(model, facts[:2], edit.FineTuning(steps=2), layer=[4, None], parts=None, progress=False)
    >>> float(found.table().loc["efficacy", ("layer 4", "n")])
    2.0
    """
    asked = as_requests(facts)
    named = dict(methods) if isinstance(methods, Mapping) else {methods.name: methods}
    if not named:
        raise FactError("methods: give at least one, by name.")
    several: list[Any] = layer if isinstance(layer, list) else [layer]
    places = {name_of(model, at): at for at in several}
    how: dict[str, dict[str, Any]] = {
        "trace": {**TRACE, **(trace or {})}, "evaluate": dict(evaluate or {}),
        "propagate": {"mediate": "edit", "parts": parts, **(propagate or {})},
    }  # fmt: skip
    description = {
        "what": "edit study", "model": model_fingerprint(model), "seed": seed,
        "facts": {"count": len(asked), "fingerprint": fingerprint(asked)},
        "methods": {name: one.described(model)["method"] for name, one in named.items()}, "layer": list(places),
        **{name: {key: repr(value) for key, value in own.items()} for name, own in how.items()},
    }  # fmt: skip
    with ExitStack() as stack:
        place = stack.enter_context(TemporaryDirectory()) if folder is None else folder
        run = stack.enter_context(RunFolder.open(place, description))
        keys = case_keys([request.fact for request in asked])
        made = _Study(
            model=model, requests=dict(zip(keys, asked, strict=True)), run=run, how=how, retry=retry_failed,
            progress=progress,
        )  # fmt: skip
        traces = made.traces() if any(at in TRACED for at in places.values() if isinstance(at, str)) else {}
        arms: list[str] = []
        for method_name, method in named.items():
            for place_name, at in places.items():
                arm = ", ".join([method_name] * (len(named) > 1) + [place_name] * (len(places) > 1 or len(named) == 1))
                made.edits(arm, method, places_of(model, at, keys, traces, seed))
                arms.append(arm)
        return made.result(arms, traces)


@dataclass(kw_only=True, eq=False)
class _Study:
    """One study: what it asks, and how what is finished is kept."""

    model: TransformerBridge
    requests: dict[str, EditRequest]
    run: RunFolder
    how: dict[str, dict[str, Any]]
    retry: bool
    progress: bool
    before: dict[str, Baseline] = field(default_factory=dict)

    def traces(self) -> dict[str, Trace]:
        """The trace of each fact that can be traced."""
        cases = {_traced(key): key for key in self.requests}

        def trace(keys: Sequence[str]) -> Sequence[Trace]:
            asked = [self.requests[key] for key in keys]
            facts = [replace(one.fact, target_new=one.target_new) for one in asked]
            return causal_trace(self.model, facts, **self.how["trace"], progress=self.progress)

        def keep(key: str, found: Trace) -> None:
            self.run.record(_traced(key), file=found.save(self._file("traces", f"{key}.nc")))

        self._work_off(cases, self.run.pending(list(cases), retry_failed=self.retry), "tracing", trace, keep)
        done = self.run.done
        return {key: load_trace(self.run.path / str(done[case].file)) for case, key in cases.items() if case in done}

    def edits(self, arm: str, method: EditingMethod, places: Mapping[str, Any]) -> None:
        """Every edit of one method and choice of the layer."""
        cases = {_edited(arm, key): key for key in self.requests}
        for case, key in cases.items():
            if key not in places and case not in self.run.failed:
                failure = self.run.failed.get(_traced(key))
                why = failure.error if failure else "no other fact has a trace"
                self.run.record_failure(case, FactError(f"There is no trace that says where to edit: {why}"))

        def fit(keys: Sequence[str]) -> Sequence[Change]:
            own = [places[key] for key in keys]
            alike = all(place is own[0] for place in own)
            asked = [self.requests[key] for key in keys]
            where = own[0] if alike else own
            return list(method.fit_each(self.model, asked, layer=where, progress=self.progress))

        def keep(key: str, update: Any) -> None:
            found = {"at": at[key], "layer": list(getattr(update, "info", {}).get("layers", at[key]))[-1]}
            measured = self._measured(update, key, self._file("reports", arm, key))
            file = update.save(self._file("updates", arm, f"{key}.safetensors"))
            self.run.record(_edited(arm, key), {**found, "measures": measured}, file=file)

        cases = {case: key for case, key in cases.items() if key in places}
        at = {key: list(method.edited_layers(self.model, place)) for key, place in places.items()}
        done, pending = self.run.done, self.run.pending(list(cases), retry_failed=self.retry)
        # Facts that can be traced now and could not before may have moved an average.
        pending += [case for case, key in cases.items()
                    if case in done and case not in pending and done[case].found["at"] != at[key]]  # fmt: skip
        if layers := {layer for case in pending for layer in at[cases[case]]}:  # of all in one pass over the text
            method.statistics_at(self.model, sorted(layers), progress=self.progress)
        self._work_off(cases, pending, f"edits, {arm}", fit, keep)

    def result(self, arms: Sequence[str], traces: Mapping[str, Trace]) -> EditStudy:
        """All that was found."""
        done, failed, keys = self.run.done, self.run.failed, list(self.requests)
        known = {key: _told(trace) for key, trace in traces.items()}
        rows = {(arm, key): known.get(key, {}) | (dict(done[case].found["measures"]) if case in done else {})
                for arm in arms for key in keys for case in [_edited(arm, key)]}  # fmt: skip
        measures = list(dict.fromkeys(name for one in rows.values() for name in one))
        values = [[[_number(rows[arm, key].get(name)) for name in measures] for key in keys] for arm in arms]
        layers = [[_number(done[case].found["layer"] if case in done else None)
                   for key in keys for case in [_edited(arm, key)]] for arm in arms]  # fmt: skip
        data = xr.Dataset(
            {
                "value": (("by", "fact", "measure"), np.array(values, float).reshape(len(arms), len(keys), -1)),
                "layer": (("by", "fact"), np.array(layers, float)),
            },
            coords={"by": list(arms), "fact": keys, "measure": measures},
        )
        lacking = [{"by": arm, "fact": key, "error": failed[case].error}
                   for arm in arms for key in keys for case in [_edited(arm, key)] if case in failed]  # fmt: skip
        info = {
            "model": str(self.model.cfg.model_name), "facts": len(keys), "failed": lacking,
            "average": average_layer(list(traces.values())) if traces else None,
        }  # fmt: skip
        return EditStudy(data=data, info=info)

    def _measured(self, update: Change, key: str, report: Path) -> dict[str, float | None]:
        """What an edit does: its evaluation, and where it goes."""
        request = self.requests[key]
        quiet: dict[str, Any] = {"progress": False}
        if key not in self.before:
            self.before[key] = baseline(self.model, request, **self.how["evaluate"], **quiet)
        told: Any = judge(self.model, update, request, baseline=self.before[key], **self.how["evaluate"], **quiet)
        found = {str(name): float(value) for name, value in told.summary()["edited"].items() if name != "score"}
        if self.how["propagate"]["parts"] is not None:
            followed = follow(self.model, update, request, **self.how["propagate"], **quiet)
            followed.save(report)
            found |= followed.summary()
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    def _work_off(
        self, cases: Mapping[str, str], pending: Sequence[str], label: str,
        compute: Callable[[Sequence[str]], Sequence[Any]], keep: Callable[[str, Any], None],
    ) -> None:  # fmt: skip
        """Compute what is pending, some cases together; those that fail together are tried one by one."""
        with tqdm(total=len(pending), desc=label, disable=not self.progress, delay=1) as bar:
            for part in in_parts(pending, _TOGETHER):
                try:
                    found: Sequence[Any] = compute([cases[case] for case in part])
                except LocateError:
                    found = [None] * len(part)
                for case, one in zip(part, found, strict=True):
                    try:
                        keep(cases[case], compute([cases[case]])[0] if one is None else one)
                    except LocateError as error:
                        self.run.record_failure(case, error)
                    bar.update()

    def _file(self, *names: str) -> Path:
        path = self.run.path.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _traced(key: str) -> str:
    return f"trace of {key}"


def _edited(arm: str, key: str) -> str:
    return f"{arm}: {key}"


def _told(trace: Trace) -> dict[str, float]:
    site = best_of(trace)
    own = trace.indirect_effect.sel(kind=site.kind) if site.head is None else trace.head_effect.sel(head=site.head)
    effect = own.sel(position=site.position, layer=site.layer)
    return {
        "traced: layer": float(site.layer), "traced: effect": float(effect),
        "traced: total effect": trace.total_effect, "traced: clean": trace.clean,
    }  # fmt: skip


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
