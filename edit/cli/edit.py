"""``locate-edit edit``: change one fact and save the change."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from edit.cli.facts import one_fact
from edit.cli.options import (
    RUN,
    FactOption,
    JsonOption,
    LayerOption,
    ModelOption,
    NewOption,
    PromptOption,
    SubjectOption,
    TargetOption,
)
from edit.cli.output import print_json, readable_errors
from edit.evaluation import evaluate
from edit.exporting import export as export_model
from edit.methods import ROME
from edit.requests import EditRequest
from locate.bundled import DEFAULT_MODEL
from locate.loading import load_model
from locate.storage import to_plain

_COLUMNS = ["probe", "prompt", "generation", "probability_new", "probability_true", "success"]


def run(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    target_new: NewOption = None,
    model: ModelOption = DEFAULT_MODEL,
    layer: LayerOption = None,
    out: Annotated[Path, typer.Option(help="File for the update.", rich_help_panel=RUN)] = Path(
        "runs/update.safetensors"
    ),
    export: Annotated[
        Path | None, typer.Option(help="Also write the edited model to this folder.", rich_help_panel=RUN)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit one rank-one edit, evaluate it, and save it as a weight update."""
    with readable_errors() as console:
        request = EditRequest(one_fact(fact, prompt, subject, target), target_new or "")
        bridge = load_model(model)
        update = ROME(layer=layer).fit(bridge, [request])
        evaluation = evaluate(bridge, update, [request])
        out.parent.mkdir(parents=True, exist_ok=True)
        update.save(out)
        if export is not None:
            export_model(bridge, update, export)
        own: Any = evaluation.rows[evaluation.rows["model"] == "edited"]
        rows = own[_COLUMNS].to_dict(orient="records")
        if as_json:
            print_json(to_plain(rows))
            return
        table = Table("probe", "prompt", "answer", f"P({request.target_new})", title=request.describe())
        for row in rows:
            table.add_row(row["probe"], row["prompt"], row["generation"].strip(), f"{row['probability_new']:.3f}")
        console.print(table)
        print(out)
