"""Causal tracing on the resume engine against the literal loop, in one run.

    python -m benchmarks.tracing [--repeats 3] [--kinds resid mlp attn]

Both trace the same fact with the same noise over all sites. Prints wall times in turns, ratios, and the largest
difference of any score, in the model's own precision and with matrix products in bfloat16; then the floating-point
work against the least that causality allows, its speed against matrix products of the same shapes alone, and the
memory that a smaller budget saves.
"""

import argparse
import gc
import threading
import time
from statistics import median
from typing import Any

import psutil
import torch

import locate
from benchmarks import literal
from benchmarks.timing import alternate, machine, seconds
from benchmarks.work import counted, least_operations, seconds_alone
from locate.engine import DEFAULT_BUDGET


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3, help="turns against the loop; 0 for work and speed alone")
    parser.add_argument("--kinds", nargs="+", default=["resid", "mlp", "attn"])
    parser.add_argument("--device", default=None)
    parser.add_argument("--budgets", type=int, nargs="*", default=[1024, DEFAULT_BUDGET])
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model, device=arguments.device)
    fact = locate.bundled_facts()[0]
    prompt = locate.encode_fact(model, fact)
    print(f"{machine()}; {arguments.model}; “{fact.text}”")

    def trace(kind: Any, **options: Any) -> torch.Tensor:
        found = locate.causal_trace(model, fact, kinds=[kind], progress=False, **options)
        return torch.from_numpy(found.scores.values[0])

    # First, as the allocator keeps what a trace has used, and would hide what the next one takes.
    for budget in arguments.budgets:
        took, memory = peak(lambda budget=budget: trace("mlp", budget=budget))
        print(f"budget {budget} tokens: mlp trace {took:.2f} s, peak memory {memory / 2**20:.0f} MiB above the model's")
    trace("resid")  # warm up
    for kind in arguments.kinds:
        found: dict[str, torch.Tensor] = {}

        def engine(precision: str, kind: str = kind, found: dict[str, torch.Tensor] = found) -> None:
            found[precision] = trace(kind, precision=precision)

        def loop(kind: str = kind, found: dict[str, torch.Tensor] = found) -> None:
            found["literal"] = literal.causal_trace(model, fact, kind)

        if arguments.repeats:
            _compare(kind, found, engine, loop, arguments.repeats)
        products = counted(lambda: engine("model"))
        least = least_operations(
            model, kind, len(prompt.tokens), prompt.subject_span[0], 10, min(10, model.cfg.n_layers)
        )
        work = products.operations
        print(f"{kind:>5}: {work / 1e12:.3f} TFLOP of matrix products, {work / least:.3f} × the least possible")
        if not torch.cuda.is_available():
            alone = seconds_alone(products)
            again = seconds(lambda: engine("model"))
            print(
                f"{kind:>5}: {work / again / 1e9:.0f} GFLOP/s, {100 * alone / again:.0f}% of the "
                f"{work / alone / 1e9:.0f} GFLOP/s that these products reach alone",
                flush=True,
            )


def _compare(kind: str, found: dict[str, torch.Tensor], engine: Any, loop: Any, repeats: int) -> None:
    """Wall times in turns, and how far scores differ."""
    fast, slow, ratios = alternate(lambda: engine("model"), loop, repeats)
    faster = [seconds(lambda: engine("bfloat16")) for _ in range(repeats)]
    for name, took, each in (("model", fast, ratios), ("bfloat16", median(faster), [slow / t for t in faster])):
        difference = float((found[name] - found["literal"]).abs().max())
        print(
            f"{kind:>5}, {name:>8}: engine {took:6.2f} s, literal loop {slow:6.2f} s, ratio {median(each):.2f} "
            f"(each turn: {', '.join(f'{ratio:.2f}' for ratio in each)}), largest difference {difference:.1e}",
            flush=True,
        )


def peak(work: Any) -> tuple[float, int]:
    """Wall time, and how far the process's memory rose above where it was (the device's, on a GPU)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        took = seconds(work)
        return took, torch.cuda.max_memory_allocated() - before
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    done.set()
    watcher.join()
    return took, highest - before


if __name__ == "__main__":
    main()
