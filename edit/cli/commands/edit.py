"""``locate-edit edit``: change one fact or many, evaluate, and save the change."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.exporting import check_target
from edit.changes.exporting import export as export_model
from edit.cli.kit.facts import one_fact
from edit.cli.kit.jobs import describe_run
from edit.cli.kit.methods import (
    CorpusOption,
    LayersOption,
    MethodOption,
    StabiliseOption,
    StatisticsOption,
    TokensOption,
    ValuePrecisionOption,
    make_method,
    with_statistics,
)
from edit.cli.kit.options import (
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
from edit.cli.kit.output import print_json, readable_errors
from edit.datasets import load_counterfact, load_zsre
from edit.evaluation import Evaluation, evaluate
from edit.evaluation.asking import check_questions
from edit.methods import EditingMethod
from edit.requests.conflicts import check_conflicts
from edit.requests.requests import EditRequest
from edit.sessions.session import EditSession
from edit.statistics.corpus import SAMPLED
from edit.values.contexts import already_answered, build_contexts
from locate.errors import DataError, FactError, NumericsError, listed
from locate.facts.files import load_facts
from locate.model.bundled import DEFAULT_MODEL
from locate.model.loading import load_model
from locate.store.files import save_json, to_plain
from locate.store.folders import RunFolder

# Of a method that makes edits one after the other in any case: so many are kept at a time.
_KEPT = 10
_COLUMNS = ["model", "probe", "prompt", "generation", "probability_new", "probability_true", "success"]


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
    taught: Annotated[
        Literal["alt", "answers"],
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
    method: MethodOption = "rome",
    layers: LayersOption = None,
    stabilise: StabiliseOption = None,
    statistics: StatisticsOption = None,
    corpus: CorpusOption = SAMPLED,
    tokens: TokensOption = None,
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
    """Fit one edit or a file of them, save them as one weight update, and evaluate on the final model.

    Without any fact the first shipped one, of the Eiffel Tower, is edited. Several facts (--facts) are edited in
    batches, each with the earlier ones in place. The folder gets the batches, update.safetensors, evaluation.csv and
    summary.json.
    """
    with readable_errors() as console:
        own = make_method(
            method, layers=layers, stabilise=stabilise, given=bool(statistics), corpus=corpus, tokens=tokens,
            precision=precision, seed=seed,
        )  # fmt: skip
        if overwrite and export is None:
            raise DataError("--overwrite goes with --export: it replaces the model that is there.")
        if taught != "alt" and form != "zsre":
            raise DataError("--taught goes with --format zsre.")
        place = None if export is None else check_target(export, overwrite)
        if facts is None:
            if limit is not None or batch_size is not None or form != "facts" or skip_answered:
                raise DataError(
                    "--limit, --batch-size, --format and --skip-answered go with a file of several facts: give "
                    "--facts FILE."
                )
            if target_new is not None and not target_new.strip():
                raise DataError("--target-new is empty; give the new object's text.")
            chosen = one_fact(fact, prompt, subject, target)
            if not (target_new or chosen.target_new):
                raise DataError(f"{chosen.text!r} needs a new object: give --target-new TEXT.")
            request = EditRequest(chosen, target_new or "")
            file = _check_file(out or Path("runs/update.safetensors"))
            _check_apart(file, place)
            bridge = load_model(model)
            own = with_statistics(own, bridge, statistics)
            _edit_one(bridge, own, request, file, place, as_json, console)
            return
        if any((fact, prompt, subject, target, target_new)):
            raise DataError("A single fact and several exclude each other: leave out --facts, or the fact.")
        requests = _requests(facts, form, taught, limit)
        folder = out or Path(f"runs/edit-{facts.stem}-{method}")
        _check_apart(folder, place)
        bridge = load_model(model)
        own = with_statistics(own, bridge, statistics)
        # Before any edit, which a mistake that is found later would make useless.
        left_out: list[EditRequest] = []
        if skip_answered:
            requests, left_out = _without_answered(bridge, requests, console)
        check_conflicts(requests)
        own.check(bridge, requests)
        check_questions(bridge, requests)
        if batch_size is None and own.one_by_one:
            batch_size = _KEPT
        # The method's own options stand in the session's description. The facts do not: one that cannot be edited may
        # be left out of a run that it has stopped, and others may follow.
        description = describe_run("edit", model, bridge, None, {"method": method, "batch_size": batch_size})
        with RunFolder.open(folder, description):
            _edit_many(bridge, own, requests, left_out, folder, batch_size, description, place, as_json, console)


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


def _without_answered(
    bridge: TransformerBridge, requests: list[EditRequest], console: Console
) -> tuple[list[EditRequest], list[EditRequest]]:
    """What asks for something new, and what does not."""
    answered = already_answered(bridge, [build_contexts(bridge, request, [""]) for request in requests])
    pairs = list(zip(requests, answered, strict=True))
    kept, left_out = [one for one, known in pairs if not known], [one for one, known in pairs if known]
    if left_out:
        console.print(
            f"Left out {len(left_out)} of {len(requests)} facts, whose new targets the model answers already.",
            soft_wrap=True,
        )
    if not kept:
        raise FactError("The model answers all facts with their new targets already, so there is nothing to change.")
    return kept, left_out


def _requests(facts: Path, form: str, taught: str, limit: int | None) -> list[EditRequest]:
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
    return load_counterfact(facts, limit=limit) if form == "counterfact" else load_zsre(
        facts, limit=limit, target_new=taught
    )  # fmt: skip


def _edit_one(
    bridge: TransformerBridge, method: EditingMethod, request: EditRequest, out: Path, export: Path | None,
    as_json: bool, console: Console,
) -> None:  # fmt: skip
    check_questions(bridge, [request])
    update = method.fit(bridge, [request])
    update.save(out)
    if export is not None:
        export_model(bridge, update, export, overwrite=True)
    evaluation = evaluate(bridge, update, [request])
    rows: list[dict[str, Any]] = evaluation.rows[_COLUMNS].to_dict(orient="records")  # type: ignore[assignment]
    if as_json:
        told = {"request": request.describe(), "method": update.method, "update": str(out)}
        print_json(to_plain({**told, "norm": {name: update.norm(name) for name in update.parameters}, "rows": rows}))
        return
    table = Table("probe", "prompt", "answer", "P(first new token)", title=request.describe())
    for row in rows:
        if row["model"] != "edited":
            continue
        table.add_row(row["probe"], row["prompt"], row["generation"].strip(), f"{row['probability_new']:.3f}")
    console.print(table)
    print(out)


def _edit_many(
    bridge: TransformerBridge, method: EditingMethod, requests: Sequence[EditRequest],
    left_out: Sequence[EditRequest], folder: Path, batch_size: int | None, description: dict[str, Any],
    export: Path | None, as_json: bool, console: Console,
) -> None:  # fmt: skip
    file = folder / "update.safetensors"
    with EditSession(bridge, method, folder=folder / "session") as session:
        _check_asked(session, requests, folder, paraphrases=method.uses_paraphrases)
        if done := len(session.requests):
            console.print(f"Going on in {folder}: {done} of {len(requests)} edits are made.", soft_wrap=True)
        try:
            update = session.edit(requests, batch_size=batch_size)
        except NumericsError as error:
            if not session.requests:
                raise
            session.update.save(file)
            raise NumericsError(
                f"{error} The {len(session.requests)} edits before it stand, as {file}. Leave out what cannot be "
                "edited, and the same command goes on there."
            ) from error
    update.save(file)
    console.print(f"Evaluating {len(requests)} edits on the final model.", soft_wrap=True)
    evaluation = evaluate(bridge, update, requests)
    evaluation.save(folder / "evaluation.csv")
    summary = {
        "method": update.method, "edits": len(requests), "batch_size": batch_size or len(requests), **description,
        "left_out": [request.describe() for request in left_out],
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


def _check_asked(session: EditSession, requests: Sequence[EditRequest], folder: Path, *, paraphrases: bool) -> None:
    """Whether all edits of the folder are among the requests, of which the prompts that are only asked do not count."""
    asked = {request.change(paraphrases=paraphrases) for request in requests}
    if others := [one for one in session.requests if one.change(paraphrases=paraphrases) not in asked]:
        raise DataError(
            f"{folder} holds {len(others)} edit(s) that are not among these {len(requests)} facts. Give another "
            f"folder, or these facts as well:\n{listed([one.describe() for one in others])}"
        )


def _table(evaluation: Evaluation, title: str) -> Table:
    table = Table("metric", "edited [95% interval]", "unedited", title=title)
    summary: dict[str, dict[str, float]] = evaluation.summary().to_dict(orient="index")  # type: ignore[assignment]
    for name, row in summary.items():
        known = not math.isnan(row["edited low"])
        interval = f" [{row['edited low']:.1f}, {row['edited high']:.1f}]" if known else ""
        table.add_row(str(name), f"{row['edited']:.1f}{interval}", f"{row['unedited']:.1f}")
    return table
