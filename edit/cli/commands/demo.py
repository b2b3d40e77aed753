"""``locate-edit demo``: the main job, from a fact to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import edit
import locate
from edit.cli.kit.command import command
from edit.cli.kit.facts import OneFact
from edit.cli.kit.models import load_model
from edit.cli.kit.options import RUN, NewOption
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from locate.names import DEFAULT_MODEL


@command
def run(
    which: OneFact,
    target_new: NewOption = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"{DEFAULT_MODEL} (the default), a Hugging Face name, or a folder.", rich_help_panel=RUN),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="The layer to edit; by default at 0.145 of the depth (5 of 32).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", rich_help_panel=RUN)] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML or JSON file with these settings.", rich_help_panel=RUN)
    ] = None,
    *,
    console: Voice,
) -> Outcome:
    """Locate a fact, change it, and watch the change travel to the answer; write figures and a report."""
    from edit.report.config import read_config
    from locate.facts.files import parse_fact

    settings = read_config(config)
    usual = parse_fact(settings.fact, "config, fact") if settings.fact else None
    request = edit.EditRequest(which.read(usual=usual), target_new or settings.target_new or "")
    folder = out or settings.out or Path("runs") / _slug(request.fact.subject, request.target_new)
    settings = settings.given(request.fact, target_new=request.target_new, model=model, layer=layer, out=folder)
    console.print(request.describe(), style="bold")
    result = edit.run_demo(
        load_model(settings.model, console), request, folder,
        method=edit.ROME(layer=settings.layer, corpus=settings.corpus),
        corruption=locate.GaussianNoise(scale=settings.noise, samples=settings.samples, seed=settings.seed),
        window=settings.window, config=settings, report=lambda line: console.print(f"  {line} …"),
    )  # fmt: skip
    summary = result.summary()
    changed = summary["edit"]
    table = Table("", "before", "after", title=summary["request"])
    table.add_row("answer", changed["generation_before"].strip(), changed["generation_after"].strip())
    probabilities = (f"{changed[f'probability_new_{when}']:.3f}" for when in ("before", "after"))
    table.add_row(f"P({request.target_new})", *probabilities)
    for row in summary["propagation"]:
        table.add_row(f"{row['role']}: {row['text']}", row["base_answer"].strip(), row["edited_answer"].strip())
    return Outcome(value=summary, shown=[table], results=[folder / "report.html"])


def _slug(*parts: str) -> str:
    kept = "-".join(parts).lower()
    return "-".join("".join(c if c.isalnum() else " " for c in kept).split())
