"""``locate-edit location-report``: where changes are, what they say, and what locating tells, on many facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import edit
import locate
from edit.cli.kit.command import command, command_line
from edit.cli.kit.corruptions import CorruptionOptions
from edit.cli.kit.models import load_model
from edit.cli.kit.options import (
    MANY,
    METHOD,
    RUN,
    CorpusOption,
    FactsOption,
    ModelOption,
    TokensOption,
    read_names,
    read_numbers,
)
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.names import SAMPLED
from locate.errors import DataError, counted, listed, suggest
from locate.names import DEFAULT_MODEL

_FACTS = 30


@command
def run(
    facts: FactsOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help=f"So many facts, spread over the file; {_FACTS} of the shipped ones that the model knows by default.",
            min=1,
            rich_help_panel=MANY,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Of rome, memit, alphaedit and fine-tuning (of ROME's matrix); all by default. The first is tried at "
            "every layer.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="That ROME and fine-tuning edit; 0.145 of the depth.", rich_help_panel=METHOD)
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Where edits are tried, such as 0-29 or 0,3,6; all by default, of which each takes as long as the "
            "edits themselves.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    most: Annotated[
        int,
        typer.Option(help="Layers that localisation results are compared by, at most.", min=1, rich_help_panel=METHOD),
    ] = 10,
    steps: Annotated[int | None, typer.Option(help="Of the neurons' integral.", min=1, rich_help_panel=METHOD)] = None,
    window: Annotated[
        int | None, typer.Option(help="Layers in a traced window; 10 by default.", min=1, rich_help_panel=METHOD)
    ] = None,
    corpus: CorpusOption = SAMPLED,
    tokens: TokensOption = None,
    *,
    corrupted: CorruptionOptions,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results, in which a run that was stopped goes on.", rich_help_panel=RUN),
    ] = None,
    console: Voice,
) -> Outcome:
    """Analyse where a model keeps facts and where edits of them work, and say whether published findings reappear.

    Each fact is edited alone by each method: on how many columns the change is, and what these say before and after.
    Tracing of paraphrases and of the hops of chains is compared, and edits at every layer are set beside what each way
    of locating says of the layer. The folder gets tables, figures, report.md and report.html.
    """
    known = _chosen(facts, limit, model)
    corruption = corrupted.make("gaussian", known)
    requests = _requests(known, facts)

    from edit.report.location import location_report, usual_methods

    bridge = load_model(model, console)
    corruption = corrupted.over_facts(corruption, bridge, known)
    usual: dict[str, Any] = {
        name: replace(method, corpus=corpus, statistics_tokens=tokens) if method.uses_statistics else method
        for name, method in usual_methods(bridge, layer).items()
    }
    folder = out or Path(f"runs/location-report-{'shipped' if facts is None else facts.stem}")
    console.kept = f"What is finished is kept in {folder}, where the same command goes on."
    made = location_report(
        bridge, requests, folder, methods=_wanted(usual, methods), most=min(most, bridge.cfg.n_layers - 1), steps=steps,
        layers=None if layers is None else read_numbers(layers, "--layers"), corruption=corruption, window=window,
        command=command_line(), report=lambda line: console.print(f"  {line} …", soft_wrap=True),
    )  # fmt: skip
    table = Table("looked at", "found", "published", title=counted(len(requests), "fact"))
    for one in made.findings:
        table.add_row(one.title, f"{one.text} {one.verdict}", one.published)
    told = {
        "facts": len(requests), "methods": list(made.readouts), "best": made.study.best().layer,
        "findings": [{"title": one.title, "reappears": one.reappears, "text": one.text} for one in made.findings],
        "left_out": dict(made.left_out),
    }  # fmt: skip
    return Outcome(value=told, shown=[table], results=[folder / "report.html", folder / "report.md"])


def _chosen(facts: Path | None, limit: int | None, model: str) -> list[locate.Fact]:
    """Facts of the file, or shipped ones, as far apart as they can be."""
    from locate.facts.files import known_facts, spread

    if facts is None:
        return spread(known_facts(model), limit or _FACTS)
    everything = locate.load_facts(facts)
    return spread(everything, limit or len(everything))


def _requests(facts: list[locate.Fact], file: Path | None) -> list[edit.EditRequest]:
    if wrong := [fact.text for fact in facts if fact.target_new is None]:
        without = counted(len(wrong), "fact")
        raise DataError(f"{file}: {without} without a new object (target_new) to edit to.\n{listed(wrong)}")
    return [edit.EditRequest(fact) for fact in facts]


def _wanted(usual: dict[str, Any], names: str | None) -> dict[str, Any]:
    if names is None:
        return usual
    known = {name.casefold(): name for name in usual}
    given = read_names(names.casefold(), "--methods")
    for name in given:
        if name not in known:
            raise DataError(f"--methods: there is no {name!r}. {suggest(name, known)}")
    return {known[name]: usual[known[name]] for name in given}
