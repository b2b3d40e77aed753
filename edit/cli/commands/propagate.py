"""``locate-edit propagate``: follow an edit from the changed weights to the answers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from rich.table import Table

import edit
import locate
from edit.cli.kit.command import command, command_line
from edit.cli.kit.facts import Facts
from edit.cli.kit.jobs import Job, Together
from edit.cli.kit.methods import MethodOptions
from edit.cli.kit.models import load_model
from edit.cli.kit.options import METHOD, Place, read_names
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import means_table
from edit.names import CONTENTS
from locate.errors import DataError, counted

_CHANGE = "Change"
_NONE = "none"


@dataclass(frozen=True, kw_only=True)
class ChangeOptions:
    """The options that give a change that there is already, in place of a method that makes one."""

    update: Annotated[
        Path | None,
        typer.Option(help="An update that `locate-edit edit` wrote, in place of a new edit.", rich_help_panel=_CHANGE),
    ] = None
    edited: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Another model of this one's build, such as a fine-tune of it: a name or a folder.",
            rich_help_panel=_CHANGE,
        ),
    ] = None
    probes: Annotated[
        Path | None,
        typer.Option(
            help="What to ask, in place of the fact's own probes: JSON, JSONL or CSV.", rich_help_panel=_CHANGE
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether there is a change already."""
        return self.update is not None or self.edited is not None


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """What is to be found out."""

    parts: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Of the report, with commas between them; all, or none beside totals and mediation.",
            rich_help_panel=METHOD,
        ),
    ] = "all"
    heads_by_position: Annotated[
        bool,
        typer.Option(
            "--heads-by-position", help="Exchange heads position by position too, which takes long.",
            rich_help_panel=METHOD,
        ),
    ] = False  # fmt: skip

    def wanted(self) -> str | tuple[str, ...]:
        """As ``edit.propagate`` takes them.

        Raises:
            FactError: there is no such part.
        """
        from edit.propagation.parts import wanted_parts

        if self.parts in ("all", _NONE):
            return "all" if self.parts == "all" else ()
        return wanted_parts(read_names(self.parts, "--parts"))


@command
def run(
    which: Facts,
    *,
    how: MethodOptions,
    change: ChangeOptions,
    asked: PartOptions,
    place: Place,
    console: Voice,
) -> Outcome:
    """Follow an edit from the changed weights to the answers: what it does to each probe, what carries it, and how.

    Without any fact the first shipped one, of the Eiffel Tower, is edited. The folder gets the report with all numbers
    (report/), tables (CSV), figures (PNG and PDF), and a page (report.html). Of several facts each is edited alone, and
    what their reports say is averaged with intervals.
    """
    if change.update is not None and change.edited is not None:
        raise DataError("--update and --edited exclude each other: a change is one or the other.")
    several = which.facts is not None or which.shipped
    if several and (change.given or change.probes is not None):
        raise DataError(
            "--update, --edited and --probes go with a single fact; leave them out, or --facts and --shipped."
        )
    parts = asked.wanted()
    method = None if change.given else how.make()
    chosen = which.choose(place.model, console)
    if wrong := [fact.text for fact in chosen.facts if fact.target_new is None]:
        raise DataError(
            f"{wrong[0]!r} needs a new object to edit to: give --target-new TEXT, or target_new in the file."
        )
    bridge = load_model(place.model, console)
    if method is not None:
        method = how.with_statistics(method, bridge)
    from edit.propagation.mediation import mediators

    job = _Job(
        model=bridge, console=console, method=method, change=change, parts=parts, budget=place.budget,
        kinds=(*mediators(bridge), *(["attn_head"] if asked.heads_by_position else [])),
        described={
            "method": None if method is None else method.described(bridge)["method"], "parts": list(parts),
            "heads_by_position": asked.heads_by_position,
        },
    )  # fmt: skip
    return job.run(chosen, which, model=place.model, out=place.out)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job(Job[Any]):
    name: ClassVar[str] = "propagate"
    file: ClassVar[str] = "report"
    folder: ClassVar[str] = "reports"

    method: Any
    change: ChangeOptions
    parts: str | Sequence[str]
    kinds: Sequence[str]
    budget: int

    @property
    def label(self) -> str:
        """Of the progress bar."""
        return "edits followed"

    def compute(self, facts: list[locate.Fact], *, progress: bool) -> list[edit.PropagationReport]:
        """An edit of each, and where it goes."""
        return [self._follow(edit.EditRequest(fact), progress) for fact in facts]

    def load(self, path: Path) -> edit.PropagationReport:
        """A report that was saved."""
        return edit.load_propagation_report(path.parent)

    def draw(self, result: edit.PropagationReport, folder: Path, name: str) -> None:
        """Tables, figures and the page."""
        from edit.report.propagation import write_propagation

        write_propagation(result, folder if name == self.file else folder / name, command=command_line())

    def found(self, result: edit.PropagationReport) -> dict[str, Any]:
        """The numbers of a report."""
        best: list[locate.Site] = []
        with suppress(locate.SiteError):  # where no MLP carries anything
            best = [result.best("mlp", probe=probe) for probe in result.flow.mediated[:1]]
        return {
            "method": result.flow.info["method"], "layers": list(result.flow.layers),
            "probes": result.totals.to_dict(orient="records"),
            "best_mlp": {"layer": best[0].layer, "position": best[0].position} if best else None,
            "summary": result.summary(), "left_out": dict(result.left_out),
        }  # fmt: skip

    def lines(self, result: edit.PropagationReport, found: dict[str, Any]) -> Iterator[Any]:
        """What reaches the probes, and the largest numbers of the parts."""
        edited = ", ".join(map(str, found["layers"])) or "outside of the blocks"
        yield f"{found['method']} at layer {edited}"
        if (best := found["best_mlp"]) is not None:
            yield f"the MLP that carries most by itself is in layer {best['layer']}, at token {best['position']}"
        table = Table("probe", "prompt", "before", "after", "logit o* − o", "rank of o*")
        for row in found["probes"]:
            ranks = f"{row['base_rank_new']} → {row['edited_rank_new']}"
            moved = f"{row['base']:.2f} → {row['edited']:.2f}"
            table.add_row(
                row["role"], row["text"], row["base_answer"].strip(), row["edited_answer"].strip(), moved, ranks
            )
        yield table
        for name, reason in found["left_out"].items():
            yield f"left out: {name}: {reason}"

    def together(self, results: list[edit.PropagationReport], folder: Path) -> Together:
        """The numbers of all, averaged."""
        from locate.plots import save_figure

        if not results:
            return Together(summary={})
        found = edit.compare_propagation({results[0].flow.info["method"]: results})
        found.save(folder / "comparison.nc")
        table = found.table().droplevel("method", axis=1)
        with (folder / "comparison.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["measure", *table.columns])
            writer.writerows([name, *row] for name, row in zip(table.index, table.values.tolist(), strict=True))
        save_figure(found.plot(), folder, "comparison")
        shown = means_table(table, counted(len(results), "edit"))
        return Together(summary={"measures": table.to_dict(orient="index")}, shown=[shown])

    def _follow(self, request: edit.EditRequest, progress: bool) -> edit.PropagationReport:
        probes: Any = request if self.change.probes is None else edit.load_probes(self.change.probes, request)
        return edit.propagate(
            self.model, self._changed(request, progress), probes, request=request, parts=self.parts, kinds=self.kinds,
            budget=self.budget, progress=progress,
        )  # fmt: skip

    def _changed(self, request: edit.EditRequest, progress: bool) -> Any:
        if self.change.edited is not None:
            return load_model(self.change.edited, self.console)
        if self.change.update is not None:
            return edit.load_update(self.change.update)
        return self.method.fit(self.model, [request], progress=progress)

    def _save(self, result: edit.PropagationReport, path: Path) -> Path:
        return result.save(path.with_suffix("")) / CONTENTS
