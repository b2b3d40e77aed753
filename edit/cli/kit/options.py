"""The options that commands share, and how lists in them are read."""

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from locate.errors import DataError
from locate.facts.prompts import Positions
from locate.names import DEFAULT_MODEL, Direction, PositionName, Precision

CorruptionName = Literal["gaussian", "uniform", "zero", "mean", "resample", "multivariate", "swap"]

# The panels of --help.
ONE, MANY, METHOD, CORRUPTION, RUN = "One fact", "Several facts", "Method", "Corruption", "Run"

FactOption = Annotated[
    str | None,
    typer.Option(
        help="A facts file (its first fact), a JSON object, or the id of a shipped fact.", rich_help_panel=ONE
    ),
]
PromptOption = Annotated[
    str | None, typer.Option(help="Prompt with {} for the subject, or written out.", rich_help_panel=ONE)
]
SubjectOption = Annotated[str | None, typer.Option(help="The subject.", rich_help_panel=ONE)]
TargetOption = Annotated[
    str | None, typer.Option(help="The true object, without a leading space.", rich_help_panel=ONE)
]
NewOption = Annotated[str | None, typer.Option("--target-new", help="The new object.", rich_help_panel=ONE)]
OtherOption = Annotated[
    str | None,
    typer.Option("--target-new", help="Another object, for the logit difference.", rich_help_panel=ONE),
]
FactsOption = Annotated[
    Path | None,
    typer.Option("--facts", help="A facts file (JSON, JSONL or CSV), all of it.", rich_help_panel=MANY),
]
ShippedOption = Annotated[
    bool,
    typer.Option("--shipped", help="The shipped facts, as far as the model knows them.", rich_help_panel=MANY),
]
RelationOption = Annotated[str | None, typer.Option(help="Only facts of this relation.", rich_help_panel=MANY)]
LimitOption = Annotated[int | None, typer.Option(help="Only the first facts.", min=1, rich_help_panel=MANY)]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try facts again that failed before.", rich_help_panel=MANY)
]
FiguresOption = Annotated[
    bool, typer.Option("--figures", help="A figure of every fact; of a single one always.", rich_help_panel=MANY)
]
CorruptionOption = Annotated[
    CorruptionName | None,
    typer.Option(
        help="What stands in the subject's place: noise on its embeddings (gaussian, uniform, or multivariate, as the "
        "facts' own subjects spread), other embeddings (zero, mean, resample), or another subject (swap).",
        rich_help_panel=CORRUPTION,
    ),
]
ScaleOption = Annotated[
    float | None,
    typer.Option(
        "--scale", "--noise", help="Noise, in standard deviations of the embeddings (3; multivariate 1).",
        rich_help_panel=CORRUPTION,
    ),
]  # fmt: skip
StdOption = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|facts",
        help="What the noise is scaled by: a number (1 makes --scale absolute), or facts for the standard deviation of "
        "all their subjects; by default that of each subject's own embeddings.",
        rich_help_panel=CORRUPTION,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(help="Corrupted versions to average over (10; swap 1).", rich_help_panel=CORRUPTION),
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the corruption (1; swap 0).", rich_help_panel=CORRUPTION)]
SwapOption = Annotated[
    str | None,
    typer.Option(
        metavar="SUBJECT", help="The other subject, instead of one chosen among the facts.", rich_help_panel=CORRUPTION
    ),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="probability, log_probability, logit_diff, kl_divergence or rank; may be given several times.",
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
BudgetOption = Annotated[
    int, typer.Option(help="The most tokens in one pass; less needs less memory.", min=1, rich_help_panel=RUN)
]
ModelOption = Annotated[
    str, typer.Option(help=f"{DEFAULT_MODEL}, a Hugging Face name, or a folder.", rich_help_panel=RUN)
]
LayerOption = Annotated[int | None, typer.Option(help="The layer to edit; by default at 0.145 of the depth (5 of 32).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUN)]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the results: by default runs/ with the command's name and, for several facts, the file's. "
        "A run over several facts that was stopped goes on in its folder.",
        rich_help_panel=RUN,
    ),
]


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


def read_positions(text: str) -> Positions:
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
