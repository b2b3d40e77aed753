"""The options that say what was edited, or is to be, and the requests that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import edit
import locate
from edit.cli.kit.options import MANY
from locate.errors import DataError, FactError, counted, listed

Form = Literal["facts", "counterfact", "zsre"]
Taught = Literal["alt", "answers"]

FormOption = Annotated[
    Form,
    typer.Option(
        "--format", help="Of the file: this toolkit's facts, CounterFact, or MEND's zsRE.", rich_help_panel=MANY
    ),
]
TaughtOption = Annotated[
    Taught,
    typer.Option(
        help="Of zsRE: the record's alternative answer (MEND's edits), or its right one (those of ROME and MEMIT).",
        rich_help_panel=MANY,
    ),
]


def one_request(fact: locate.Fact, target_new: str | None) -> edit.EditRequest:
    """The edit of a single fact.

    Raises:
        DataError: it has no new object.
    """
    if target_new is not None and not target_new.strip():
        raise DataError("--target-new is empty; give the new object's text.")
    if not (target_new or fact.target_new):
        raise DataError(f"{fact.text!r} needs a new object: give --target-new TEXT.")
    return edit.EditRequest(fact, target_new or "")


def requests_in(facts: Path, form: Form, taught: Taught, limit: int | None) -> list[edit.EditRequest]:
    """The edits of a file, of which all records must be good: they make one change together, in their order.

    Raises:
        DataError: the file cannot be read, or a record is bad or has no new object.
    """
    if form == "counterfact":
        return edit.load_counterfact(facts, limit=limit)
    if form == "zsre":
        return edit.load_zsre(facts, limit=limit, target_new=taught)
    requests, wrong = [], []
    for index, one in enumerate(locate.load_facts(facts)[:limit], start=1):
        try:
            requests.append(edit.EditRequest(one))
        except FactError as error:
            wrong.append(f"record {index}, {error}")
    if wrong:
        raise DataError(f"{facts}: {counted(len(wrong), 'fact')} cannot be edited.\n{listed(wrong)}")
    return requests
