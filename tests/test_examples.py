"""What the documentation shows works: README snippets and docstring examples.

They run on a small model that stands in for the default one. Where the default model's own answer is shown, they run
on that; all others do as well among the slow tests.
"""

import doctest
import importlib
import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import jaxtyping
import pytest
import torch

import edit
import locate
from locate.model.weights import model_fingerprint
from locate.results import Result
from locate.showing import Shown
from locate.sites.graph import graph
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
# Their examples show what the default model answers, or its own shapes and names.
OF_THE_DEFAULT_MODEL = {
    "edit.evaluation.generation", "edit.evaluation.scoring", "edit.values.states", "locate.contrast.noise",
    "locate.engine.freezing", "locate.engine.rows", "locate.model.loading", "locate.model.weights",
    "locate.tracing.trace",
}  # fmt: skip
default_model = pytest.mark.real_model
twice = pytest.mark.slow("runs on the small model too")

QUIET = {"progress": False}
GIVEN: dict[str, Callable] = {
    "facts": lambda given: locate.bundled_facts(known_to="smollm2-135m"),
    "fact": lambda given: given["facts"][0],
    "swap": lambda given: locate.TokenSwap(),
    "request": lambda given: edit.EditRequest(given["fact"]),
    "update": lambda given: edit.ROME(layer=4).fit(given["model"], [given["request"]], **QUIET),
    "trace": lambda given: locate.causal_trace(
        given["model"], given["fact"], corruption=locate.GaussianNoise(samples=2), kinds=["mlp"], **QUIET
    ),
    "traces": lambda given: locate.causal_trace(
        given["model"], given["facts"][:2], corruption=given["swap"], positions="subject", **QUIET
    ),
    "average": lambda given: locate.average_traces(given["traces"]),
    "evaluation": lambda given: edit.evaluate(given["model"], given["update"], [given["request"]], **QUIET),
    "patches": lambda given: locate.patch(given["model"], given["fact"], given["swap"], positions="subject", **QUIET),
    "screened": lambda given: locate.patch(
        given["model"], given["fact"], given["swap"], positions="subject", screen=9, **QUIET
    ),
    "neurons": lambda given: locate.knowledge_neurons(given["model"], replace(given["fact"], paraphrases=()), **QUIET),
    "circuit": lambda given: tiny.made_up_circuit(graph(given["model"]), model_print=model_fingerprint(given["model"])),
    "pairs": lambda given: locate.tasks.ioi(given["model"], 4),
    "capitals": lambda given: locate.bundled_facts("country_capital"),
    "linear": lambda given: locate.LinearRelation.fit(
        given["model"], given["capitals"], layer=7, n=3, knows=False, **QUIET
    ),
    "linearity": lambda given: locate.relation_linearity(
        given["model"], given["capitals"], layers=[6, 7], n=3, knows=False, **QUIET
    ),
    "knocked": lambda given: locate.attention_knockout(given["model"], given["fact"], **QUIET),
    "flow": lambda given: edit.mediate(given["model"], given["update"], given["request"], roles=("edit",), **QUIET),
    "mapped": lambda given: edit.flow_map(
        given["model"], given["update"], given["request"], flow=given["flow"], roles="edit", **QUIET
    ),
    "followed": lambda given: edit.propagate(
        given["model"], given["update"], given["request"], parts=(), mediate="edit", **QUIET
    ),
    "drifted": lambda given: edit.attention_drift(
        given["model"], given["update"], given["request"], roles="edit", masked=[1], **QUIET
    ),
    "reuse": lambda given: edit.mediator_reuse(
        given["model"], given["update"], given["request"], top=5, samples=4, **QUIET
    ),
    "foreseen": lambda given: edit.predict_reach(given["model"], given["request"], layer=4, **QUIET),
    "carrier": lambda given: edit.edit_circuit(given["model"], given["update"], given["request"], random=2, **QUIET),
    "traced_shift": lambda given: edit.trace_shift(given["model"], given["update"], given["request"], null=2, **QUIET),
    "circuits_shift": lambda given: edit.circuit_shift(
        given["model"], given["update"], given["request"], null=2, method="eap", **QUIET
    ),
    "residue": lambda given: edit.old_fact_residue(given["model"], given["update"], given["request"], **QUIET),
    "studied": lambda given: edit.judge_reach(
        [given["foreseen"]] * 3,
        [
            replace(given["flow"], totals=given["flow"].totals.replace({"text": {given["fact"].text: text}}))
            for text in ("one", "two", "three")
        ],
    ),
    "similarity": lambda given: edit.localisation_similarity(
        given["model"], given["facts"][::120], most=4, only_known=False, corruption=given["swap"], **QUIET
    ),
    "studied_edits": lambda given: edit.study(
        given["model"],
        given["facts"][:2],
        edit.FineTuning(steps=2),
        parts=None,
        trace={"corruption": given["swap"]},
        evaluate={"generate": True},
        **QUIET,
    ),
    "study": lambda given: edit.layer_choice(
        given["model"], [given["request"]], layers=[2, 4], corruption=given["swap"], steps=5, **QUIET
    ),
}
# One of each kind that shows itself; others are given to examples by these names.
SHOWN: dict[str, Callable] = {
    "AttentionDrift": lambda given: given["drifted"],
    "AveragePatches": lambda given: locate.average_patches([
        locate.patch(given["model"], given["fact"], given["swap"], sites="attn_head_z", layers=[3, 4], **QUIET)
    ]),
    "AverageTrace": lambda given: given["average"],
    "Circuit": lambda given: given["circuit"].top(30),
    "CircuitShift": lambda given: given["circuits_shift"],
    "ColumnReadout": lambda given: edit.column_readout(given["model"], given["update"], [given["request"]]),
    "Concentration": lambda given: edit.concentration(given["update"], given["model"]),
    "Contrast": lambda given: locate.Contrast.of(given["model"], given["fact"], given["swap"]),
    "ContributionShift": lambda given: edit.contribution_shift(given["model"], given["update"], given["request"]),
    "EdgeEffects": lambda given: locate.patch_edges(
        given["model"], given["pairs"], edges=[("m2", "logits"), ("a0.h1", "a3.h2.q")], **QUIET
    ),
    "EditCircuit": lambda given: given["carrier"],
    "EditRequest": lambda given: given["request"],
    "EditStudy": lambda given: given["studied_edits"],
    "Evaluation": lambda given: given["evaluation"],
    "Faithfulness": lambda given: given["circuit"].faithfulness(
        given["model"], given["pairs"], sizes=[20, 0.1, 1.0], **QUIET
    ),
    "FlowMap": lambda given: given["mapped"],
    "Knockout": lambda given: given["knocked"],
    "LayerStudy": lambda given: given["study"],
    "LensTrajectory": lambda given: locate.logit_lens(given["model"], given["facts"][:3], **QUIET),
    "LinearRelation": lambda given: given["linear"],
    "LocalisationSimilarity": lambda given: given["similarity"],
    "LogitAttribution": lambda given: locate.logit_attribution(given["model"], given["fact"], by="head", **QUIET),
    "LogprobGain": lambda given: locate.neuron_logprob_gain(given["model"], given["fact"], **QUIET),
    "MediatorReuse": lambda given: given["reuse"],
    "NeuronEffects": lambda given: locate.verify_neurons(
        given["model"], given["facts"][:3], given["neurons"].top(5), random=2, **QUIET
    ),
    "NeuronOverlap": lambda given: locate.neuron_overlap({"all": given["neurons"], "again": given["neurons"]}, k=5),
    "NeuronScores": lambda given: given["neurons"],
    "OldFactResidue": lambda given: given["residue"],
    "PairedPrompts": lambda given: given["pairs"],
    "Patches": lambda given: given["patches"],
    "Propagation": lambda given: given["flow"],
    "PropagationComparison": lambda given: edit.compare_propagation({"ROME": [given["followed"]] * 2}),
    "PropagationReport": lambda given: given["followed"],
    "QueryNeurons": lambda given: locate.query_neurons(given["model"], given["fact"], heads=3, neurons=5, **QUIET),
    "ReachPrediction": lambda given: given["foreseen"],
    "ReachStudy": lambda given: given["studied"],
    "RelationLinearity": lambda given: given["linearity"],
    "Reversal": lambda given: edit.reversibility(
        given["model"], given["update"], given["request"], counts=[1], **QUIET
    ),
    "Trace": lambda given: given["trace"],
    "TraceShift": lambda given: given["traced_shift"],
    "WeightFootprint": lambda given: edit.weight_footprint(given["model"], given["update"], given["request"]),
    "WeightUpdate": lambda given: given["update"],
}  # fmt: skip
SHOWN_SOON = ("Circuit", "Contrast", "EditRequest", "Evaluation", "Patches", "Propagation", "Trace", "WeightUpdate")
# Files that examples read, by what is saved in them.
FILES = {
    "trace": "t.nc", "update": "rome.safetensors", "average": "average.nc", "patches": "patches.nc",
    "knocked": "knocked.nc", "circuit": "circuit.safetensors",
}  # fmt: skip


class Given(Mapping):
    """What examples take as given, made when the first one asks for it."""

    def __init__(self, model) -> None:
        self.made = {"model": model, "edit": edit, "locate": locate, "torch": torch}

    def __getitem__(self, name):
        if name not in self.made:
            self.made[name] = GIVEN[name](self)
        return self.made[name]

    def __iter__(self):
        return iter(GIVEN.keys() | self.made.keys())

    def __len__(self):
        return len(set(self))

    def save(self, source: str, folder: Path) -> None:
        """Write the files that these examples read."""
        for name, file in FILES.items():
            if file in source:
                self[name].save(folder / file)
        (folder / "my_facts.json").write_text('{"prompt": "{} is in", "subject": "Rome", "target": "Italy"}')
        capitals = [{"subject": "France", "object": "Paris"}, {"subject": "Italy", "object": "Rome"}]
        relation = {"name": "capital", "prompt_templates": ["The capital of {} is"], "samples": capitals}
        (folder / "capitals.json").write_text(json.dumps({**relation, "properties": {"relation_type": "factual"}}))

    def named_in(self, source: str) -> dict:
        return {name: self[name] for name in self if re.search(rf"\b{name}\b", source)}


@pytest.fixture(scope="session")
def given_small(stand_in):
    return Given(locate.load_model(str(stand_in)))


@pytest.fixture(scope="session")
def given_default(smollm):
    return Given(smollm)


def snippets() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(found) >= 3
    return found


def run_snippets(snippets: list[str], folder: Path) -> None:
    scope: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), scope)
    assert (folder / "runs" / "eiffel.nc").exists()
    assert (folder / "runs" / "edited" / "config.json").exists()


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Shapes are not checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.budget(60, "all of what the README shows, in one go")
def test_readme_snippets_run(stand_in, cache_apart, as_users_run_it, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = '"smollm2-135m"\n'
    assert "".join(snippets()).count(name) == 1
    run_snippets([snippet.replace(name, f"{str(stand_in)!r}\n") for snippet in snippets()], tmp_path)


@pytest.mark.slow("minutes of the default model")
@default_model
def test_readme_snippets_run_on_the_default_model(as_users_run_it, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_snippets(snippets(), tmp_path)


@cache
def modules() -> list[str]:
    """Those with examples."""
    paths = [path for package in ("locate", "edit") for path in (ROOT / package).rglob("*.py")]
    shown = [path.relative_to(ROOT).with_suffix("") for path in paths if ">>>" in path.read_text()]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in shown)


def run_examples(name: str, given: Given, folder: Path) -> None:
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    ran = 0
    for test in finder.find(module, name):
        source = "".join(example.source for example in test.examples if doctest.SKIP not in example.options)
        given.save(source, folder)
        test.globs = {**vars(module), **given.named_in(source), "folder": folder / "folder"}
        failed: list[str] = []
        ran += runner.run(test, out=failed.append).attempted
        assert not failed, "".join(failed)
    if not ran:
        pytest.skip(f"the examples of {name} are to be read")


@pytest.mark.parametrize("name", sorted({*modules()} - OF_THE_DEFAULT_MODEL))
def test_examples_run(name, given_small, cache_apart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples(name, given_small, tmp_path)


@default_model
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OF_THE_DEFAULT_MODEL else twice) for name in modules()],
)
def test_examples_run_on_the_default_model(name, given_default, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples(name, given_default, tmp_path)


def test_modules_named_for_the_default_model_exist():
    assert {*modules()} >= OF_THE_DEFAULT_MODEL


def kinds_shown() -> list[str]:
    """Every public class that shows itself, and requests."""
    public = [getattr(package, name) for package in (locate, edit) for name in package.__all__]
    own = [one for one in (*public, locate.tasks.PairedPrompts) if isinstance(one, type) and issubclass(one, Shown)]
    return sorted({one.__name__ for one in (*own, edit.EditRequest)})


def test_there_is_one_of_each_kind_that_shows_itself():
    assert kinds_shown() == sorted(SHOWN)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in SHOWN_SOON else pytest.mark.slow("figures of forty kinds"))
        for kind in kinds_shown()
    ],
)
def test_results_show_themselves(kind, given_small, cache_apart):
    """In five lines that say what they are meant to, and as a fragment of a page, with a picture and a table."""
    result = SHOWN[kind](given_small)
    assert type(result).__name__ == kind
    text = repr(result)
    assert text.startswith(kind)
    assert len(text) <= 500
    assert len(text.splitlines()) <= 5
    if kind == "EditRequest":
        return
    said = result._headline()  # raises what a notebook is spared
    assert said.get("sizes")
    assert all(isinstance(line, str) for line in said.values())
    if isinstance(result, Result):
        assert " of " in text.splitlines()[0]
        assert said["on"]
        assert said["found"]
        assert not hasattr(result, "best") or said["best"]
    page = result._repr_html_()
    root = ElementTree.fromstring(page)
    rows = root.findall("table/tbody/tr")
    table = result._rows()
    assert len(rows) == (0 if table is None else min(10, len(table)))
    picture = result._picture()
    images = [image.get("src") for image in root.iter("img")]
    assert len(images) == (picture is not None)
    assert all(len(b64decode(image.partition(",")[2])) <= 60_000 for image in images)
