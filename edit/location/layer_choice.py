"""Whether localisation says which layer to edit: edits at every layer, beside what each way of locating says of it."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.evaluation import Baseline, baseline
from edit.location.layer_scores import Scores, gradient_layers, neuron_layers, relevance_layers, traced_layers
from edit.location.layer_study import LayerStudy
from edit.location.measured import OUTCOMES, edited_rows, outcomes_of
from edit.methods import ROME, EditingMethod
from edit.requests.requests import Cases, EditRequest, as_requests
from locate.contrast.corruption import Corruption
from locate.errors import LocateError, NumericsError, SiteError
from locate.facts.facts import Fact
from locate.model.anatomy import check_layer, down_module
from locate.model.weights import model_fingerprint
from locate.store.folders import RunFolder
from locate.store.hashes import fingerprint

# By name, what each way of locating says of a layer.
SCORES = {
    "tracing, MLP": "indirect effect of MLP outputs at the last subject token",
    "tracing, state": "indirect effect of the state there",
    "gradient": "norm of the gradient of the new object's NLL on the down-projection",
    "RelP": "relevance of the MLP's output there",
    "knowledge neurons": "attribution to neurons that pass a fifth of the largest",
}
_TRACED = {"tracing, MLP": "mlp", "tracing, state": "resid"}


def layer_choice(
    model: TransformerBridge,
    requests: Cases,
    *,
    method: EditingMethod | None = None,
    layers: Sequence[int] | None = None,
    corruption: Corruption | None = None,
    window: int | None = None,
    steps: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LayerStudy:
    """Edit each fact alone at every layer, and set beside it what locating says of the layers (Hase et al. 2023).

    Locating is the indirect effect of causal tracing at the subject's last token (of MLP outputs, and of states), the
    norm of the gradient of the new object's NLL on each down-projection, RelP of the MLP's output at that token, and
    what is attributed to knowledge neurons.

    Args:
        model: a raw-mode bridge.
        requests: facts with counterfactuals, best with paraphrases and neighbours.
        method: to edit with; by default ROME.
        layers: to edit; by default all that have one down-projection.
        corruption: of tracing and RelP; by default ``GaussianNoise()``.
        window: of traced MLP outputs, as in ``locate.causal_trace``.
        steps: of the neurons' integral.
        folder: where what is finished is kept, so that a run that was stopped goes on there.
        progress: whether to show bars.

    Raises:
        FactError: no requests, or some that cannot be edited or asked.
        SiteError: no such layer.
        DataError: the folder is another run's.
        NumericsError: no layer could be edited.

    >>> edit.layer_choice(model, [request], layers=[4], corruption=swap, steps=5).best().layer
    4
    """
    asked, method = as_requests(requests), ROME() if method is None else method
    having = [layer for layer, block in enumerate(model.blocks) if down_module(block) is not None]
    tried = having if layers is None else sorted({check_layer(model, layer) for layer in layers})
    if not tried:
        raise SiteError("layers: give at least one to try, of those that have one down-projection.")
    method.check(model, asked)
    study = _Study(model, asked, method, corruption, window, steps, progress)
    with RunFolder.open(folder, study.description) if folder is not None else nullcontext() as run:
        scores, left_out = study.scores(run)
        outcomes, failed = study.outcomes(run, tried)
    left_out |= failed
    data = {"outcome": (("name", "fact", "layer"), outcomes), "score": (("way", "fact", "layer"), scores)}
    coords = {
        "name": list(OUTCOMES), "way": list(SCORES), "fact": [one.describe() for one in asked],
        "layer": np.arange(model.cfg.n_layers),
    }  # fmt: skip
    left_out |= _lacking(asked)
    info = {"model": str(model.cfg.model_name), "method": method.name, "layers": tried, "left_out": left_out}
    return LayerStudy(data=xr.Dataset(data, coords=coords), info=info)


def _lacking(requests: Sequence[EditRequest]) -> dict[str, str]:
    """What cannot be measured of these requests."""
    found = {}
    if not any(one.paraphrases for one in requests):
        found["paraphrase"] = "no request has paraphrases"
    if not any(one.fact.neighbours for one in requests):
        found["neighbourhood"] = "no request has neighbours"
    return found


class _Study:
    """One study: what it asks, and how what is finished is kept."""

    def __init__(
        self, model: TransformerBridge, requests: Sequence[EditRequest], method: EditingMethod,
        corruption: Corruption | None, window: int | None, steps: int | None, progress: bool,
    ) -> None:  # fmt: skip
        self.model, self.requests, self.method, self.progress = model, requests, method, progress
        self.corruption, self.window, self.steps = corruption, window, steps
        # As they are asked: a request may ask for another object than its fact.
        self.facts: list[Fact] = [replace(one.fact, target_new=one.target_new) for one in requests]

    @property
    def description(self) -> dict[str, Any]:
        """What the results depend on; layers may be added to a run."""
        locating = {"corruption": repr(self.corruption), "window": self.window, "steps": self.steps}
        return {
            "what": "layer choice", "model": model_fingerprint(self.model), "locating": locating,
            "facts": {"count": len(self.requests), "fingerprint": fingerprint(list(self.requests))},
            "method": {
                name: value for name, value in self.method.described(self.model)["method"].items() if name != "layers"
            },
        }  # fmt: skip

    def scores(self, run: RunFolder | None) -> tuple[np.ndarray, dict[str, str]]:
        """What every way says, ``way fact layer``; why some say nothing."""
        tables = {name: np.full((len(self.facts), self.model.cfg.n_layers), np.nan) for name in SCORES}
        left_out: dict[str, str] = {}
        for names, compute in self._ways():
            try:
                found = dict(zip(names, self._kept(run, names, compute), strict=True))
            except LocateError as error:  # of one way: the others shall be had
                warnings.warn(f"{', '.join(names)}: left out: {error}", stacklevel=3)
                left_out |= dict.fromkeys(names, str(error))
            else:
                tables |= found
        return np.stack([tables[name] for name in SCORES]), left_out

    def outcomes(self, run: RunFolder | None, layers: Sequence[int]) -> tuple[np.ndarray, dict[str, str]]:
        """What edits at each of the layers do, ``outcome fact layer``; why there are none at some."""
        table = np.full((len(OUTCOMES), len(self.requests), self.model.cfg.n_layers), np.nan)
        failed: dict[int, NumericsError] = {}
        before: Baseline | None = None
        done = {} if run is None else run.done
        for layer in tqdm(layers, "layers", disable=not self.progress, delay=1):
            key = f"layer-{layer}"
            if key not in done:
                if before is None:  # not where all has been done
                    before = baseline(self.model, self.requests, generate=False, progress=self.progress)
                    edited = {one for each in layers for one in self.method.edited_layers(self.model, each)}
                    self.method.statistics_at(self.model, sorted(edited), progress=self.progress)
                try:
                    rows = edited_rows(self.model, self.method, self.requests, layer, before)
                except NumericsError as error:
                    warnings.warn(f"Layer {layer} has no score: {error}", stacklevel=3)
                    failed[layer] = error
                    continue
                table[..., layer] = outcomes_of(rows, len(self.requests))
                if run is not None:
                    run.record(key, {"outcomes": _plain(table[..., layer])})
            else:
                table[..., layer] = _array(done[key].found["outcomes"])
        if len(failed) == len(layers):
            raise next(iter(failed.values()))
        return table, {f"layer {layer}": str(error) for layer, error in failed.items()}

    def _ways(self) -> Iterator[tuple[tuple[str, ...], Callable[[], Sequence[Scores]]]]:
        model, facts, progress = self.model, self.facts, self.progress
        how: dict[str, Any] = {"corruption": self.corruption, "progress": progress}

        def traced() -> list[Scores]:
            found = traced_layers(model, facts, list(_TRACED.values()), window=self.window, **how)
            return [found[kind] for kind in _TRACED.values()]

        yield tuple(_TRACED), traced
        yield ("gradient",), lambda: [gradient_layers(model, self.requests, progress=progress)]
        yield ("RelP",), lambda: [relevance_layers(model, facts, **how)]
        yield ("knowledge neurons",), lambda: [neuron_layers(model, facts, steps=self.steps, progress=progress)]

    def _kept(
        self, run: RunFolder | None, names: Sequence[str], compute: Callable[[], Sequence[Scores]]
    ) -> Sequence[Scores]:
        """What is computed, or was by an earlier run."""
        if run is None:
            return compute()
        key = " and ".join(names)
        if key not in run.done:
            run.record(key, {"scores": [_plain(one) for one in compute()]})
        return [_array(one) for one in run.done[key].found["scores"]]


def _plain(values: np.ndarray) -> list[Any]:
    """As JSON has it, without NaN."""
    return [[None if math.isnan(one) else one for one in row] for row in values.tolist()]


def _array(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.array([[float("nan") if one is None else one for one in row] for row in rows], dtype=float)
