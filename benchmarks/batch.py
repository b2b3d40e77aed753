"""A batch of requests against the literal loop that finds one value at a time, in one run.

    python -m benchmarks.batch --data counterfact_flat_1000.json [--requests 100] [--literal 5] [--methods MEMIT]

Both take the same steps from the same prefixes with the same statistics; the literal loop runs whole texts through the
whole model in every step and reads every state from a whole pass. It is timed on the first ``--literal`` requests,
as it is the same work for each. Prints seconds per edit, the ratio, the memory above the model's, and the quality of
both on the requests that both edited.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import edit
import locate
from benchmarks import literal_memit
from benchmarks.family import usable
from benchmarks.timing import machine, seconds
from benchmarks.tracing import peak
from edit.methods.rewriting.rewriting import stored
from edit.methods.rewriting.solves import usual_weight
from edit.names import SAMPLED
from locate.model.weights import down_projection


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--literal", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["MEMIT", "AlphaEdit"], choices=["MEMIT", "AlphaEdit", "PMET"])
    parser.add_argument("--corpus", default=SAMPLED, help="for key statistics")
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    requests, _ = usable(model, edit.load_counterfact(arguments.data), arguments.requests)
    # A threshold that no loss reaches makes both take every step.
    objective = edit.ValueObjective(steps=arguments.steps, clamp=0.75, stop="loss", loss_threshold=-1.0)
    prefixes = edit.sample_prefixes(model, ((10, 5),))
    print(
        f"{machine()}; {arguments.model}; {len(requests)} requests, {arguments.steps} steps, {len(prefixes)} prefixes"
    )
    for name in arguments.methods:
        options = {"objective": objective, "prefixes": tuple(prefixes[1:]), "corpus": arguments.corpus}
        _compare(model, name, getattr(edit, name)(**options), requests, requests[: arguments.literal], prefixes)


def _compare(model: Any, name: str, method: Any, requests: list[Any], some: list[Any], prefixes: list[str]) -> None:
    layers = method.resolve_layers(model)
    statistics = method.statistics_for(model)
    moments = {layer: one.second_moment for layer, one in statistics.items()}
    ridges = {}
    if name == "AlphaEdit":
        for layer, one in statistics.items():
            basis = one.null_space(energy=method.energy)
            ridges[layer] = method.relative_ridge * float((basis * (one.second_moment @ basis)).sum())
    found: dict[str, Any] = {}

    def engine() -> None:
        found["engine"] = method.fit(model, requests, progress=False)

    def literal() -> None:
        found["literal"] = literal_memit.deltas(
            model, some, prefixes, layers, method.objective, moments, method=name,
            weight=usual_weight(len(moments[layers[0]])), ridge=ridges,
        )  # fmt: skip

    took, memory = peak(engine)
    fast, slow = took / len(requests), seconds(literal) / len(some)
    print(
        f"{name}: engine {fast:.2f} s per edit ({took:.0f} s in all, {memory / 2**20:.0f} MiB above the model's); "
        f"literal {slow:.2f} s per edit on {len(some)}; ratio {slow / fast:.2f}",
        flush=True,
    )
    own = method.fit(model, some, progress=False)
    other = _update(model, found["literal"], own)
    far = max(float((own.delta(n) - other.delta(n)).norm() / other.delta(n).norm()) for n in other.parameters)
    print(f"  largest difference of a layer's change on the same {len(some)} requests: {far:.1e} of its norm")
    for label, update in (("engine", own), ("literal", other)):
        scores: Any = edit.evaluate(model, update, some).summary()["edited"]
        shown = ", ".join(f"{key} {value:.1f}" for key, value in scores.items())
        print(f"  {label} on the same {len(some)} requests: {shown}", flush=True)


def _update(model: Any, deltas: dict[int, torch.Tensor], own: edit.WeightUpdate) -> edit.WeightUpdate:
    changes = {}
    for layer, delta in deltas.items():
        down = down_projection(model, layer)
        changes[down.name] = stored(torch.eye(len(delta)), delta, down)
    return edit.WeightUpdate.make(model, changes, method=own.method)


if __name__ == "__main__":
    main()
