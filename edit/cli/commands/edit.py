"""``locate-edit edit``: change one fact or many, evaluate, and save the change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import edit
import locate
from edit.cli.kit.command import command
from edit.cli.kit.facts import OneFact
from edit.cli.kit.methods import MethodOptions
from edit.cli.kit.options import MANY, RUN, FactsOption, LimitOption, ModelOption, NewOption
from edit.cli.kit.output import Outcome
from locate.errors import DataError, FactError, listed
from locate.names import DEFAULT_MODEL

Form = Literal["facts", "counterfact", "zsre"]
Taught = Literal["alt", "answers"]

# Of a method that makes edits one after the other in any case: so many are kept at a time.
_KEPT = 10
_COLUMNS = ["model", "probe", "prompt", "generation", "tokens_new", "tokens_true", "probability_new",
            "probability_true", "success"]  # fmt: skip


@command
def run(
    which: OneFact,
    target_new: NewOption = None,
    facts: FactsOption = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="Of the file: this toolkit's facts, CounterFact, or MEND's zsRE.", rich_help_panel=MANY
        ),
    ] = "facts",
    taught: Annotated[
        Taught,
        typer.Option(
            help="Of zsRE: the record's alternative answer (MEND's edits), or its right one (those of ROME and MEMIT).",
            rich_help_panel=MANY,
        ),
    ] = "alt",
    limit: LimitOption = None,
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
    console: Console,
) -> Outcome:
    """Fit one edit or a file of them, save them as one weight update, and evaluate on the final model.

    Without any fact the first shipped one, of the Eiffel Tower, is edited. Several facts (--facts) are edited in
    batches, each with the earlier ones in place. The folder gets the batches, update.safetensors, evaluation.csv and
    summary.json.
    """
    if overwrite and export is None:
        raise DataError("--overwrite goes with --export: it replaces the model that is there.")
    if taught != "alt" and form != "zsre":
        raise DataError("--taught goes with --format zsre.")
    if facts is None and (limit is not None or batch_size is not None or form != "facts" or skip_answered):
        raise DataError(
            "--limit, --batch-size, --format and --skip-answered go with a file of several facts: give --facts FILE."
        )
    if facts is not None and (which.given or target_new):
        raise DataError("A single fact and several exclude each other: leave out --facts, or the fact.")
    method = how.make()

    from edit.changes.exporting import check_target
    from edit.cli.kit.editing import ManyEdits

    place = None if export is None else check_target(export, overwrite)
    if facts is None:
        request = _request(which.read(), target_new)
        file = _check_file(out or Path("runs/update.safetensors"))
        _check_apart(file, place)
        bridge = locate.load_model(model)
        return _edit_one(bridge, how.with_statistics(method, bridge), request, file, place)
    requests = _requests(facts, form, taught, limit)
    folder = out or Path(f"runs/edit-{facts.stem}-{how.method}")
    _check_apart(folder, place)
    bridge = locate.load_model(model)
    many = ManyEdits(
        model=bridge, method=how.with_statistics(method, bridge), folder=folder, export=place, batch_size=batch_size,
        kept=_KEPT, console=console,
    )  # fmt: skip
    return many.run(requests, how.method, model, skip_answered)


def _request(fact: locate.Fact, target_new: str | None) -> edit.EditRequest:
    if target_new is not None and not target_new.strip():
        raise DataError("--target-new is empty; give the new object's text.")
    if not (target_new or fact.target_new):
        raise DataError(f"{fact.text!r} needs a new object: give --target-new TEXT.")
    return edit.EditRequest(fact, target_new or "")


def _requests(facts: Path, form: Form, taught: Taught, limit: int | None) -> list[edit.EditRequest]:
    if form == "counterfact":
        return edit.load_counterfact(facts, limit=limit)
    if form == "zsre":
        return edit.load_zsre(facts, limit=limit, target_new=taught)
    requests, wrong = [], []
    for index, one in enumerate(locate.load_facts(facts)[:limit]):
        try:
            requests.append(edit.EditRequest(one))
        except FactError as error:
            wrong.append(f"record {index}: {error}")
    if wrong:
        raise DataError(f"{facts}: {len(wrong)} facts cannot be edited.\n{listed(wrong)}")
    return requests


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


def _edit_one(model: Any, method: Any, request: edit.EditRequest, file: Path, export: Path | None) -> Outcome:
    from edit.evaluation.asking import check_questions

    check_questions(model, [request])
    update = method.fit(model, [request])
    update.save(file)
    if export is not None:
        edit.export(model, update, export, overwrite=True)
    answers: Any = edit.evaluate(model, update, [request]).rows[_COLUMNS]
    rows: list[dict[str, Any]] = answers.to_dict(orient="records")
    told = {
        "request": request.describe(), "method": update.method, "update": str(file),
        "norm": {name: update.norm(name) for name in update.parameters}, "rows": rows,
    }  # fmt: skip
    table = Table("probe", "prompt", "answer", "new object's tokens", "P(first)", title=request.describe())
    for row in rows:
        if row["model"] == "edited":
            said = row["probe"], row["prompt"], row["generation"].strip(), row["tokens_new"]
            table.add_row(*said, f"{row['probability_new']:.3f}")
    return Outcome(value=told, shown=[table], results=[file])
