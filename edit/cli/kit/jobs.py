"""Work over several facts, case by case, in a run folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformer_lens.model_bridge import TransformerBridge

from edit.cli.kit.facts import Case, Chosen
from locate.errors import FactError, LocateError, listed
from locate.facts.facts import Fact
from locate.facts.prompts import encode_fact
from locate.model.weights import model_fingerprint
from locate.store.folders import RunFolder
from locate.store.hashes import fingerprint

Result = TypeVar("Result")


def describe_run(
    command: str, model: str, bridge: TransformerBridge, facts: Sequence[Any] | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a run depends on; a folder with another description is another run's.

    Args:
        command: whose run it is.
        model: its name.
        bridge: the model itself.
        facts: of the run; None where they may change from one call to the next.
        options: of the command.
    """
    return {
        "command": command,
        "model": {"name": model, "fingerprint": model_fingerprint(bridge)},
        **({} if facts is None else {"facts": {"count": len(facts), "fingerprint": fingerprint(facts)}}),
        "options": options,
    }


def pending_cases(run: RunFolder, chosen: Chosen, retry_failed: bool, console: Console) -> list[Case]:
    """The cases that are still to be worked on, with a word on those that are not."""
    keys = [case.key for case in chosen.cases]
    pending = set(run.pending(keys, retry_failed=retry_failed))
    if settled := len(keys) - len(pending):
        console.print(f"Going on in {run.path}: {settled} of {len(keys)} facts are finished.", soft_wrap=True)
    return [case for case in chosen.cases if case.key in pending]


def group_alike(model: TransformerBridge, cases: Sequence[Case], size: int) -> list[list[Case]]:
    """Groups of at most ``size`` facts that can be computed together: prompts of one length, neighbours alike."""
    shapes = {case.key: _shape(model, case.fact) for case in cases}
    by_length: dict[int, list[Case]] = {}
    for case in sorted(cases, key=lambda case: shapes[case.key]):
        by_length.setdefault(shapes[case.key][0], []).append(case)
    return [alike[first : first + size] for alike in by_length.values() for first in range(0, len(alike), size)]


def work_off(
    run: RunFolder,
    groups: Sequence[Sequence[Case]],
    compute: Callable[[list[Fact]], Sequence[Result]],
    keep: Callable[[Case, Result], tuple[Path, dict[str, Any]]],
    *,
    label: str,
    console: Console,
) -> None:
    """Compute the cases, recording each once its result is on disk, or why it failed.

    Args:
        run: where they are recorded.
        groups: cases that are computed together; where a group fails, its cases are tried one by one.
        compute: from facts to their results.
        keep: writes a case's result, and gives the file and what was found.
        label: of the progress bar.
        console: that shows it.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    total = sum(map(len, groups))
    with Progress(*columns, console=console, redirect_stdout=False) as progress:
        bar = progress.add_task(label, total=total)
        for group in groups:
            for case, result in _attempt(group, compute):
                if isinstance(result, LocateError):
                    run.record_failure(case.key, result)
                else:
                    file, found = keep(case, result)
                    run.record(case.key, found, file=file)
                progress.advance(bar)


def load_results(run: RunFolder, chosen: Chosen, load: Callable[[Path], Result]) -> dict[str, Result]:
    """The results that there are, by key, in the order of the facts."""
    done = run.done
    return {case.key: load(run.path / str(done[case.key].file)) for case in chosen.cases if case.key in done}


def summarise(run: RunFolder, chosen: Chosen, description: dict[str, Any]) -> dict[str, Any]:
    """What every summary of a run says: what it is, what each case found, and which failed."""
    done, failed = run.done, run.failed
    return {
        **description,
        "done": sum(case.key in done for case in chosen.cases),
        "failed": [{"case": case.key, "error": failed[case.key].error} for case in chosen.cases if case.key in failed],
        "cases": [
            {"case": case.key, "file": done[case.key].file, **done[case.key].found}
            for case in chosen.cases
            if case.key in done
        ],
    }


def end(summary: dict[str, Any], console: Console) -> None:
    """Say which cases failed, and end with exit code 1 if any did."""
    if not (failed := summary["failed"]):
        return
    head = (
        f"Failed: {len(failed)} of {summary['facts']['count']} facts; the results of the others are kept. "
        "Once the cause is mended, the same command with --retry-failed tries them again."
    )
    errors = listed([f"{one['case']}: {one['error']}" for one in failed])
    console.print(f"{head}\n{errors}", style="red", soft_wrap=True)
    raise typer.Exit(1)


def _attempt(
    group: Sequence[Case], compute: Callable[[list[Fact]], Sequence[Result]]
) -> Iterator[tuple[Case, Result | LocateError]]:
    try:
        results = compute([case.fact for case in group])
    except LocateError as error:
        if len(group) == 1:
            yield group[0], error
            return
        for case in group:
            yield from _attempt([case], compute)
    else:
        yield from zip(group, results, strict=True)


def _shape(model: TransformerBridge, fact: Fact) -> tuple[int, tuple[int, int]]:
    try:
        prompt = encode_fact(model, fact)
    except FactError:
        return 0, (0, 0)  # what is wrong with it is said when it is computed
    return len(prompt.tokens), prompt.subject_span
