"""The options that say what was edited, or is to be, and the requests that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

import edit
import locate
from edit.cli.kit.facts import OneFact
from edit.cli.kit.options import MANY, FactsOption, LimitOption, NewOption
from locate.errors import DataError, FactError, counted, listed

Form = Literal["facts", "counterfact", "zsre"]
Taught = Literal["alt", "answers"]


@dataclass(frozen=True, kw_only=True)
class Edits(OneFact):
    """The options that say which edits: of a single fact, or of a file of several."""

    target_new: NewOption = None
    facts: FactsOption = None
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="Of the file: this toolkit's facts, CounterFact, or MEND's zsRE.", rich_help_panel=MANY
        ),
    ] = "facts"
    taught: Annotated[
        Taught,
        typer.Option(
            help="Of zsRE: the record's alternative answer (MEND's edits), or its right one (those of ROME and MEMIT).",
            rich_help_panel=MANY,
        ),
    ] = "alt"
    limit: LimitOption = None

    def check(self, also: Mapping[str, bool] | None = None) -> None:
        """Whether the options go together.

        Args:
            also: the command's own options that go with a file, and whether they were given.

        Raises:
            DataError: what is of a file was given for a single fact, or both were asked for.
        """
        if self.taught != "alt" and self.form != "zsre":
            raise DataError("--taught goes with --format zsre.")
        of_files = {"--limit": self.limit is not None, "--format": self.form != "facts", **(also or {})}
        if self.facts is None and any(of_files.values()):
            *names, last = of_files
            raise DataError(f"{', '.join(names)} and {last} go with a file of several facts: give --facts FILE.")
        if self.facts is not None and (self.given or self.target_new):
            raise DataError("A single fact and several exclude each other: leave out --facts, or the fact.")

    def requests(self) -> list[edit.EditRequest]:
        """The edits, of a file all: its records must be good, for they make one change together, in their order.

        Raises:
            DataError: the file cannot be read, or a fact is bad or has no new object.
        """
        if self.facts is None:
            return [_one(self.read(), self.target_new)]
        if self.form == "counterfact":
            return edit.load_counterfact(self.facts, limit=self.limit)
        if self.form == "zsre":
            return edit.load_zsre(self.facts, limit=self.limit, target_new=self.taught)
        return _several(self.facts, self.limit)


def _one(fact: locate.Fact, target_new: str | None) -> edit.EditRequest:
    if target_new is not None and not target_new.strip():
        raise DataError("--target-new is empty; give the new object's text.")
    if not (target_new or fact.target_new):
        raise DataError(f"{fact.text!r} needs a new object: give --target-new TEXT.")
    return edit.EditRequest(fact, target_new or "")


def _several(facts: Path, limit: int | None) -> list[edit.EditRequest]:
    requests, wrong = [], []
    for index, one in enumerate(locate.load_facts(facts)[:limit], start=1):
        try:
            requests.append(edit.EditRequest(one))
        except FactError as error:
            wrong.append(f"record {index}, {error}")
    if wrong:
        raise DataError(f"{facts}: {counted(len(wrong), 'fact')} cannot be edited.\n{listed(wrong)}")
    return requests
