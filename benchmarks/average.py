"""Average indirect effects over facts of the public "known 1000" set that the model answers.

    python -m benchmarks.average --data known_1000.json [--facts 120] [--out docs]

Traces all three kinds over every token, with Gaussian noise (3 × the standard deviation of all these subjects'
embeddings, 10 samples unless ``--samples`` says otherwise) and with token swaps, writes tables (CSV) and figures, and
prints where the effects peak, with 95% intervals. Traces are kept in a folder: a run that was stopped goes on where it
was.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import locate
from benchmarks.timing import machine, seconds
from locate.facts.facts import Fact
from locate.facts.prompts import encode_fact, encode_target
from locate.model.devices import input_device
from locate.plots import save_figure


def known_facts(path: Path, model: Any, n: int) -> list[Fact]:
    """The first ``n`` facts of the file whose answer's first token the model ranks first."""
    facts = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        prompt = record["prompt"]
        if record["subject"] not in prompt:
            continue
        try:
            fact = Fact.from_text(
                prompt.strip(), subject=record["subject"], target=record["attribute"].strip(),
                relation=record.get("relation_id") or record["template"], id=str(record["known_id"]),
            )  # fmt: skip
            encoded = encode_fact(model, fact)
            answer = int(encode_target(model, fact.text, fact.target)[0])
        except locate.FactError:
            continue
        with torch.no_grad():
            if int(model(encoded.tokens[None].to(input_device(model)))[0, -1].argmax()) == answer:
                facts.append(fact)
        if len(facts) == n:
            break
    return facts


def main() -> None:
    """Trace, average, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=120)
    parser.add_argument("--corruptions", nargs="+", default=["swap", "gaussian"], choices=["swap", "gaussian"])
    parser.add_argument("--precision", default="model", choices=["model", "bfloat16"])
    parser.add_argument("--traces", type=Path, default=Path("runs/average"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--samples", type=int, default=10, help="of the noise")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = locate.load_model(arguments.model)
    facts = known_facts(arguments.data, model, arguments.facts)
    print(f"{machine()}; {arguments.model}, products in {arguments.precision}; {len(facts)} facts that it answers")
    std = locate.embedding_std(model, facts)
    for name in arguments.corruptions:
        corruption: locate.Corruption = locate.GaussianNoise(std=std, samples=arguments.samples)
        if name == "swap":
            corruption = locate.TokenSwap(pool=tuple(facts))
        folder = arguments.traces / f"{name}-{arguments.precision}"
        took = seconds(lambda c=corruption, f=folder: _trace(model, facts, c, f, arguments.precision))
        files = (folder / f"{fact.id}.nc" for fact in facts)
        traces = [locate.load_trace(path) for path in files if path.exists()]
        average = locate.average_traces(traces)
        mean, low, high = average.total_effect
        print(f"{name}: {len(traces)} facts, total effect {mean:.3f} [{low:.3f}, {high:.3f}], this run {took:.0f} s")
        for kind in ("resid", "mlp", "attn"):
            for role in ("last subject token", "last token"):
                layer, effect, bottom, top = average.peak(kind, role)
                print(f"  {kind:>5}, {role:>18}: AIE {effect:.3f} [{bottom:.3f}, {top:.3f}] at layer {layer}")
        average.save(arguments.traces / f"average-{name}.nc")
        average.to_dataframe().round(4).to_csv(arguments.out / f"aie_{name}.csv", index=False)
        save_figure(average.plot(), arguments.out, f"aie_{name}")
        save_figure(average.plot_lines(), arguments.out, f"aie_{name}_lines")


def _trace(model: Any, facts: list[Fact], corruption: locate.Corruption, folder: Path, precision: str) -> None:
    # Facts whose prompts have as many tokens are traced together.
    by_length: dict[int, list[Fact]] = {}
    for fact in facts:
        if not (folder / f"{fact.id}.nc").exists():
            by_length.setdefault(len(encode_fact(model, fact).tokens), []).append(fact)
    for group in by_length.values():
        for first in range(0, len(group), 8):
            part = group[first : first + 8]
            for fact, trace in zip(part, _traces(model, part, corruption, precision), strict=True):
                if trace is not None:
                    trace.save(folder / f"{fact.id}.nc")


def _traces(model: Any, facts: list[Fact], corruption: locate.Corruption, precision: str) -> list[locate.Trace | None]:
    fitting = []
    for fact in facts:
        try:
            corruption.corrupt(model, fact, encode_fact(model, fact))
        except locate.FactError as error:
            print(f"  left out: {error}"[:120])
        else:
            fitting.append(fact)
    if not fitting:
        return [None] * len(facts)
    found = iter(locate.causal_trace(model, fitting, corruption=corruption, precision=precision, progress=False))
    return [next(found) if fact in fitting else None for fact in facts]


if __name__ == "__main__":
    main()
