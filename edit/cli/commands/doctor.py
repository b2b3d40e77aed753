"""``locate-edit doctor``: is everything in place?"""

import sys
from importlib.metadata import version

import torch
from rich.table import Table

from edit.cli.kit.options import JsonOption
from edit.cli.kit.output import make_console, print_json, readable_errors
from locate.facts.files import bundled_facts
from locate.model.bundled import bundled_folder, cache_folder


def run(as_json: JsonOption = False) -> None:
    """Check the installation: versions, device, the default model and the shipped facts."""
    with readable_errors():
        found = {name: version(name) for name in ("locate-edit", "torch", "transformer-lens", "transformers")}
        found |= {
            "python": sys.version.split()[0], "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": str(torch.get_num_threads()), "cache": str(cache_folder()), "facts": str(len(bundled_facts())),
            "default model": str(bundled_folder()),
        }  # fmt: skip
        if as_json:
            print_json(found)
            return
        table = Table("what", "found")
        for name, value in found.items():
            table.add_row(name, value)
        make_console(stderr=False).print(table)
