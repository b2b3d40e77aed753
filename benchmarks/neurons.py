"""How far neurons' attributions add up to what their layer does, and what it costs: the rules of the integral.

python -m benchmarks.neurons [--facts 6]

Over facts that ship with the project and all layers: |Σ attributions − change of P| as a share of the change (or of a
thousandth, where P hardly changes), and the seconds of each rule, in one run.
"""

import argparse
import time
import warnings

import numpy as np

import locate

RULES = {"right": (20, 100), "adaptive": (None,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=6)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model = locate.load_model()
    facts = [
        locate.Fact(prompt=one.prompt, subject=one.subject, target=one.target)
        for one in locate.bundled_facts(known_to="smollm2-135m")[: asked.facts]
    ]
    print(f"{len(facts)} facts × {model.cfg.n_layers} layers")
    print(
        "| rule | missed, median | 90% of layers | most | within 2% | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for rule, several in RULES.items():
        for steps in several:
            start = time.perf_counter()
            found = locate.knowledge_neurons(model, facts, rule=rule, steps=steps, progress=False)
            seconds = time.perf_counter() - start
            missed = (found.data["residual"] / np.abs(found.data["change"]).clip(min=1e-3)).values
            name = rule if steps is None else f"{rule}, {steps} points"
            middle, most = (f"{100 * np.quantile(missed, share):.2f}%" for share in (0.5, 0.9))
            within = f"{100 * (missed <= 0.02).mean():.0f}%"
            print(f"| {name} | {middle} | {most} | {100 * missed.max():.1f}% | {within} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
