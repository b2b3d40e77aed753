"""How faithful circuits are that each method finds, on pairs that they were not found on, and what finding them costs.

    python -m benchmarks.circuits [--task ioi] [--pairs 60] [--held-out 30] [--methods eap eap-relp]

Of the largest group of one length, the last pairs are held out. CMD and CPR are areas over the published sizes, with
intervals of a bootstrap over the held-out pairs; random circuits beside, with their range. Exact patching of all edges
is left out unless it is asked for: the default model has 70,651. Published averages of the MIB benchmark (2025), CMD:
EAP-IG-activations .07, EAP-IG-inputs .07, EAP .10, exact edge patching .29, random .72.
"""

import argparse
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

import locate
from benchmarks.timing import machine, seconds
from benchmarks.tracing import peak
from locate.circuits.scoring import METHODS
from locate.tasks.paired import PairedPrompts

_PUBLISHED = {"eap": ".10", "eap-ig-inputs": ".07", "eap-ig-activations": ".07", "random": ".72"}
_TASKS = ("ioi", "factual_recall", "greater_than", "gender_pronoun", "subject_verb_agreement")
_LEFT_OUT = "exact"
_COSTS = (("eap-ig-inputs", "3 minutes and 6 GB"), ("eap-relp", "1 minute"))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", choices=_TASKS, default="ioi")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=[one for one in METHODS if one != _LEFT_OUT]
    )  # fmt: skip
    parser.add_argument("--random", type=int, default=5, help="circuits of random edges of each size")
    parser.add_argument(
        "--cost-pairs", type=int, default=50, help="pairs on which time and memory are taken; 0 for none"
    )
    parser.add_argument("--edges", type=int, default=100, help="of the largest, whose signs are compared; 0 for none")
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    print(f"{machine()}; {arguments.model}; {arguments.task}", flush=True)
    every: PairedPrompts = getattr(locate.tasks, arguments.task)(model, arguments.pairs)
    group = max((one.pairs for one in every.by_length(model)), key=len)
    held = min(arguments.held_out, len(group) // 2)
    found_on, held_out = _part(group, slice(None, len(group) - held)), _part(group, slice(len(group) - held, None))
    print(f"found on {len(found_on)} pairs, tried on {held} others of the same length")
    circuits: dict[str, locate.Circuit] = {}
    for index, method in enumerate(arguments.methods):

        def find(method: str = method) -> None:
            circuits[method] = locate.find_circuit(model, found_on, method=method, progress=False)

        took = seconds(find)
        _judge(model, circuits[method], method, held_out, took, arguments.random if index == 0 else 0)
    if arguments.edges:
        _signs(model, circuits, found_on, arguments.edges)
    if arguments.cost_pairs:
        _costs(model, getattr(locate.tasks, arguments.task)(model, arguments.cost_pairs))


def _part(pairs: PairedPrompts, which: slice) -> PairedPrompts:
    return PairedPrompts(name=pairs.name, clean=pairs.clean[which], corrupt=pairs.corrupt[which], metric=pairs.metric)


def _judge(
    model: TransformerBridge, circuit: locate.Circuit, method: str, pairs: PairedPrompts, took: float, random: int
) -> None:
    curve = circuit.faithfulness(model, pairs, random=random, progress=False)
    low, high = curve.cmd_interval()
    published = f", published {_PUBLISHED[method]}" if method in _PUBLISHED else ""
    points = ", ".join(
        f"{int(size)}: {float(one):.2f}" for size, one in zip(curve.curve["size"], curve.curve, strict=True)
    )
    print(
        f"{method:>18}: CMD {curve.cmd:.3f} ({low:.3f} to {high:.3f}{published}), CPR {curve.cpr:.3f} "
        f"({' to '.join(f'{one:.3f}' for one in _cpr_interval(curve))}), found in {took:.1f} s; f by edges {points}",
        flush=True,
    )
    if random:
        own = curve.random_cmd
        print(
            f"{'random':>18}: CMD {own.mean():.3f} ({own.min():.3f} to {own.max():.3f} over {random} samples, "
            f"published {_PUBLISHED['random']})",
            flush=True,
        )


def _cpr_interval(curve: locate.Faithfulness) -> tuple[float, float]:
    """Of a bootstrap over pairs."""
    data = curve.data
    draws = np.random.default_rng(0).integers(0, data.sizes["pair"], size=(1000, data.sizes["pair"]))
    areas = []
    for one in draws:
        part = data.isel(pair=one)
        low, high = float(part["empty"].mean()), float(part["whole"].mean())
        heights = (part["values"].mean("pair").values - low) / (high - low)
        areas.append(np.trapezoid(heights, data["size"].values / curve.info["n_possible"]))
    low, high = np.percentile(areas, [2.5, 97.5])
    return float(low), float(high)


def _signs(model: TransformerBridge, circuits: dict[str, locate.Circuit], pairs: PairedPrompts, n: int) -> None:
    """Whether cutting the edges of the largest scores moves the metric as their scores say."""
    for method, circuit in circuits.items():
        best = circuit.top(min(n, circuit.n_edges), "threshold").edges
        exact = locate.patch_edges(
            model, pairs, edges=[(writer, reader) for writer, reader, _ in best], progress=False
        ).effect.values
        scores = np.array([score for *_, score in best])
        same = float((np.sign(scores) == np.sign(exact)).mean())
        r = float(np.corrcoef(scores, exact)[0, 1])
        print(
            f"{method:>18}: {100 * same:.0f}% of the top {len(best)} edges have the sign of exact patching, r {r:.3f}"
        )


def _costs(model: TransformerBridge, pairs: PairedPrompts) -> None:
    for method, asked in _COSTS:
        options: dict[str, Any] = {"method": method, "steps": 5, "progress": False}
        took, memory = peak(lambda options=options: locate.find_circuit(model, pairs, **options))
        print(
            f"{method:>18} on {len(pairs)} pairs: {took:.1f} s, peak memory {memory / 2**30:.2f} GiB above the model's "
            f"(asked: {asked})",
            flush=True,
        )


if __name__ == "__main__":
    main()
