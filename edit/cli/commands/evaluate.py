"""``locate-edit evaluate``: what a saved update did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import edit
from edit.cli.kit.command import command
from edit.cli.kit.facts import OneFact
from edit.cli.kit.models import load_model
from edit.cli.kit.options import METHOD, RUN, FactsOption, LimitOption, ModelOption, NewOption
from edit.cli.kit.output import Outcome
from edit.cli.kit.requests import FormOption, TaughtOption, one_request, requests_in
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import COLUMNS, answers_table, scores_table
from locate.errors import DataError, counted
from locate.names import DEFAULT_MODEL


@command
def run(
    which: OneFact,
    target_new: NewOption = None,
    facts: FactsOption = None,
    form: FormOption = "facts",
    taught: TaughtOption = "alt",
    limit: LimitOption = None,
    *,
    update: Annotated[
        Path, typer.Option(help="An update that `locate-edit edit` wrote.", rich_help_panel=METHOD, show_default=False)
    ],
    fluency: Annotated[
        bool,
        typer.Option("--fluency", help="Let it write long texts as well, which takes long.", rich_help_panel=METHOD),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of these texts.", rich_help_panel=METHOD)] = 0,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the results.", rich_help_panel=RUN)] = Path("runs/evaluate"),
    console: Voice,
) -> Outcome:
    """Ask the model about edited facts, with a saved update and without: the facts, paraphrases, neighbours, unrelated.

    The facts are those that were edited, or others: one (by default the first shipped one, of the Eiffel Tower), or a
    file of them (--facts). The folder gets evaluation.csv (a row for every prompt) and summary.json.
    """
    if facts is None and (limit is not None or form != "facts"):
        raise DataError("--limit and --format go with a file of several facts: give --facts FILE.")
    if taught != "alt" and form != "zsre":
        raise DataError("--taught goes with --format zsre.")
    if facts is not None and (which.given or target_new):
        raise DataError("A single fact and several exclude each other: leave out --facts, or the fact.")
    requests = [one_request(which.read(), target_new)] if facts is None else requests_in(facts, form, taught, limit)
    change = edit.load_update(update)
    bridge = load_model(model, console)

    from locate.store.files import save_json, to_plain

    evaluation = edit.evaluate(bridge, change, requests, fluency=fluency, seed=seed)
    evaluation.save(out / "evaluation.csv")
    scores: Any = evaluation.summary().to_dict(orient="index")
    told: dict[str, Any] = {
        "update": str(update), "method": change.method, "edits": len(requests), "model": model, "evaluation": scores,
    }  # fmt: skip
    if facts is None:
        answers: Any = evaluation.rows[COLUMNS]
        told["rows"] = answers.to_dict(orient="records")
        table = answers_table(told["rows"], requests[0].describe())
    else:
        table = scores_table(scores, f"{counted(len(requests), 'edit')} by {change.method}")
    save_json(out / "summary.json", to_plain(told))
    return Outcome(value=told, shown=[table], results=[out / "evaluation.csv"])
