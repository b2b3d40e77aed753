"""The circuit of an edit: how few edges carry it from the changed weights to the answer, beside random edges.

    python -m benchmarks.edit_circuit [--facts 30] [--share 0.85] [--edits FOLDER] [--out FOLDER]

The facts are shipped ones that the model answers and that have consequences, spread over all, each edited alone by
ROME. The edges are the fewest of the best scored ones that were found to carry the share of the edit's effect on its
own prompt, and were run to confirm it: every other edge brings what it brings in the base model. The run goes on in its
folder where it was stopped.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

import edit
import locate
from benchmarks.single_edits import FOLDER, facts_with_consequences, methods_of, single_edits
from benchmarks.timing import machine
from locate.facts.keys import case_keys
from locate.store.folders import RunFolder

_RESAMPLES = 2000


def main() -> None:
    """Edit fact by fact and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.85)
    parser.add_argument("--random", type=int, default=10, help="sets of as many edges, of each kind")
    parser.add_argument("--edits", type=Path, default=FOLDER, help="where edits are kept, for other benchmarks too")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-edit-circuit"))
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    facts = facts_with_consequences(arguments.facts, arguments.model)
    methods = methods_of(model, ["ROME"])
    print(f"{machine()}; {arguments.model}; {len(facts)} facts; ROME; {arguments.share:.0%} carried", flush=True)
    asked = {
        "command": "edit circuit", "model": arguments.model, "method": repr(methods["ROME"]),
        "share": arguments.share, "random": arguments.random,
    }  # fmt: skip
    with RunFolder.open(arguments.out, asked) as run:
        keys = case_keys(facts)
        for _, key, request, update in single_edits(model, facts, methods, arguments.edits):
            if not run.pending([key]):
                continue
            start = time.perf_counter()
            try:
                found = edit.edit_circuit(
                    model, update, request, share=arguments.share, random=arguments.random, progress=False
                )  # fmt: skip
            except locate.LocateError as error:
                run.record_failure(key, error)
                print(f"  {key}: left out: {error}", flush=True)
                continue
            row = {str(name): float(value) for name, value in found.summary().items()}
            row |= {"best_layer": float(found.best().layer), "seconds": time.perf_counter() - start}
            run.record(key, row, file=found.save(arguments.out / f"{key}.nc"))
            print(f"  {key}: {found!r}, {row['seconds']:.0f} s", flush=True)
        rows = pd.DataFrame([{"fact": key, **run.done[key].found} for key in keys if key not in run.failed])
        print(f"{len(run.failed)} of {len(keys)} facts left out")
    if not rows.empty:
        _tell(rows)


def _tell(rows: pd.DataFrame) -> None:
    print(rows.drop(columns=[name for name in rows if "random" in name]).round(4).to_string(index=False))
    print("median over facts, and the interval of 95% of it over resamples of the facts:")
    for name in ("edges", "size", "size_of_differing", "nodes", "share", "random_all", "random_ways", "random_grown"):
        if name in rows:
            values = rows[name].to_numpy()
            draws = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values)))
            low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
            print(f"  {name}: {np.median(values):.4g} [{low:.4g}, {high:.4g}]")


if __name__ == "__main__":
    main()
