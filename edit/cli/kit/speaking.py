"""Nothing is silent: what a command is doing stands on stderr, two seconds after the last word at the latest."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any

from rich.console import Console

SILENCE = 2.0
# What moves the cursor of a terminal.
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Voice(Console):
    """The console for messages, which knows what is being done, and what is kept of it if it is stopped.

    Foreign text is printed as it is: square brackets in prompts and generations are no markup.

    Attributes:
        doing: said while nothing else is.
        kept: said when the command is stopped.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        super().__init__(stderr=True, markup=False, highlight=False, emoji=False)
        self.doing = "starting"
        self.kept = "The same command begins anew."

    def settle(self) -> None:
        """End the line of what stands on a terminal, so that something else may be printed there."""
        self._stream.settle()


class Stream:
    """Standard error that knows when it was last heard of.

    Where it is no terminal, a bar is a line now and then: in a file or a pipe, what is drawn over itself would be one
    line without an end.

    Args:
        stream: where it goes.
        silence: seconds between a bar's lines.
    """

    def __init__(self, stream: Any, silence: float = SILENCE) -> None:
        self._stream = stream
        self._silence = silence
        self._terminal = stream.isatty()
        self._bar = ""  # that stands there, or waits for its line
        self._said = ""
        self._open = False  # whether the last line has no end yet
        self.heard = monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See ``TextIO.write``."""
        if self._terminal:
            self._draw(text)
        elif text.startswith("\r"):
            self._bar = text.strip()
            if monotonic() - self.heard >= self._silence:
                self._say_bar()
        elif plain := _MOVES.sub("", text):
            if plain.strip():
                self._say(plain)
            elif "100%" in self._bar:
                self._say_bar()
            elif self._open:
                self._say(plain)
        return len(text)

    def status(self, line: str) -> None:
        """Say what goes on, on a terminal over what was said before."""
        self.write(f"\r{line}" if self._terminal else f"{line}\n")

    def settle(self) -> None:
        """See ``Voice.settle``."""
        if self._terminal and self._bar:
            self.write("\n")

    def _draw(self, text: str) -> None:
        # What is no part of a bar begins a line of its own.
        apart = self._bar and text.strip() and not text.startswith(("\r", "\x1b"))
        self._say(f"\n{text}" if apart else text)
        self._bar = text.strip() if text.startswith("\r") else self._bar if not _MOVES.sub("", text) else ""

    def _say_bar(self) -> None:
        if self._bar and self._bar != self._said:
            self._said = self._bar
            self._say(f"{self._bar}\n")
        self._bar = ""

    def _say(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
        self._open = not text.endswith("\n")
        self.heard = monotonic()


@contextmanager
def speaking(silence: float = SILENCE) -> Iterator[Voice]:
    """A console that says what is being done where nothing else does: a bar's time, or how long a step takes.

    Args:
        silence: for so many seconds nothing may be heard.
    """
    often = silence * 7 / 8  # so that it is never late
    usual, stream, over = sys.stderr, Stream(sys.stderr, often), Event()
    voice = Voice(stream)

    def keep_on() -> None:
        begun, doing = monotonic(), voice.doing
        while not over.wait(silence / 8):
            if doing != voice.doing:
                begun, doing = monotonic(), voice.doing
            if monotonic() - stream.heard < often:
                continue
            heard = stream.heard
            _refresh_bars(stream)
            if stream.heard == heard:
                stream.status(f"{doing} … {monotonic() - begun:.0f} s")

    heart = Thread(target=keep_on, daemon=True)
    sys.stderr = stream  # type: ignore[assignment]
    heart.start()
    try:
        yield voice
    finally:
        over.set()
        heart.join()
        stream.settle()
        sys.stderr = usual


def _refresh_bars(stream: Stream) -> None:
    """Draw the bars again, with the time that has passed."""
    # None before it is imported, and a module without it while it is.
    if (bars := getattr(sys.modules.get("tqdm.std"), "tqdm", None)) is not None:
        with bars.external_write_mode(file=stream):
            pass
