"""``locate-edit evaluate``: what a saved update did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import edit
from edit.cli.kit.command import command
from edit.cli.kit.models import load_model
from edit.cli.kit.options import METHOD, RUN, ModelOption
from edit.cli.kit.output import Outcome
from edit.cli.kit.requests import Edits
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import COLUMNS, answers_table, scores_table
from locate.errors import counted
from locate.names import DEFAULT_MODEL


@command
def run(
    which: Edits,
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
    which.check()
    requests = which.requests()
    change = edit.load_update(update)
    bridge = load_model(model, console)

    from locate.store.files import save_json, to_plain

    evaluation = edit.evaluate(bridge, change, requests, fluency=fluency, seed=seed)
    evaluation.save(out / "evaluation.csv")
    scores: Any = evaluation.summary().to_dict(orient="index")
    told: dict[str, Any] = {
        "update": str(update), "method": change.method, "edits": len(requests), "model": model, "evaluation": scores,
    }  # fmt: skip
    if which.facts is None:
        answers: Any = evaluation.rows[COLUMNS]
        told["rows"] = answers.to_dict(orient="records")
        table = answers_table(told["rows"], requests[0].describe())
    else:
        table = scores_table(scores, f"{counted(len(requests), 'edit')} by {change.method}")
    save_json(out / "summary.json", to_plain(told))
    return Outcome(value=told, shown=[table], results=[out / "evaluation.csv"])
