"""``locate-edit doctor``: is everything in place?"""

from __future__ import annotations

import sys
from importlib.metadata import version

from rich.table import Table

import locate
from edit.cli.kit.command import command
from edit.cli.kit.output import Outcome


@command
def run() -> Outcome:
    """Check the installation: versions, device, threads, the default model and the shipped facts.

    Whether another program computes on the same cores is measured: then more threads are slower than one.
    """
    import torch

    from locate.model.bundled import bundled_folder, cache_folder
    from locate.model.threads import measure_threads

    found = {name: version(name) for name in ("locate-edit", "torch", "transformer-lens", "transformers")}
    found |= {
        "python": sys.version.split()[0], "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": measure_threads().describe(), "cache": str(cache_folder()),
        "facts": str(len(locate.bundled_facts())), "default model": str(bundled_folder()),
    }  # fmt: skip
    table = Table("what", "found")
    for name, value in found.items():
        table.add_row(name, value)
    return Outcome(value=found, results=[table])
