"""``locate-edit edit``: change one fact or many, evaluate, and save the change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import edit
import locate
from edit.cli.kit.command import command
from edit.cli.kit.methods import MethodOptions
from edit.cli.kit.models import load_model
from edit.cli.kit.options import MANY, RUN, ModelOption
from edit.cli.kit.output import Outcome
from edit.cli.kit.requests import Edits
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import COLUMNS, answers_table
from locate.errors import DataError
from locate.names import DEFAULT_MODEL

# Of a method that makes edits one after the other in any case: so many are kept at a time.
_KEPT = 10


@command
def run(
    which: Edits,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help=f"Edits that are made together, and kept together if the run is stopped; by default all ({_KEPT} by "
            "rome, which makes one after the other in any case).",
            min=1,
            rich_help_panel=MANY,
        ),
    ] = None,
    skip_answered: Annotated[
        bool,
        typer.Option(
            "--skip-answered",
            help="Leave out facts that the model answers with the new target already, instead of refusing them.",
            rich_help_panel=MANY,
        ),
    ] = False,
    *,
    how: MethodOptions,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(
            help="One fact: the update's file. Several: a folder, in which a run that was stopped goes on.",
            rich_help_panel=RUN,
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write the edited model to this folder.", rich_help_panel=RUN)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that --export finds there.", rich_help_panel=RUN)
    ] = False,
    console: Voice,
) -> Outcome:
    """Fit one edit or a file of them, save them as one weight update, and evaluate on the final model.

    Without any fact the first shipped one, of the Eiffel Tower, is edited. Several facts (--facts) are edited in
    batches, each with the earlier ones in place. The folder gets the batches, update.safetensors, evaluation.csv and
    summary.json. With --layers traced each fact is traced, and edited by itself where its own trace says: several give
    traces, updates, study.nc, edits.csv (a row each) and summary.json.
    """
    if overwrite and export is None:
        raise DataError("--overwrite goes with --export: it replaces the model that is there.")
    which.check({"--batch-size": batch_size is not None, "--skip-answered": skip_answered})
    facts = which.facts
    if how.traced and (batch_size is not None or skip_answered or (facts is not None and export is not None)):
        raise DataError(
            "--layers traced edits each fact by itself: leave out --batch-size, --skip-answered (what cannot be edited "
            "is a row with its reason) and, with several facts, --export."
        )
    method = how.make(traced=True)

    from edit.changes.exporting import check_target
    from edit.cli.kit.editing import ManyEdits
    from edit.cli.kit.traced import edit_traced

    place = None if export is None else check_target(export, overwrite)
    if facts is None:
        (request,) = which.requests()
        file = _check_file(out or Path("runs/update.safetensors"))
        _check_apart(file, place)
        bridge = load_model(model, console)
        return _edit_one(bridge, how.with_statistics(method, bridge), request, file, place, how.traced)
    requests = which.requests()
    folder = out or Path(f"runs/edit-{facts.stem}-{how.method}")
    _check_apart(folder, place)
    bridge = load_model(model, console)
    if how.traced:
        return edit_traced(bridge, how.with_statistics(method, bridge), requests, folder)
    many = ManyEdits(
        model=bridge, method=how.with_statistics(method, bridge), folder=folder, export=place, batch_size=batch_size,
        kept=_KEPT, console=console,
    )  # fmt: skip
    return many.run(requests, how.method, model, skip_answered)


def _check_file(out: Path) -> Path:
    """The update's file, which must be possible before it takes minutes to make."""
    if out.is_dir():
        raise DataError(f"--out {out} is a folder, and one update is a file. Give a name such as update.safetensors.")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _check_apart(out: Path, export: Path | None) -> None:
    own = out.expanduser().resolve()
    if export is not None and export.resolve() in (own, *own.parents):
        raise DataError(
            f"--out {out} lies in the folder of --export ({export}), which holds nothing but the edited model. Give "
            "two places apart from each other."
        )


def _edit_one(
    model: Any, method: Any, request: edit.EditRequest, file: Path, export: Path | None, traced: bool
) -> Outcome:
    from edit.evaluation.asking import check_questions
    from edit.studies.study import TRACE

    check_questions(model, [request])
    where = locate.causal_trace(model, request.fact, **TRACE) if traced else None
    update = method.fit(model, [request], layer=where)
    update.save(file)
    if export is not None:
        edit.export(model, update, export, overwrite=True)
    answers: Any = edit.evaluate(model, update, [request]).rows[COLUMNS]
    rows: list[dict[str, Any]] = answers.to_dict(orient="records")
    told = {
        "request": request.describe(), "method": update.method, "layers": update.info.get("layers"),
        "update": str(file),
        "norm": {name: update.norm(name) for name in update.parameters}, "rows": rows,
    }  # fmt: skip
    return Outcome(value=told, shown=[answers_table(rows, request.describe())], results=[file])
