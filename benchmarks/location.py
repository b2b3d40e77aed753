"""Knowledge location: where changes are, what they say, what tracing finds, and which layer to edit.

    python -m benchmarks.location [--facts 30] [--layers 1 4 7 10 13 17 21 25] [--prefixes 4] [--out FOLDER]

The facts are shipped ones that the model answers, spread over all relations. Each is edited alone by ROME, MEMIT,
AlphaEdit and fine-tuning of ROME's matrix, and by ROME at each of the layers given, which are eight of 30 by default
(``--layers all`` takes them all, and about four times as long). ROME's values are optimised on the bare prompt and four
sampled prefixes of ten tokens; with the usual twenty (``--prefixes 0``) it is some three quarters of an hour on two
cores, two thirds of it ROME at the layers. The run goes on in its folder where it was stopped.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import edit
import locate
from benchmarks.timing import machine, seconds
from edit.report.location import usual_methods
from locate.facts.files import known_facts, spread

_LAYERS = ["1", "4", "7", "10", "13", "17", "21", "25"]


def main() -> None:
    """Make the report and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=30)
    parser.add_argument("--layers", nargs="*", default=_LAYERS, help="numbers, or all")
    parser.add_argument("--prefixes", type=int, default=4, help="of ROME's values; 0 for the usual twenty")
    parser.add_argument("--samples", type=int, default=3, help="of noise, in tracing and RelP")
    parser.add_argument("--steps", type=int, default=20, help="of the neurons' integral")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-location"))
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    facts = spread(known_facts(arguments.model), arguments.facts)
    layers = None if arguments.layers == ["all"] else [int(layer) for layer in arguments.layers]
    methods = usual_methods(model)
    if arguments.prefixes:
        methods["ROME"] = dataclasses.replace(methods["ROME"], prefix_lengths=((10, arguments.prefixes),))
    told = f"ROME at layers {layers or 'all'}, {arguments.prefixes or 20} prefixes; {arguments.samples} samples"
    print(f"{machine()}; {arguments.model}; {len(facts)} facts; {told}")
    made: list[edit.LocationReport] = []
    took = seconds(
        lambda: made.append(
            edit.location_report(
                model,
                facts,
                arguments.out,
                methods=methods,
                layers=layers,
                steps=arguments.steps,
                corruption=locate.GaussianNoise(samples=arguments.samples),
                progress=False,
                report=lambda line: print(f"  {line} …", flush=True),
            )
        )
    )
    report = made[0]
    print(f"{took:.0f} s; results in {report.folder}")
    for finding in report.findings:
        print(f"{finding.title}. {finding.text} {finding.verdict}")
    hits = [one.rates().assign(method=name) for name, one in report.readouts.items()]
    for table in hits:
        print(table.round(2).to_string(index=False))
    if report.similarity is not None:
        rsim: Any = report.similarity.to_dataframe()
        print(rsim.round(2).to_string(index=False, na_rep="–"))
    print(report.study.table().round(2).to_string(na_rep="–"))
    print(report.study.correlations().round(2).to_string(index=False, na_rep="–"))
    for name, reason in report.left_out.items():
        print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
