"""The circuit of an edit: how few edges carry it from the changed weights to the answer, beside random edges.

    python -m benchmarks.edit_circuit [--facts 30] [--layer 4] [--share 0.85] [--out FOLDER]

The facts are shipped ones that the model answers, spread over all relations, each edited alone by ROME. The edges are
the fewest of the best scored ones that were found to carry the share of the edit's effect on its own prompt, and were
run to confirm it: every other edge brings what it brings in the base model. The run goes on in its folder where it was
stopped.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

import edit
import locate
from benchmarks.timing import machine
from locate.facts.files import known_facts, spread
from locate.facts.keys import case_keys
from locate.store.folders import RunFolder

_RESAMPLES = 2000


def main() -> None:
    """Edit fact by fact and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=30)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.85)
    parser.add_argument("--random", type=int, default=10, help="sets of as many edges, of each kind")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-edit-circuit"))
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    facts = spread(known_facts(arguments.model), arguments.facts)
    told = f"{len(facts)} facts; ROME at layer {arguments.layer}; {arguments.share:.0%} carried"
    print(f"{machine()}; {arguments.model}; {told}")
    asked = {"model": arguments.model, "layer": arguments.layer, "share": arguments.share, "random": arguments.random}
    with RunFolder.open(arguments.out, asked) as run:
        keys = case_keys(facts)
        left = [(key, edit.EditRequest(fact)) for key, fact in zip(keys, facts, strict=True)
                if key in run.pending([key])]  # fmt: skip
        updates = edit.ROME(layer=arguments.layer).fit_each(model, [request for _, request in left], progress=False)
        for (key, request), update in zip(left, updates, strict=True):
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
