"""What the commands say: results on stdout, everything else on stderr, mistakes in one message."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from locate.errors import LocateError, NumericsError


@contextmanager
def readable_errors() -> Iterator[Console]:
    """A user's mistake is one readable message and exit code 2, not a traceback; gives the console for messages."""
    console = make_console(stderr=True)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        console.print(f"Note: {message}", style="yellow", soft_wrap=True)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("default", module=r"(locate|edit)\b.*")
            warnings.showwarning = show
            yield console
    except NumericsError as error:
        console.print(f"Failed: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from None
    except (LocateError, OSError) as error:
        console.print(f"Error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(1) from None


def make_console(*, stderr: bool) -> Console:
    """A console that prints foreign text as it is: square brackets in prompts and generations are no markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """The result for machines, alone on stdout."""
    # A stream that cannot take every character gets them escaped.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not unicode, allow_nan=False))
