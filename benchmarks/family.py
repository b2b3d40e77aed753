"""The locate-then-edit family side by side: edits of a public data set one at a time, each on the unedited model.

    python -m benchmarks.family --data counterfact_flat_1000.json [--format counterfact] [--edits 100]

Values are optimised together where methods share an objective's place, which changes nothing but speed; each edit is
then written and judged alone. Requests that the model answers with the new target already are left out, and counted.
Prints the published metrics beside what the model says, with 95% intervals. Finished methods are kept in a folder.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import edit
import locate
from benchmarks.timing import machine, seconds
from edit.contexts import already_answered, build_contexts
from edit.corpus import SAMPLED

METHODS: dict[str, Any] = {
    "ROME, as published": lambda corpus: edit.ROME(original=True, corpus=corpus),
    "R-ROME": lambda corpus: edit.ROME(corpus=corpus),
    "MEMIT": lambda corpus: edit.MEMIT(corpus=corpus),
    "EMMET": lambda corpus: edit.EMMET(corpus=corpus),
    "PMET": lambda corpus: edit.PMET(corpus=corpus),
    "AlphaEdit": lambda corpus: edit.AlphaEdit(corpus=corpus),
    "KN": lambda corpus: edit.KN(),
}
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
    baseline = edit.baseline(model, requests)
    for name in arguments.methods:
        path = arguments.out / f"{name.replace(' ', '-').replace(',', '')}-{arguments.format}-{len(requests)}.csv"
        took = float("nan")
        if not path.exists():
            found: list[edit.Evaluation] = []
            method = METHODS[name](arguments.corpus)
            took = seconds(lambda m=method, f=found: f.append(_each(model, m, requests, baseline)))
            found[0].save(path)
        summary: Any = edit.Evaluation(rows=pd.read_csv(path)).summary()
        shown = [
            f"{short} {summary.loc[key, 'edited']:.1f} [{summary.loc[key, 'edited low']:.1f}, "
            f"{summary.loc[key, 'edited high']:.1f}]"
            for key, short in _SHOWN.items()
            if key in summary.index
        ]
        print(f"{name}: {'; '.join(shown)}; {took / len(requests):.1f} s per edit with its evaluation", flush=True)
    print("unedited: " + "; ".join(
        f"{short} {summary.loc[key, 'unedited']:.1f}" for key, short in _SHOWN.items() if key in summary.index
    ))  # fmt: skip


def _each(model: Any, method: Any, requests: list[edit.EditRequest], baseline: Any) -> edit.Evaluation:
    updates = method.fit_each(model, requests)
    parts = []
    for case, request in enumerate(tqdm(requests, "edits")):
        update = next(updates)
        parts.append(edit.evaluate(model, update, [request], baseline=baseline.of_case(case)))
    return edit.Evaluation.join(parts)


if __name__ == "__main__":
    main()
