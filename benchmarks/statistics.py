"""Collecting key statistics against the plain forward pass over the same tokens, in one run.

    python -m benchmarks.statistics --data TEXTFILE [--layers 4 5 6 7 8] [--tokens 131072] [--repeats 3]

The forward pass stops at the highest layer and does nothing else: its tokens are ready. It runs in the passes that the
collection makes, and once more with whole batches. The collection is timed whole: reading and tokenising the text, the
model's fingerprint, the forward pass, and all sums. Prints tokens per second in turns and ratios; then for each layer
the time of its sums alone, and how far they are from products in float64.
"""

import argparse
from itertools import islice
from statistics import median

import torch

import edit
import locate
from benchmarks.timing import machine, seconds
from edit.statistics import collect_statistics
from edit.statistics.accumulate import MomentSum
from edit.statistics.corpus import LENGTH, ROWS, token_batches
from locate.engine.rows import WHOLE_BUDGET, Budget
from locate.model.devices import input_device
from locate.sites.table import hook_name


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a text file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default=None)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--tokens", type=int, default=4 * ROWS * LENGTH, help="in whole batches")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model, device=arguments.device)
    rows = Budget.of(model, WHOLE_BUDGET).rows(LENGTH)
    layers, stop, device = arguments.layers, max(arguments.layers) + 1, input_device(model)
    wanted = -(-arguments.tokens // (ROWS * LENGTH))
    batches = list(islice(token_batches(model, arguments.data), wanted))
    count = sum(batch.numel() for batch in batches)
    found: dict[int, edit.KeyStatistics] = {}

    @torch.no_grad()
    def forward(rows: int) -> None:
        for batch in batches:
            for part in batch.split(rows):
                model(part.to(device), stop_at_layer=stop)

    def collect() -> None:
        found.update(
            collect_statistics(
                model, layers, corpus=arguments.data, tokens=arguments.tokens, cache=False, progress=False
            )
        )  # fmt: skip

    print(f"{machine()}; {arguments.model}, layers {layers}, {count} tokens in passes of {WHOLE_BUDGET}")
    with torch.no_grad():
        model(batches[0][:rows].to(device), stop_at_layer=stop)  # warm up
    times: dict[str, list[float]] = {"collection": [], "forward, same passes": [], "forward, whole batches": []}
    for _ in range(arguments.repeats):
        times["collection"].append(seconds(collect))
        times["forward, same passes"].append(seconds(lambda: forward(rows)))
        times["forward, whole batches"].append(seconds(lambda: forward(ROWS)))
    assert all(found[layer].count == count for layer in layers)
    for name, taken in times.items():
        print(f"{name}: {median(taken):.2f} s, {count / median(taken):.0f} tokens/s")
        if name != "collection":
            ratios = [plain / own for own, plain in zip(times["collection"], taken, strict=True)]
            each = ", ".join(f"{ratio:.1%}" for ratio in ratios)
            print(f"  of which the collection reaches {median(ratios):.1%} (each turn: {each})", flush=True)
    keys: dict[int, torch.Tensor] = {}
    hooks = [
        (
            hook_name("down_in", layer),
            lambda value, hook, layer=layer: keys.__setitem__(layer, value.detach().flatten(0, -2)),
        )
        for layer in layers
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(batches[0][:rows].to(device), stop_at_layer=stop)
    for layer in layers:
        own, size = keys[layer], keys[layer].shape[1]
        sums = MomentSum(layer=layer, size=size, wanted=1)
        took = min(seconds(lambda sums=sums, own=own: sums.add(own)) for _ in range(3))
        once = MomentSum(layer=layer, size=size, wanted=1)
        once.add(own)
        exact = own.double().T @ own.double() / len(own)
        # In units of the neurons' own sizes, which the Cholesky factor is told apart by.
        scale = exact.diagonal().clamp(min=1e-30).sqrt().cpu()
        error = (once.finished() - exact.cpu()).abs()
        print(
            f"layer {layer}: sums {took * 1e3:.0f} ms per pass of {len(own)} tokens; largest error "
            f"{float(error.max() / exact.abs().max()):.1e} of the largest entry, "
            f"{float((error / scale / scale[:, None]).max()):.1e} in units of the neurons' sizes",
            flush=True,
        )


if __name__ == "__main__":
    main()
