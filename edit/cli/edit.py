"""``locate-edit edit``: change one fact or many, evaluate, and save the change."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from transformer_lens.model_bridge import TransformerBridge

from edit.benchmarks import load_counterfact, load_zsre
from edit.cli.facts import one_fact
from edit.cli.jobs import describe_run
from edit.cli.methods import (
    CorpusOption,
    LayersOption,
    MethodOption,
    StabiliseOption,
    ValuePrecisionOption,
    make_method,
)
from edit.cli.options import (
    MANY,
    METHOD,
    RUN,
    FactOption,
    FactsOption,
    JsonOption,
    LimitOption,
    ModelOption,
    NewOption,
    PromptOption,
    SubjectOption,
    TargetOption,
)
from edit.cli.output import print_json, readable_errors
from edit.corpus import SAMPLED
from edit.evaluation import Evaluation, evaluate
from edit.exporting import check_target
from edit.exporting import export as export_model
from edit.methods import KN, LocateThenEdit
from edit.requests import EditRequest
from edit.session import EditSession
from locate.bundled import DEFAULT_MODEL
from locate.errors import DataError, FactError, listed
from locate.facts import load_facts
from locate.loading import load_model
from locate.runs import RunFolder
from locate.storage import save_json, to_plain

_COLUMNS = ["probe", "prompt", "generation", "probability_new", "probability_true", "success"]


def run(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    target_new: NewOption = None,
    facts: FactsOption = None,
    form: Annotated[
        Literal["facts", "counterfact", "zsre"],
        typer.Option(
            "--format", help="Of the file: this toolkit's facts, CounterFact, or MEND's zsRE.", rich_help_panel=MANY
        ),
    ] = "facts",
    limit: LimitOption = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Edits that are made together; by default all.", min=1, rich_help_panel=MANY)
    ] = None,
    method: MethodOption = "rome",
    layers: LayersOption = None,
    stabilise: StabiliseOption = None,
    corpus: CorpusOption = SAMPLED,
    precision: ValuePrecisionOption = "model",
    seed: Annotated[int, typer.Option(help="Of sampled prefixes and text.", rich_help_panel=METHOD)] = 0,
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
    as_json: JsonOption = False,
) -> None:
    """Fit one edit or a file of them, evaluate on the final model, and save them as one weight update.

    Several facts (--facts) are edited in batches, each with the earlier ones in place. The folder gets the batches,
    update.safetensors, evaluation.csv and summary.json.
    """
    with readable_errors() as console:
        own = make_method(method, layers=layers, stabilise=stabilise, corpus=corpus, precision=precision, seed=seed)
        place = None if export is None else check_target(export, overwrite)
        if facts is None:
            if limit is not None or batch_size is not None or form != "facts":
                raise DataError(
                    "--limit, --batch-size and --format go with a file of several facts: give --facts FILE."
                )
            request = EditRequest(one_fact(fact, prompt, subject, target), target_new or "")
            _edit_one(load_model(model), own, request, out or Path("runs/update.safetensors"), place, as_json, console)
            return
        if any((fact, prompt, subject, target, target_new)):
            raise DataError("A single fact and several exclude each other: leave out --facts, or the fact.")
        requests = _requests(facts, form, limit)
        folder = out or Path(f"runs/edit-{facts.stem}-{method}")
        bridge = load_model(model)
        # The method's own options stand in the session's description.
        description = describe_run("edit", model, bridge, requests, {"method": method, "batch_size": batch_size})
        with RunFolder.open(folder, description):
            _edit_many(bridge, own, requests, folder, batch_size, place, as_json, console)


def _requests(facts: Path, form: str, limit: int | None) -> list[EditRequest]:
    if form == "facts":
        requests, wrong = [], []
        for index, one in enumerate(load_facts(facts)[:limit]):
            try:
                requests.append(EditRequest(one))
            except FactError as error:
                wrong.append(f"record {index}: {error}")
        if wrong:
            raise DataError(f"{facts}: {len(wrong)} facts cannot be edited.\n{listed(wrong)}")
        return requests
    return (load_counterfact if form == "counterfact" else load_zsre)(facts, limit=limit)


def _edit_one(
    bridge: TransformerBridge, method: LocateThenEdit | KN, request: EditRequest, out: Path, export: Path | None,
    as_json: bool, console: Console,
) -> None:  # fmt: skip
    update = method.fit(bridge, [request])
    evaluation = evaluate(bridge, update, [request])
    update.save(out)
    if export is not None:
        export_model(bridge, update, export, overwrite=True)
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


def _edit_many(
    bridge: TransformerBridge, method: LocateThenEdit | KN, requests: Sequence[EditRequest], folder: Path,
    batch_size: int | None, export: Path | None, as_json: bool, console: Console,
) -> None:  # fmt: skip
    with EditSession(bridge, method, folder=folder / "session") as session:
        if done := len(session.requests):
            console.print(f"Going on in {folder}: {done} of {len(requests)} edits are made.", soft_wrap=True)
        update = session.edit(requests, batch_size=batch_size)
    console.print(f"Evaluating {len(requests)} edits on the final model.", soft_wrap=True)
    evaluation = evaluate(bridge, update, requests)
    update.save(folder / "update.safetensors")
    evaluation.save(folder / "evaluation.csv")
    summary = {
        "method": update.method, "edits": len(requests), "batch_size": batch_size or len(requests),
        "parameters": update.parameters, "norm": {name: update.norm(name) for name in update.parameters},
        "evaluation": evaluation.summary().to_dict(orient="index"),
    }  # fmt: skip
    save_json(folder / "summary.json", to_plain(summary))
    if export is not None:
        export_model(bridge, update, export, overwrite=True)
    if as_json:
        print_json(to_plain(summary))
        return
    console.print(_table(evaluation, f"{len(requests)} edits by {update.method}, on the final model"))
    print(folder / "summary.json")


def _table(evaluation: Evaluation, title: str) -> Table:
    table = Table("metric", "edited [95% interval]", "unedited", title=title)
    summary: dict[str, dict[str, float]] = evaluation.summary().to_dict(orient="index")  # type: ignore[assignment]
    for name, row in summary.items():
        known = not math.isnan(row["edited low"])
        interval = f" [{row['edited low']:.1f}, {row['edited high']:.1f}]" if known else ""
        table.add_row(str(name), f"{row['edited']:.1f}{interval}", f"{row['unedited']:.1f}")
    return table
