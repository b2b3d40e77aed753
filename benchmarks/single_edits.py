"""Shipped facts, each edited alone by several methods: found once, kept for the benchmarks that look into them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

import edit
import locate
from edit.methods.base import EditingMethod
from edit.methods.rewriting.locate_then_edit import LocateThenEdit
from edit.report.location import usual_methods
from edit.values.optimisation import Value
from locate.engine.rows import in_parts
from locate.facts.files import spread
from locate.facts.keys import case_keys
from locate.model.weights import model_fingerprint
from locate.store.folders import RunFolder

METHODS = ("ROME", "MEMIT", "AlphaEdit", "EMMET", "fine-tuning")
FOLDER = Path("runs/benchmark-edits")
# Edits that are found together, and lost together where a run is stopped.
_TOGETHER = 10


def methods_of(model: TransformerBridge, names: Sequence[str] = METHODS) -> dict[str, EditingMethod]:
    """By name; fine-tuning is of the matrix that ROME edits."""
    every = {**usual_methods(model), "EMMET": edit.EMMET()}
    return {name: every[name] for name in names}


def facts_with_consequences(n: int, name: str) -> list[locate.Fact]:
    """As many as asked for, spread over all, of which the model answers the prompt."""
    able = [one for one in locate.bundled_facts() if one.consequences]
    known = [one for one in able if one.ranks.get(name) == 1] or able
    return spread(known, n)


def single_edits(
    model: TransformerBridge, facts: Sequence[locate.Fact], methods: Mapping[str, EditingMethod], folder: Path = FOLDER
) -> Iterator[tuple[str, str, edit.EditRequest, edit.WeightUpdate]]:
    """Method by method and fact by fact: the method's name, the fact's key, the request, and the update of it alone."""
    keys = case_keys(facts)
    known: dict[str, list[Value]] = {}
    requests = {key: edit.EditRequest(fact) for key, fact in zip(keys, facts, strict=True)}
    for name, method in methods.items():
        place = folder / name
        what = {"command": "single edits", "model": model_fingerprint(model), "method": repr(method)}
        with RunFolder.open(place, what) as run:
            for some in in_parts(run.pending(keys), _TOGETHER):
                asked = [requests[key] for key in some]
                for key, update in zip(some, _fitted(model, method, asked, known), strict=True):
                    run.record(key, file=update.save(place / f"{key}.safetensors"))
            for key in keys:
                yield name, key, requests[key], edit.load_update(place / str(run.done[key].file))


def _fitted(
    model: TransformerBridge, method: EditingMethod, requests: Sequence[edit.EditRequest], known: dict[str, list[Value]]
) -> Iterator[edit.WeightUpdate]:
    """Each alone; methods that would find the same values share them."""
    if not isinstance(method, LocateThenEdit):
        return method.fit_each(model, requests, progress=False)
    prefixes = method.texts_before(model)
    contexts = [method.contexts_of(model, request, prefixes) for request in requests]
    same = repr((method.value_objective(), method.value_layer(model, None), method.place, method.precision, contexts))
    if same not in known:
        known[same] = method.values_for(model, requests, progress=False)
    return method.fit_each(model, requests, values=known[same], progress=False)
