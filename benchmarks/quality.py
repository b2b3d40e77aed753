"""Quality of single edits: choose a layer on some facts, then judge it on others.

    python -m benchmarks.quality [--layers 2 3 4 5 6 8 10] [--sweep 20] [--facts 50]

The facts are the shipped ones that the model answers, in a fixed random order: the first ``--facts`` judge,
the next ``--sweep`` choose the layer (by the score, the harmonic mean of efficacy, paraphrase and
neighbourhood, then by P(new) on the prompt). No fact does both.
"""

import argparse
import random
from dataclasses import replace
from typing import Any

import edit
import locate
from benchmarks.timing import machine, seconds
from edit.names import SAMPLED
from locate.facts.facts import Fact


def split(n_test: int, n_sweep: int, model: str, seed: int = 0) -> tuple[list[Fact], list[Fact]]:
    """Disjoint facts for judging and for choosing the layer."""
    facts = [fact for fact in locate.bundled_facts(known_to=model) if fact.id != "eiffel-tower-city"]
    random.Random(seed).shuffle(facts)
    return facts[:n_test], facts[n_test : n_test + n_sweep]


def _weight(text: str) -> float | str | None:
    return {"none": None, "even": "even"}[text] if text in ("none", "even") else float(text)


def main() -> None:
    """Run the sweep and the final evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="*", default=[2, 3, 4, 5, 6, 8, 10])
    parser.add_argument("--sweep", type=int, default=20)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--original", action="store_true", help="the original ROME instead of R-ROME")
    parser.add_argument(
        "--bare-weight", type=_weight, default="even", help="of R-ROME's mean key; 'none' for a plain mean"
    )
    parser.add_argument("--alone", action="store_true", help="values for the new object alone: no ending, no openings")
    parser.add_argument("--learning-rate", type=float, default=None, help="instead of the default")
    parser.add_argument("--corpus", default=SAMPLED, help="for key statistics")
    parser.add_argument("--stop", default=None, choices=["loss", "first"], help="instead of the default stop rule")
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    test, sweep = split(arguments.facts, arguments.sweep, arguments.model)
    given: dict[str, Any] = {"stop": arguments.stop, "learning_rate": arguments.learning_rate}
    own = edit.ROME(objective=edit.ValueObjective(), openings=()) if arguments.alone else edit.ROME()
    objective = replace(own.objective, **{name: value for name, value in given.items() if value is not None})
    prefixes = tuple(edit.sample_prefixes(model)[1:])
    form = "ROME's original form" if arguments.original else f"R-ROME, bare prompt {arguments.bare_weight}"
    form += ", no ending, no openings" * arguments.alone
    print(f"{machine()}; {arguments.model}; {form}; stop: {objective.stop}; learning rate {objective.learning_rate}")
    options = {
        "original": arguments.original, "bare_weight": arguments.bare_weight, "objective": objective,
        "openings": own.openings, "prefixes": prefixes, "corpus": arguments.corpus,
    }  # fmt: skip
    scores: dict[int, tuple[float, float]] = {}
    for layer in arguments.layers:
        result = edit.evaluate_each(model, edit.ROME(layer=layer, **options), sweep, generate=False, progress=False)
        table: Any = result.summary()["edited"]
        asked: Any = result.rows[(result.rows["model"] == "edited") & (result.rows["probe"] == "efficacy")]
        scores[layer] = (round(table["score"], 1), float(asked["probability_new"].mean()))
        shown = ", ".join(f"{name} {table[name]:.1f}" for name in ("efficacy", "paraphrase", "neighbourhood", "score"))
        print(f"  layer {layer:>2} on {len(sweep)} facts: {shown}, mean P(new) {scores[layer][1]:.3f}", flush=True)
    best = max(scores, key=lambda layer: scores[layer]) if scores else edit.ROME().resolve_layer(model)
    method = edit.ROME(layer=best, **options)
    found: list[edit.Evaluation] = []
    took = seconds(lambda: found.append(edit.evaluate_each(model, method, test, progress=False)))
    print(f"layer {best}, {len(test)} other facts, {took / len(test):.1f} s per edit with its evaluation")
    print(found[0].summary().round(1).to_string(na_rep="–"))


if __name__ == "__main__":
    main()
