"""What the commands say: results on stdout, everything else on stderr, mistakes in one message."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from edit.cli.kit.speaking import Voice, speaking
from locate.errors import LocateError, NumericsError

# As shells count: 128 and the signal.
_INTERRUPTED, _TERMINATED = 130, 143


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a command found.

    Attributes:
        value: for machines, where ``--json`` is given.
        shown: for people, on stderr.
        results: on stdout: the files that were written, or a table that is itself the result.
        failed: what went wrong although there are results; the exit code is 1 then.
    """

    value: Any
    shown: Sequence[Table | str] = ()
    results: Sequence[Path | Table] = ()
    failed: str | None = None

    def tell(self, console: Console, *, as_json: bool) -> None:
        """Say it, and end with exit code 1 where something failed."""
        if as_json:
            _print_json(self.value)
        else:
            for one in self.shown:
                console.print(one)
            for one in self.results:
                if isinstance(one, Table):
                    Console(markup=False, highlight=False, emoji=False).print(one)
                else:
                    print(one)
        if self.failed is not None:
            console.print(self.failed, style="red", soft_wrap=True)
            raise typer.Exit(1)


@contextmanager
def readable_errors() -> Iterator[Voice]:
    """A user's mistake is one readable message and exit code 2, not a traceback; gives the console for messages."""
    with speaking() as console:

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
        except KeyboardInterrupt as stop:
            console.print(f"Stopped. {console.kept}", soft_wrap=True)
            raise typer.Exit(_TERMINATED if isinstance(stop, Terminated) else _INTERRUPTED) from None


class Terminated(KeyboardInterrupt):
    """A request to end, which ends a command as Ctrl-C does."""


def end_on_request() -> None:
    """Make SIGTERM end what goes on as Ctrl-C does: what is finished is kept, and how to go on is said."""

    def end(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def _print_json(value: Any) -> None:
    """The result for machines, alone on stdout."""
    from locate.store.files import to_plain

    # A stream that cannot take every character gets them escaped.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(to_plain(value), ensure_ascii=not unicode, allow_nan=False))
