"""One ROME fit on the resume engine against the literal loop, in one run.

    python -m benchmarks.rome [--repeats 3] [--layer 5] [--steps 20]

Both optimise the same value: same prompts and prefixes, same objective, same number of Adam steps. The
literal loop runs whole sequences through the whole model in every step. Then the same with early stop. Key
statistics and prefixes are shared and not timed.
"""

import argparse
from statistics import median
from typing import Any

import edit
import locate
from benchmarks import literal_rome
from benchmarks.timing import alternate, machine
from edit.contexts import build_contexts
from edit.values import ValueObjective, optimise_value


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    request = edit.EditRequest(locate.bundled_facts()[0])
    prefixes = edit.sample_prefixes(model)
    layer = arguments.layer
    statistics = edit.key_statistics(model, layer)
    print(f"{machine()}; {arguments.model}, layer {layer}; {request.describe()}; {len(prefixes)} prefixes")
    # A threshold that no loss reaches makes both take every step.
    full = ValueObjective(steps=arguments.steps, stop="loss", loss_threshold=-1.0)
    found: dict[str, Any] = {}

    def engine(objective: ValueObjective) -> None:
        found["engine"] = optimise_value(model, build_contexts(model, request, prefixes), layer, objective)

    def loop() -> None:
        found["literal"] = literal_rome.optimise_value(model, request, prefixes, layer, full)

    fast, slow, ratios = alternate(lambda: engine(full), loop, arguments.repeats)
    value, losses = found["literal"]
    gap = max(abs(a - b) for a, b in zip(found["engine"].losses, losses, strict=True))
    print(
        f"{arguments.steps} steps: engine {fast:.2f} s, literal loop {slow:.2f} s, ratio {median(ratios):.2f} "
        f"(each turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}); largest difference of a loss {gap:.1e}, "
        f"of v* {float((found['engine'].value - value).abs().max()):.1e}"
    )
    early = {
        "o* first under every prefix": ValueObjective(steps=arguments.steps, probability=0.0),
        "… and at 0.9 on average (default)": ValueObjective(steps=arguments.steps),
        "loss below 0.05 (as published)": ValueObjective(steps=arguments.steps, stop="loss"),
    }
    for name, objective in early.items():
        fast, slow, ratios = alternate(lambda objective=objective: engine(objective), loop, arguments.repeats)
        print(
            f"early stop, {name}: engine {fast:.2f} s ({len(found['engine'].losses) - 1} steps), literal loop "
            f"{slow:.2f} s ({arguments.steps} steps), ratio {median(ratios):.2f}"
        )
    for name, objective in {"all steps": full, **early}.items():
        method = edit.ROME(layer=layer, objective=objective, prefixes=tuple(prefixes[1:]), statistics=statistics)
        update = method.fit(model, [request], progress=False)
        rows: Any = edit.evaluate(model, update, [request]).rows
        rows = rows[rows["model"] == "edited"]
        asked = rows[rows["probe"] == "efficacy"].iloc[0]
        again = rows[rows["probe"] == "paraphrase"]
        near = rows[rows["probe"] == "neighbourhood"]
        print(
            f"quality, {name}: P(new) {asked['probability_new']:.3f}, says {asked['generation'].strip()!r}; first on "
            f"{(again['rank_new'] == 1).sum()} of {len(again)} paraphrases; {near['success'].sum()} of {len(near)} "
            f"neighbours keep their object"
        )


if __name__ == "__main__":
    main()
