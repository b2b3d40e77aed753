"""This checkout against another one of the same project, in turns: how fast, and how far results differ.

    git worktree add /tmp/before REVISION
    python -m benchmarks.against /tmp/before [--turns 3] [--works resid mlp patch rome memit]

Both run in processes of their own that take turns on the same work, so that a noisy machine does not decide; each
process uses the public names alone, so that rooms may have moved between the two. Prints the median seconds of both,
the ratio of each turn, and the largest difference of any number.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.timing import machine

WORKS = ("resid", "mlp", "attn", "patch", "heads", "neurons", "rome", "memit")


class Side:
    """One checkout, in a process that does one piece of work at a time."""

    def __init__(self, folder: Path, model: str) -> None:
        # Not as a script: its folder would come first on the path, before the checkout that is measured.
        code = f"import runpy; runpy.run_path({__file__!r}, run_name='side')['serve']({model!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(folder)},
        )  # fmt: skip

    def do(self, work: str) -> tuple[float, list[float]]:
        """Seconds, and the numbers that came out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(work, file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("{"):
            if not line:
                raise SystemExit("A side ended before it was done; its message is above.")
        told = json.loads(line)
        return told["seconds"], told["numbers"]

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(model: str) -> None:
    """Do what standard input asks for, and print one line of JSON for each."""
    import edit
    import locate

    bridge = locate.load_model(model)
    fact = locate.bundled_facts()[0]
    swap = locate.TokenSwap()
    quiet: dict[str, Any] = {"progress": False}
    requests = [edit.EditRequest(one) for one in locate.bundled_facts()[1:6]]
    twenty = edit.ValueObjective(steps=20, stop="loss", loss_threshold=0.0)

    def trace(kind: str) -> list[float]:
        return locate.causal_trace(bridge, fact, kinds=[kind], **quiet).scores.values.ravel().tolist()

    def patch(sites: str) -> list[float]:
        return locate.patch(bridge, fact, swap, sites=sites, **quiet).values.values.ravel().tolist()

    def fit(method: Any, asked: Sequence[Any]) -> list[float]:
        update = method.fit(bridge, asked, **quiet)
        return [value for name in update.parameters for value in update.delta(name).flatten()[::997].tolist()]

    works: dict[str, Callable[[], Any]] = {
        **{kind: partial(trace, kind) for kind in ("resid", "mlp", "attn")},
        "patch": partial(patch, "resid_pre"),
        "heads": partial(patch, "attn_head_z"),
        "neurons": lambda: locate.knowledge_neurons(bridge, fact, **quiet).scores.values.ravel()[::97].tolist(),
        "rome": partial(fit, edit.ROME(layer=4, objective=twenty), requests[:1]),
        "memit": partial(fit, edit.MEMIT(layers=(3, 4)), requests),
    }
    for line in sys.stdin:
        start = time.perf_counter()
        numbers = works[line.strip()]()
        print(json.dumps({"seconds": time.perf_counter() - start, "numbers": numbers}), flush=True)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    print(f"{machine()}; {arguments.model}; {here.name} against {arguments.other.name}")
    sides = [Side(here, arguments.model), Side(arguments.other.resolve(), arguments.model)]
    for work in arguments.works:
        for side in sides:
            side.do(work)  # warm up: key statistics are collected, caches filled
        turns = []
        for turn in range(arguments.turns):
            order = (0, 1) if turn % 2 == 0 else (1, 0)  # none is always the one that comes second
            found = {index: sides[index].do(work) for index in order}
            turns.append((found[0], found[1]))
        ratios = [own[0] / other[0] for own, other in turns]
        difference = max(abs(a - b) for own, other in turns for a, b in zip(own[1], other[1], strict=True))
        size = max(abs(value) for value in turns[0][1][1])
        print(
            f"{work:>8}: {median(own[0] for own, _ in turns):7.2f} s, before {median(o[0] for _, o in turns):7.2f} s, "
            f"ratio {median(ratios):.3f} (each turn: {', '.join(f'{ratio:.3f}' for ratio in ratios)}), largest "
            f"difference {difference:.1e} of {size:.2g}",
            flush=True,
        )
    for side in sides:
        side.close()


if __name__ == "__main__":
    main()
