"""One ROME fit on the resume engine against the literal loop, in one run.

    python -m benchmarks.rome [--repeats 3] [--layer 4] [--steps 20] [--learning-rate 0.5]

Both optimise the same value: same prompts and prefixes, same objective, same number of Adam steps. The
literal loop runs whole sequences through the whole model in every step. Then the same with early stop, and what ROME
does by default, its ending and openings included, against the literal loop of just that. Key statistics and prefixes
are shared and not timed.
"""

import argparse
from statistics import median
from typing import Any

import edit
import locate
from benchmarks import literal_rome
from benchmarks.timing import machine, seconds
from edit.values.contexts import Openings, build_contexts
from edit.values.objective import ValueObjective
from edit.values.optimisation import optimise_value

_ALL, _DEFAULT = "all steps", "ROME's default: … and its end, with openings"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.5, help="of the publication")
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    request = edit.EditRequest(locate.bundled_facts()[0])
    prefixes = edit.sample_prefixes(model)
    layer = arguments.layer
    statistics = edit.key_statistics(model, layer)
    print(f"{machine()}; {arguments.model}, layer {layer}; {request.describe()}; {len(prefixes)} prefixes")
    # A threshold that no loss reaches makes both take every step.
    published = {"steps": arguments.steps, "learning_rate": arguments.learning_rate}
    own = edit.ROME()
    wanted: dict[str, tuple[ValueObjective, Openings]] = {
        _ALL: (ValueObjective(stop="loss", loss_threshold=-1.0, **published), ()),
        "early stop, o* first under every prefix": (ValueObjective(probability=0.0, **published), ()),
        "early stop, … and at 0.9 on average": (ValueObjective(**published), ()),
        "early stop, loss below 0.05": (ValueObjective(stop="loss", **published), ()),
        "learning rate 0.2, o* first and at 0.9 on average": (ValueObjective(), ()),
        _DEFAULT: (own.objective, own.openings),
    }
    values: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in wanted}
    loops: dict[str, Any] = {}
    loop_times: dict[str, list[float]] = {_ALL: [], _DEFAULT: []}

    def engine(name: str) -> None:
        objective, openings = wanted[name]
        contexts = build_contexts(model, request, prefixes, openings=openings, ends=objective.end > 0)
        values[name] = optimise_value(model, contexts, layer, objective)

    def loop(name: str) -> None:
        objective, openings = wanted[name]
        loops[name] = literal_rome.optimise_value(model, request, prefixes, layer, objective, openings=openings)

    for _ in range(arguments.repeats):  # in turns, each against the same literal loop
        for name in wanted:
            times[name].append(seconds(lambda name=name: engine(name)))
        for name in loop_times:
            loop_times[name].append(seconds(lambda name=name: loop(name)))
    for name, (value, losses) in loops.items():
        gap = max(abs(a - b) for a, b in zip(values[name].losses, losses, strict=True))
        print(
            f"literal loop, {name}: {median(loop_times[name]):.2f} s ({len(losses) - 1} steps); against the engine the "
            f"largest difference of a loss is {gap:.1e}, of v* {float((values[name].value - value).abs().max()):.1e}"
        )
    for name, (objective, openings) in wanted.items():
        against = loop_times[_DEFAULT if name == _DEFAULT else _ALL]
        ratios = [slow / fast for fast, slow in zip(times[name], against, strict=True)]
        method = edit.ROME(
            layer=layer, objective=objective, openings=openings, prefixes=tuple(prefixes[1:]), statistics=statistics
        )
        update = method.fit(model, [request], progress=False)
        rows: Any = edit.evaluate(model, update, [request]).rows
        rows = rows[rows["model"] == "edited"]
        asked = rows[rows["probe"] == "efficacy"].iloc[0]
        again = rows[rows["probe"] == "paraphrase"]
        near = rows[rows["probe"] == "neighbourhood"]
        print(
            f"{name}: {median(times[name]):.2f} s ({len(values[name].losses) - 1} steps), ratio {median(ratios):.2f} "
            f"(each turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}); P(new) {asked['probability_new']:.3f}, "
            f"says {asked['generation'].strip()!r}; first on {(again['rank_new'] == 1).sum()} of {len(again)} "
            f"paraphrases; {near['success'].sum()} of {len(near)} neighbours keep their object",
            flush=True,
        )


if __name__ == "__main__":
    main()
