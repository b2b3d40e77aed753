"""How far to take ROME's values, and how much the bare prompt's key should weigh, on cases that judge nothing else.

    python -m benchmarks.strength --data counterfact_flat_1000.json [--skip 100] [--cases 50] [--probabilities 0.9 0.95]

Each case is edited alone on the unedited model, by the original form of ROME and by R-ROME with several weights of the
bare prompt, with values that are optimised until the new object has each of the probabilities. The first ``--skip``
cases that ask for something new are left to ``benchmarks.family``, which judges. A value is optimised once, up to the
highest probability: where it passes a lower one it is what an optimisation that stops there gives.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import edit
import locate
from benchmarks.family import usable
from benchmarks.timing import machine
from edit.names import SAMPLED
from edit.values.contexts import Contexts, build_contexts
from edit.values.objective import Value, ValueObjective
from edit.values.optimisation import Reached, _Optimisation
from edit.values.progress import StepBar
from locate.engine import DEFAULT_BUDGET

_SHOWN = {
    "efficacy": "ES",
    "paraphrase": "PS",
    "neighbourhood": "NS",
    "score": "S",
    "locality": "neighbour's answer stays",
}


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--skip", type=int, default=100)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--probabilities", type=float, nargs="+", default=[0.9, 0.95, 0.98])
    parser.add_argument("--bare", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--corpus", default=SAMPLED, help="for key statistics")
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    requests, _ = usable(model, edit.load_counterfact(arguments.data), arguments.skip + arguments.cases)
    requests = requests[arguments.skip :]
    print(f"{machine()}; {arguments.model}; {len(requests)} edits after the first {arguments.skip}", flush=True)
    print(sweep(model, requests, arguments.probabilities, arguments.bare, arguments.corpus).round(1).to_string())


def sweep(
    model: Any, requests: Sequence[edit.EditRequest], probabilities: Sequence[float], bare: Sequence[float], corpus: str
) -> pd.DataFrame:
    """Percentages over the cases, by probability and form."""
    prefixes = edit.sample_prefixes(model, edit.ROME().prefix_lengths)
    options: dict[str, Any] = {
        "prefixes": tuple(prefixes[1:]), "corpus": corpus, "objective": ValueObjective(), "openings": (),
    }  # fmt: skip
    forms = {
        "original": edit.ROME(original=True, **options), "R-ROME, plain mean": edit.ROME(bare_weight=None, **options),
        **{f"R-ROME, bare prompt {weight:g}": edit.ROME(bare_weight=weight, **options) for weight in bare},
    }  # fmt: skip
    any_form = forms["original"]
    layer = any_form.resolve_layer(model)
    any_form.statistics_for(model)
    before = edit.baseline(model, requests, generate=False)
    parts: dict[tuple[float, str], list[edit.Evaluation]] = {}
    steps: dict[float, list[int]] = {}
    for case, request in enumerate(tqdm(requests, "cases")):
        values = values_at(model, build_contexts(model, request, prefixes), layer, any_form.objective, probabilities)
        for probability, value in values.items():
            steps.setdefault(probability, []).append(len(value.losses) - 1)
            for name, form in forms.items():
                (update,) = form.fit_each(model, [request], values=[value], progress=False)
                judged = edit.evaluate(
                    model, update, [request], generate=False, baseline=before.of_case(case), progress=False
                )
                parts.setdefault((probability, name), []).append(judged)
    rows = {}
    for (probability, name), own in parts.items():
        table: Any = edit.Evaluation.join(own).summary()["edited"]
        rows[probability, name] = {
            **{short: table[key] for key, short in _SHOWN.items()},
            "steps": sum(steps[probability]) / len(steps[probability]),
        }
    return pd.DataFrame(rows).T.rename_axis(["probability", "form"])


def values_at(
    model: Any, context: Contexts, layer: int, objective: ValueObjective, probabilities: Sequence[float]
) -> dict[float, Value]:
    """What the optimisation gives where it stops at each of the probabilities, from one run up to the highest."""
    objective = replace(objective, probability=max(probabilities))
    watched = _Watched(model, [context], layer, objective, "mlp", DEFAULT_BUDGET)
    watched.wanted = sorted(probabilities)
    (last,) = watched.run(StepBar(requests=1, steps=objective.steps))
    return {probability: watched.passed.get(probability, last) for probability in probabilities}


class _Watched(_Optimisation):
    """An optimisation that keeps what it has where it passes a probability."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.wanted: list[float] = []
        self.passed: dict[float, Value] = {}

    def _stops(self, index: int, now: Reached) -> bool:
        for probability in self.wanted:
            if now.first and probability not in self.passed and now.probability >= probability:
                self.passed[probability] = self._value(index)
        return super()._stops(index, now)


if __name__ == "__main__":
    main()
