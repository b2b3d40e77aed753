"""The main job in one call: locate a fact, change it, and watch the change reach the answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from edit.changes.figures import plot_footprint
from edit.changes.updates import WeightUpdate
from edit.evaluation import Evaluation, evaluate
from edit.methods import ROME
from edit.propagation.asking import tellable_probes
from edit.propagation.flowing import FlowMap, flow_map
from edit.propagation.mediation import mediate
from edit.propagation.propagation import Propagation
from edit.report.arrow import points_to, why_there
from edit.report.config import DemoConfig
from edit.report.report import write_report
from edit.requests.requests import Case, EditRequest, as_request
from locate.contrast.noise import GaussianNoise
from locate.neurons.knowledge import knowledge_neurons
from locate.neurons.scores import NeuronScores
from locate.patching.patch import patch
from locate.patching.patches import Patches
from locate.plots import save_figure
from locate.sites.site import Site
from locate.store.files import save_json, to_plain
from locate.tracing.causal import causal_trace
from locate.tracing.trace import Trace

# Of the neurons' integral, whose best layer they show; a study of the neurons themselves takes 20.
_STEPS = 5
_FILES = (
    "trace.nc", "patches.nc", "neurons.nc", "update.safetensors", "evaluation.csv", "propagation.nc", "flow.nc",
    "summary.json",
)  # fmt: skip
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Demo:
    """What the main job found and made.

    Attributes:
        folder: where everything was written.
        request: what was changed.
        trace: where the unedited model recalls the fact.
        patches: what each MLP output on the subject brings back by itself.
        neurons: what each neuron contributes to the answer.
        update: the edit.
        method: how it was made.
        evaluation: what the edited model answers.
        flow: what carries the change.
        way: the way of the change from the edited layer to the answer.
        seconds: wall time per step.

    >>> demo = edit.run_demo(model, request, "runs/rome")                            # doctest: +SKIP
    >>> demo.summary()["edit"]["generation_after"]                                   # doctest: +SKIP
    ' Rome, Italy.'
    """

    folder: Path
    request: EditRequest
    trace: Trace
    patches: Patches
    neurons: NeuronScores
    update: WeightUpdate
    method: ROME
    evaluation: Evaluation
    flow: Propagation
    way: FlowMap
    seconds: dict[str, float]

    def _score(self, site: Site) -> float:
        return float(self.trace.scores.sel(kind=site.kind, layer=site.layer, position=site.position))

    def summary(self) -> dict[str, Any]:
        """The findings as plain numbers and texts, as written to ``summary.json``."""
        rows = self.evaluation.rows
        asked = rows[rows["probe"] == "efficacy"].set_index("model")
        sites = {kind: self.trace.best(kind) for kind in self.trace.info["kinds"]}
        return {
            "request": self.request.describe(),
            "model": self.trace.info["model"],
            "trace": {
                "clean_probability": self.trace.clean,
                "corrupted_probability": self.trace.corrupted,
                "answer_rank": self.trace.answer_rank,
                "best_sites_on_subject": {
                    kind: {
                        "layer": site.layer,
                        "position": site.position,
                        "token": self.trace.tokens[site.position or 0],
                        "probability": self._score(site),
                    }
                    for kind, site in sites.items()
                },
            },
            "where": {
                **{name: one.describe() for name, one in points_to(self.trace, self.patches, self.neurons).items()},
                "edited": {"layers": list(self.flow.layers), "why": why_there(self.method)},
            },
            "edit": {
                "method": self.update.method, "layers": list(self.flow.layers), "parameters": self.update.parameters,
                "norm": {name: self.update.norm(name) for name in self.update.parameters},
                "probability_new_before": float(asked.loc["unedited", "probability_new"]),
                "probability_new_after": float(asked.loc["edited", "probability_new"]),
                "generation_before": asked.loc["unedited", "generation"],
                "generation_after": asked.loc["edited", "generation"],
            },
            "evaluation": to_plain(self.evaluation.summary().to_dict(orient="index")),
            "propagation": to_plain(self.flow.totals.to_dict(orient="records")),
            "seconds": self.seconds,
        }  # fmt: skip


def run_demo(
    model: TransformerBridge,
    request: Case,
    folder: str | Path,
    *,
    method: ROME | None = None,
    corruption: GaussianNoise | None = None,
    window: int | None = None,
    config: DemoConfig | None = None,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Demo:
    """Trace the fact, edit it, evaluate the edit, follow its effect, and write figures and a report.

    Each result is written as its step ends. The folder gets ``trace.nc``, ``patches.nc``, ``neurons.nc``,
    ``update.safetensors``, ``evaluation.csv``, ``propagation.nc``, ``flow.nc``, ``summary.json``, ``report.html`` (one
    file, opens offline) and the figures as PNG and PDF.

    Args:
        model: a raw-mode bridge; it is left unedited.
        request: the fact and its new object.
        folder: where to write; made if missing, and files of an earlier run are replaced.
        method: the editing method; ``ROME()`` by default.
        corruption: of the causal trace; 10 samples of Gaussian noise by default.
        window: of the causal trace; 10 layers by default.
        config: the settings that all this comes from, to be written as ``config.json`` and shown on the page.
        progress: whether to show bars.
        report: called with one line as each step begins.

    Raises:
        LocateError: whatever the steps raise; nothing is left changed in the model.

    >>> demo = edit.run_demo(model, edit.EditRequest(fact, target_new="Rome"), "runs/rome")  # doctest: +SKIP
    """
    request, folder = as_request(request), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    method = method or ROME()
    layer = method.resolve_layer(model)
    probes = tellable_probes(model, request)  # before minutes are spent on what could not be followed
    seconds: dict[str, float] = {}

    def timed(name: str, line: str, work: Callable[[], Any]) -> Any:
        report(line)
        start = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    trace = timed(
        "trace", f"Tracing “{request.fact.text}” → {request.fact.target}",
        lambda: causal_trace(model, request.fact, corruption=corruption, window=window, progress=progress),
    )  # fmt: skip
    trace.save(folder / "trace.nc")
    patches = timed(
        "patch", "Restoring single MLP outputs on the subject",
        lambda: patch(
            model, request.fact, corruption or GaussianNoise(), sites="mlp_out", positions="subject",
            metric="probability", progress=progress,
        ),
    )  # fmt: skip
    patches.save(folder / "patches.nc")
    neurons = timed(
        "neurons", "Attributing the answer to neurons",
        lambda: knowledge_neurons(model, request.fact, steps=_STEPS, progress=progress),
    )  # fmt: skip
    neurons.save(folder / "neurons.nc")
    update = timed(
        "edit", f"Writing “{request.target_new}” into layer {layer}",
        lambda: method.fit(model, [request], progress=progress),
    )  # fmt: skip
    update.save(folder / "update.safetensors")
    evaluation = timed(
        "evaluate", "Asking paraphrases and neighbours",
        lambda: evaluate(model, update, [request], progress=progress),
    )  # fmt: skip
    evaluation.save(folder / "evaluation.csv")
    flow = timed(
        "propagate", "Following the change to the answer",
        lambda: mediate(model, update, probes, progress=progress),
    )  # fmt: skip
    flow.save(folder / "propagation.nc")
    way = timed(
        "map", "Drawing its way over layers and tokens",
        lambda: flow_map(model, update, probes, flow=flow, progress=progress),
    )  # fmt: skip
    way.save(folder / "flow.nc")
    demo = Demo(
        folder=folder, request=request, trace=trace, patches=patches, neurons=neurons, update=update, method=method,
        evaluation=evaluation, flow=flow, way=way, seconds=seconds,
    )  # fmt: skip
    timed("write", f"Writing {folder}", lambda: _write(demo, model, config))
    save_json(folder / "summary.json", demo.summary())
    return demo


def _write(demo: Demo, model: TransformerBridge, config: DemoConfig | None) -> None:
    folder = demo.folder
    files: list[str] = list(_FILES)
    figures = {
        "trace": demo.trace.plot(),
        "flow": demo.way.plot(),
        "propagation": demo.flow.plot(),
        "propagation-lost": demo.flow.plot(direction="lost"),
        "footprint": plot_footprint(model, demo.update),
    }
    for name, figure in figures.items():
        save_figure(figure, folder, name)
    settings = None
    if config is not None:
        settings = save_json(folder / _CONFIG, config.plain()).read_text(encoding="utf-8")
        files.append(_CONFIG)
    write_report(
        folder / "report.html", summary=demo.summary(), evaluation=demo.evaluation, flow=demo.flow, trace=demo.trace,
        update=demo.update, way=demo.way.html(), method=repr(demo.method), files=files, config=settings,
        figures=folder,
    )  # fmt: skip
