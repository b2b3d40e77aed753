"""Causal tracing on the resume engine against the literal loop, in one run.

    python -m benchmarks.tracing [--repeats 3] [--kinds resid mlp attn]

Both trace the same fact with the same noise over all sites. Prints wall times in turns, the ratio, and the
largest difference of any score.
"""

import argparse
from statistics import median
from typing import Any

import torch

import locate
from benchmarks import literal
from benchmarks.timing import alternate, machine


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["resid", "mlp", "attn"])
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    fact = locate.bundled_facts()[0]
    print(f"{machine()}; {arguments.model}; “{fact.text}”")
    locate.causal_trace(model, fact, kinds=["resid"], progress=False)  # warm up
    for kind in arguments.kinds:
        found: dict[str, torch.Tensor] = {}

        def engine(kind: Any = kind, found: dict[str, torch.Tensor] = found) -> None:
            trace = locate.causal_trace(model, fact, kinds=[kind], progress=False)
            found["engine"] = torch.from_numpy(trace.scores.values[0])

        def loop(kind: str = kind, found: dict[str, torch.Tensor] = found) -> None:
            found["literal"] = literal.causal_trace(model, fact, kind)

        fast, slow, ratios = alternate(engine, loop, arguments.repeats)
        difference = float((found["engine"] - found["literal"]).abs().max())
        print(
            f"{kind:>5}: engine {fast:6.2f} s, literal loop {slow:6.2f} s, ratio {median(ratios):.2f} "
            f"(each turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}), largest difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
