"""The model that a command is about, on as many threads as this machine has time for."""

from __future__ import annotations

import os
from typing import Any

import locate
from edit.cli.kit.speaking import Voice

# Where somebody has said how many threads there shall be, as many there are.
_SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def load_model(name: str, console: Voice) -> Any:
    """A model to work on, and the number of threads that is fit for it now."""
    console.doing = f"loading {name}"
    model = locate.load_model(name)
    fit_threads(console)
    console.doing = "computing"
    return model


def fit_threads(console: Voice) -> None:
    """Compute with one thread while another program computes on the same cores, and say so; unless it was chosen.

    Threads of two programs on the same cores wait for each other, so that each takes many times as long as with one.
    """
    if any(name in os.environ for name in _SAID):
        return

    import torch

    from locate.model.threads import measure_threads

    found = measure_threads()
    if found.crowded:
        torch.set_num_threads(1)
        console.print(
            f"Note: {found.describe()} This command computes with 1 thread for now; with OMP_NUM_THREADS={found.n} it "
            f"keeps all {found.n}.",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
