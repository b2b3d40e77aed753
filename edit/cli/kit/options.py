"""The options that commands share, and how lists in them are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from edit.names import SAMPLED
from locate.errors import DataError
from locate.names import DEFAULT_BUDGET, DEFAULT_MODEL, Direction, PositionName, Precision

# The panels of --help.
ONE, MANY, METHOD, CORRUPTION, RUN = "One fact", "Several facts", "Method", "Corruption", "Run"

NewOption = Annotated[str | None, typer.Option("--target-new", help="The new object.", rich_help_panel=ONE)]
FactsOption = Annotated[
    Path | None,
    typer.Option("--facts", help="A facts file (JSON, JSONL or CSV), all of it.", rich_help_panel=MANY),
]
LimitOption = Annotated[int | None, typer.Option(help="Only the first facts.", min=1, rich_help_panel=MANY)]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="probability, log_probability, logit_diff, prob_greater, kl_divergence, rank, sequence_probability or "
        "sequence_log_probability; may be given several times.",
        rich_help_panel=METHOD,
    ),
]
DirectionOption = Annotated[
    Direction,
    typer.Option(
        help="Put clean states into the corrupted run, or corrupted ones into the clean run.", rich_help_panel=METHOD
    ),
]
PositionsOption = Annotated[
    str,
    typer.Option(
        help=f"Tokens to visit: {', '.join(get_args(PositionName))}, or indices such as 0-3,-1; several with "
        "commas between them.",
        rich_help_panel=METHOD,
    ),
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the patched runs' matrix products.", rich_help_panel=METHOD)
]
CorpusOption = Annotated[
    str,
    typer.Option(
        help=f"Text for key statistics: {SAMPLED} (the model writes it), a text file, or the name of a data set.",
        rich_help_panel=METHOD,
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        help="Keys to collect, in all shards; by default 20 times their dimension (40 for edits by alphaedit); 4 "
        "times for edits with --statistics quick.",
        min=1,
        rich_help_panel=METHOD,
    ),
]
ModelOption = Annotated[
    str, typer.Option(help=f"{DEFAULT_MODEL}, a Hugging Face name, or a folder.", rich_help_panel=RUN)
]
BudgetOption = Annotated[
    int, typer.Option(help="The most tokens in one pass; less needs less memory.", min=1, rich_help_panel=RUN)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUN)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """On what a job over facts runs, and where its results go."""

    model: ModelOption = DEFAULT_MODEL
    budget: BudgetOption = DEFAULT_BUDGET
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results: by default runs/ with the command's name and, for several facts, the file's. "
            "A run over several facts that was stopped goes on in its folder.",
            rich_help_panel=RUN,
        ),
    ] = None


def read_names(text: str, option: str) -> tuple[str, ...]:
    """Names with commas between them.

    Raises:
        DataError: there is none, or one twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) < len(names):
        raise DataError(f"{option}: give one or more names with commas between them, each once; found {text!r}.")
    return names


def read_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers and ranges of them, such as ``0-3,7``, with commas between them.

    Raises:
        DataError: something else.
    """
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if last < first:
            raise DataError(f"{option}: expected numbers or ranges such as 0-3,7; found {part.strip()!r} in {text!r}.")
        numbers += range(first, last + 1)
    return tuple(numbers)


def read_amount(given: float, option: str, of: str) -> int | float:
    """A count, or below 1 a share.

    Raises:
        DataError: nothing, or a broken number.
    """
    if 0 < given < 1:
        return given
    if given == 0 or given != int(given):
        raise DataError(f"{option}: give a whole number of {of} or a share between 0 and 1, found {given:g}.")
    return int(given)


def read_positions(text: str) -> str | Sequence[int | str]:
    """The name of a set of token positions, or indices, or several of them.

    Raises:
        DataError: something else.
    """
    names = get_args(PositionName)
    if text in names:
        return text
    found: list[str | int] = []
    for part in map(str.strip, text.split(",")):
        if part in names:
            found.append(part)
        elif re.match(r"-?\d", part):
            found += read_numbers(part, "--positions")
        else:
            raise DataError(f"--positions: expected {', '.join(names)}, or indices such as 0-3,-1; found {part!r}.")
    return tuple(found)
