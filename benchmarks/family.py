"""The locate-then-edit family side by side: edits of a public data set one at a time, each on the unedited model.

    python -m benchmarks.family --data counterfact_flat_1000.json [--format counterfact] [--edits 100]

Values are optimised together, and once for methods that share their objective, which changes nothing but speed; each
edit is then written and judged alone. Requests that the model answers with the new target already are left out, and
counted. Prints the published metrics beside what the model says, with 95% intervals. What is finished is kept in a
folder, by model, requests and hyperparameters: a run that was stopped goes on where it was.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any, cast

import pandas as pd
from tqdm.auto import tqdm

import edit
import locate
from benchmarks.timing import machine, seconds
from edit.names import SAMPLED
from edit.values.contexts import already_answered, build_contexts
from locate.model.weights import model_fingerprint
from locate.store.hashes import fingerprint

_PUBLISHED = edit.ValueObjective(steps=25, learning_rate=0.5, stop="loss")
_ALONE = edit.ValueObjective()
METHODS: dict[str, Any] = {
    "ROME, published form and objective": lambda corpus: edit.ROME(
        original=True, openings=(), objective=_PUBLISHED, corpus=corpus
    ),
    "R-ROME, published objective": lambda corpus: edit.ROME(
        bare_weight=0.5, openings=(), objective=_PUBLISHED, corpus=corpus
    ),
    "ROME, published form": lambda corpus: edit.ROME(original=True, objective=_ALONE, openings=(), corpus=corpus),
    "R-ROME": lambda corpus: edit.ROME(corpus=corpus),
    "R-ROME, plain mean": lambda corpus: edit.ROME(bare_weight=None, objective=_ALONE, openings=(), corpus=corpus),
    "MEMIT": lambda corpus: edit.MEMIT(corpus=corpus),
    "EMMET": lambda corpus: edit.EMMET(corpus=corpus),
    "PMET": lambda corpus: edit.PMET(corpus=corpus),
    "AlphaEdit": lambda corpus: edit.AlphaEdit(corpus=corpus),
    "KN": lambda corpus: edit.KN(),
}
# The same objective at the same place and layer: values are found once.
_VALUES_OF = {
    "R-ROME, published objective": "ROME, published form and objective",
    "R-ROME, plain mean": "ROME, published form",
    "AlphaEdit": "MEMIT",
}
_CHUNK = 20
# More than the longest answer of the data has (3 and 43 of this model's tokens).
_NEW_TOKENS = {"counterfact": 8, "zsre": 48}
_SHOWN = {
    "efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS", "score": "S", "exact match": "says o*",
    "paraphrase exact match": "says o*, paraphrase", "locality": "same answer, neighbour",
}  # fmt: skip


def usable(model: Any, requests: list[edit.EditRequest], n: int) -> tuple[list[edit.EditRequest], int]:
    """The first ``n`` requests that ask for something new, and how many were left out on the way."""
    found: list[edit.EditRequest] = []
    left_out = 0
    for request in requests:
        if already_answered(model, [build_contexts(model, request, [""])])[0]:
            left_out += 1
        else:
            found.append(request)
        if len(found) == n:
            break
    return found, left_out


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--format", default="counterfact", choices=["counterfact", "zsre"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--corpus", default=SAMPLED, help="for key statistics")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    load = edit.load_counterfact if arguments.format == "counterfact" else edit.load_zsre
    requests, left_out = usable(model, load(arguments.data), arguments.edits)
    print(f"{machine()}; {arguments.model}; {len(requests)} edits of {arguments.data.name}, {left_out} left out")
    parts = [requests[start : start + _CHUNK] for start in range(0, len(requests), _CHUNK)]
    of_model = model_fingerprint(model)
    files = {name: [_path(of_model, part, arguments, name) for part in parts] for name in arguments.methods}
    for index, part in enumerate(parts):
        _chunk(model, part, arguments, {name: own[index] for name, own in files.items()})
    for name in arguments.methods:
        whole = edit.Evaluation.join([edit.Evaluation(rows=pd.read_csv(path)) for path in files[name]])
        took, summary = float(whole.rows["seconds"].to_numpy().sum()), cast(Any, whole.summary())
        shown = [f"{short} {_interval(summary.loc[key])}" for key, short in _SHOWN.items() if key in summary.index]
        print(f"{name}: {'; '.join(shown)}; {took / len(requests):.1f} s per edit", flush=True)
    print("unedited: " + "; ".join(
        f"{short} {summary.loc[key, 'unedited']:.1f}" for key, short in _SHOWN.items() if key in summary.index
    ))  # fmt: skip


def _interval(row: Any) -> str:
    """The edited model's value with its interval, where there is more than one case."""
    bounds = "" if pd.isna(row["edited low"]) else f" [{row['edited low']:.1f}, {row['edited high']:.1f}]"
    return f"{row['edited']:.1f}{bounds}"


def _path(of_model: str, requests: list[edit.EditRequest], arguments: argparse.Namespace, name: str) -> Path:
    """Where a method's edits of some requests are kept: results of anything else have another name."""
    described = [of_model, fingerprint(requests), repr(METHODS[name](arguments.corpus))]
    digest = hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
    return arguments.out / f"{name.replace(' ', '-').replace(',', '')}-{arguments.format}-{digest}.csv"


def _chunk(model: Any, requests: list[edit.EditRequest], arguments: argparse.Namespace, files: dict[str, Path]) -> None:
    """Edit and judge some requests with every method that has not done so yet."""
    missing: list[str] = [name for name, path in files.items() if not path.exists()]
    if not missing:
        return
    tokens = _NEW_TOKENS[arguments.format]
    baseline = edit.baseline(model, requests, max_new_tokens=tokens)
    values: dict[str, list[Any]] = {}
    took: dict[str, float] = {}
    for name in tqdm(missing, f"{len(requests)} edits"):
        method: Any = METHODS[name](arguments.corpus)
        own: str = _VALUES_OF.get(name, name)
        options: dict[str, Any] = {}
        if name != "KN":
            if own not in values:
                method.statistics_for(model)
                took[own] = seconds(lambda m=method, o=own: values.update({o: m.values_for(model, requests)}))
            options["values"] = values[own]
        updates: list[edit.WeightUpdate] = []
        fitting = seconds(lambda m=method, u=updates, o=options: u.extend(m.fit_each(model, requests, **o)))
        parts = [
            edit.evaluate(
                model, update, [request], baseline=baseline.of_case(case), max_new_tokens=tokens, progress=False
            )
            for case, (update, request) in enumerate(zip(updates, requests, strict=True))
        ]
        rows = edit.Evaluation.join(parts).rows
        # Spread over the rows, so that they add up.
        rows["seconds"] = (fitting + took.get(own, 0.0)) / len(rows)
        edit.Evaluation(rows=rows).save(files[name])


if __name__ == "__main__":
    main()
