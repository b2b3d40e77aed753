"""Long jobs over facts: one fact, or many, case by case, in a folder where a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.table import Table

import locate
from edit.cli.kit.facts import Case, Chosen, Facts, mend
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from locate.errors import LocateError, counted, listed

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class Together:
    """What the results of many facts say together.

    Attributes:
        summary: what is added to the run's summary.
        shown: tables of it.
    """

    summary: dict[str, Any]
    shown: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Job(Generic[Result]):
    """An analysis of facts, one at a time or a few together, each with a result of its own.

    A command says what is computed, how a result is told and drawn, and what many say together. What it runs on
    and in which folder, what is done already, what failed and the exit code are the same for all.

    Attributes:
        model: a raw-mode bridge.
        described: the options that results depend on, as plain data.
        console: for what is said on the way.
    """

    # The command; the file of a single result, and the folder of many.
    name: ClassVar[str]
    file: ClassVar[str]
    folder: ClassVar[str]

    model: Any
    described: dict[str, Any] = field(default_factory=dict)
    console: Voice

    @property
    def label(self) -> str:
        """Of the progress bar."""
        raise NotImplementedError

    def compute(self, facts: list[locate.Fact], *, progress: bool) -> Sequence[Result]:
        """One result for each of some facts."""
        raise NotImplementedError

    def load(self, path: Path) -> Result:
        """A result that was saved."""
        raise NotImplementedError

    def draw(self, result: Result, folder: Path, name: str) -> None:
        """Write a result's figures."""
        raise NotImplementedError

    def found(self, result: Result) -> dict[str, Any]:
        """What a result says, in short."""
        raise NotImplementedError

    def lines(self, result: Result, found: dict[str, Any]) -> Iterator[str]:
        """The same for people."""
        raise NotImplementedError

    def together(self, results: list[Result], folder: Path) -> Together:
        """What the results of many facts say together; figures and tables of it go to the folder."""
        raise NotImplementedError

    def groups(self, facts: list[locate.Fact]) -> list[list[int]]:
        """Indices of facts that are computed together; by default each by itself."""
        return [[index] for index in range(len(facts))]

    def depends(self, fact: locate.Fact) -> Any:
        """What a fact's result depends on beside itself and the options, such as facts of the same file; plain data."""

    def run(self, chosen: Chosen, options: Facts, *, model: str, out: Path | None) -> Outcome:
        """Do it.

        Args:
            chosen: the facts.
            options: what becomes of many.
            model: its name.
            out: the folder, where one was given.

        Raises:
            LocateError: the single fact failed, or the folder is another run's.
        """
        if chosen.name is None:
            return self._one(chosen.cases[0].fact, out or Path("runs") / self.name)
        description = describe_run(self.name, model, self.model, self.described)
        return self._many(chosen, options, description, out or Path(f"runs/{self.name}-{chosen.name}"))

    def _one(self, fact: locate.Fact, out: Path) -> Outcome:
        (result,) = self.compute([fact], progress=True)
        path = self._save(result, out / f"{self.file}.nc")
        self.console.doing = "drawing"
        self.draw(result, out, self.file)
        found = self._found(result)
        return Outcome(value=found, shown=list(self.lines(result, found)), results=[path])

    def _many(self, chosen: Chosen, options: Facts, description: dict[str, Any], out: Path) -> Outcome:
        from locate.store.files import save_json, to_plain
        from locate.store.folders import RunFolder

        with RunFolder.open(out, description) as run:
            keys = {case.key: self._fingerprint(case.fact) for case in chosen.cases}
            pending = set(run.pending(keys, retry_failed=options.retry_failed))
            self._tell_of_earlier(run, keys, pending)
            self.console.kept = f"What is finished is kept in {run.path}, where the same command goes on."
            self._work_off(run, [case for case in chosen.cases if case.key in pending], keys)
            self.console.doing = "drawing and adding up"
            done, failed = run.done, run.failed
            results = {key: self.load(run.path / str(done[key].file)) for key in keys if key in done}
            if options.figures or len(keys) == 1:
                for key, result in results.items():
                    self.draw(result, run.path / self.folder, key)
            together = self.together(list(results.values()), run.path)
            summary = to_plain({
                **description,
                "facts": {"count": len(keys)},
                "done": len(results),
                "bad_records": list(chosen.bad),
                "failed": [{"case": key, "error": failed[key].error} for key in keys if key in failed],
                "cases": [{"case": key, "file": done[key].file, **done[key].found} for key in results],
                **together.summary,
            })  # fmt: skip
            file = save_json(run.path / "summary.json", summary)
        failures = "\n".join(filter(None, (_failure(summary), mend(chosen.bad)))) or None
        return Outcome(value=summary, shown=together.shown, results=[file], failed=failures)

    def _fingerprint(self, fact: locate.Fact) -> str:
        from locate.store.hashes import fingerprint

        return fingerprint([fact], self.depends(fact))

    def _tell_of_earlier(self, run: Any, keys: Mapping[str, str], pending: Collection[str]) -> None:
        """What there is of earlier runs in the folder, and what of it does not count any more."""
        changed = run.changed(keys)
        if settled := len(keys) - len(pending):
            since = f", {len(changed)} changed since" if changed else ""
            self.console.print(
                f"Going on in {run.path}: {settled} of {counted(len(keys), 'fact')} finished{since}.", soft_wrap=True
            )
        elif changed:
            self.console.print(f"{run.path}: {counted(len(changed), 'fact')} changed since.", soft_wrap=True)
        if dropped := run.dropped(keys):
            others = f"{counted(len(dropped), 'fact')} that this command does not name"
            self.console.print(
                f"{run.path} has results of {others}, which stay there and do not count:\n{listed(dropped)}",
                soft_wrap=True,
            )

    def _work_off(self, run: Any, cases: Sequence[Case], of: Mapping[str, str]) -> None:
        """Compute the cases, recording each once its result is on disk, or why it failed."""
        from tqdm import tqdm

        groups = [[cases[index] for index in group] for group in self.groups([case.fact for case in cases])]
        with tqdm(total=len(cases), desc=self.label, unit="fact", disable=not cases) as bar:
            for group in groups:
                for case, result in self._attempt(group):
                    if isinstance(result, LocateError):
                        run.record_failure(case.key, result, of=of[case.key])
                    else:
                        file = self._save(result, run.path / self.folder / f"{case.key}.nc")
                        run.record(case.key, self._found(result), file=file, of=of[case.key])
                    bar.update()

    def _attempt(self, group: Sequence[Case]) -> Iterator[tuple[Case, Any]]:
        """Each case with its result, or its error: where several fail together, they are tried one by one."""
        try:
            results = self.compute([case.fact for case in group], progress=False)
        except LocateError as error:
            if len(group) == 1:
                yield group[0], error
                return
            for case in group:
                yield from self._attempt([case])
        else:
            yield from zip(group, results, strict=True)

    def _save(self, result: Any, path: Path) -> Path:
        return result.save(path)

    def _found(self, result: Any) -> dict[str, Any]:
        from locate.store.files import to_plain

        return to_plain(self.found(result))


def describe_run(command: str, model: str, bridge: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that all cases of a run depend on; a folder with another description is another run's.

    Args:
        command: whose run it is.
        model: its name.
        bridge: the model itself.
        options: of the command.
    """
    from locate.model.weights import model_fingerprint

    return {
        "command": command,
        "model": {"name": model, "fingerprint": model_fingerprint(bridge)},
        "options": options,
    }


def _failure(summary: dict[str, Any]) -> str | None:
    """Which cases failed, and what to do."""
    if not (failed := summary["failed"]):
        return None
    errors = listed([f"{one['case']}: {one['error']}" for one in failed])
    return (
        f"Failed: {len(failed)} of {counted(summary['facts']['count'], 'fact')}; the results of the others are kept. "
        "What is mended in the file is tried again by the same command; where the cause lay elsewhere, add "
        f"--retry-failed.\n{errors}"
    )
