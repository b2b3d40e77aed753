"""How results show themselves: five lines at a prompt; in a notebook a small figure and a short table as well."""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a line, in characters; lines below the first; and of the table, in rows.
_LINE, _LINES, ROWS = 98, 4, 10
# Of the picture: what it may take, in pixels either way and in bytes.
_PIXELS, _BYTES = (560, 460), 60_000
_CELL = 60


class Shown:
    """What shows itself, wherever it stands last in a cell: what it is, of which model, on what, and what it found.

    Nothing is raised while it does: what cannot be told is left out, and without a figure the table stands alone.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # or a dataclass would write one of all its fields
            cls.__repr__ = cls.__repr__

    def _named(self) -> str:
        """The first line: what it is, of which model, and by which method."""
        told: Mapping[str, Any] = getattr(self, "info", {})
        name = type(self).__name__ + (f" of {told['model']}" if told.get("model") else "")
        return f"{name}, {told['method']}" if isinstance(told.get("method"), str) else name

    def _headline(self) -> Mapping[str, str]:
        """The lines below it: what each says by name; four at most."""
        return {}

    def _choice(self) -> Any:
        """Its best site, where there is one."""
        return self.best() if hasattr(self, "best") else None  # type: ignore[attr-defined]

    def _chosen(self) -> str:
        """That site in words."""
        with suppress(Exception):
            told = {name: value for name, value in vars(self._choice()).items() if value is not None}
            return ", ".join(str(value) if name == "kind" else f"{name} {value}" for name, value in told.items())
        return ""

    def _rows(self) -> pd.DataFrame | None:
        """What the table shows, of which it takes the first ten."""
        return None

    def _picture(self) -> "Figure | None":
        """What the figure shows."""
        return None

    def _lines(self) -> list[str]:
        named, told = type(self).__name__, {}
        with suppress(Exception):
            named = self._named()
        with suppress(Exception):
            told = {name: text for name, text in self._headline().items() if text}
        below = [f"  {name}: {text}" for name, text in list(told.items())[:_LINES]]
        return [_clipped(line, _LINE) for line in (named, *below)]

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        first, *below = (escape(line.strip()) for line in self._lines())
        parts = [f"<p><b>{first}</b>{''.join(f'<br />{line}' for line in below)}</p>"]
        with suppress(Exception):
            parts.append(picture_html(self._picture(), alt=first))
        with suppress(Exception):
            parts.append(table_html(self._rows()))
        return f"<div>{''.join(parts)}</div>"


def picture_html(figure: "Figure | None", *, alt: str) -> str:
    """A figure as an image that stands in the page itself, on its own ground, whatever the page's; nothing if large.

    >>> picture_html(None, alt="nothing")
    ''
    """
    if figure is None:
        return ""
    width, height = figure.get_size_inches()
    full = min(_PIXELS[0] / width, _PIXELS[1] / height)
    for share in (1.0, 0.75, 0.5):
        file = BytesIO()
        figure.savefig(file, format="png", dpi=share * full, facecolor=figure.get_facecolor())
        if len(data := b64encode(file.getvalue())) <= _BYTES:
            style = "max-width:100%;background:white;border-radius:3px"
            return f'<img alt="{alt}" style="{style}" src="data:image/png;base64,{data.decode()}" />'
    return ""


def table_html(table: pd.DataFrame | None) -> str:
    """The first rows of a table, in the colours of the page that it stands on.

    >>> table_html(pd.DataFrame({"layer": [3], "effect": [0.123456]})).count("0.123<")
    1
    """
    if table is None or not len(table):
        return ""
    some = table.head(ROWS)
    kept = not isinstance(some.index, pd.RangeIndex)
    cells = some.map(lambda cell: shown(cell) if isinstance(cell, float) else _clipped(str(cell), _CELL))
    more = f"<p>{ROWS} of {len(table)} rows</p>" if len(table) > ROWS else ""
    return cells.to_html(index=kept, border=0) + more


def shown(value: float) -> str:
    """A number with three digits that count, and a minus that is one; nothing for what is not known.

    >>> shown(-0.12345), shown(1234.5), shown(float("nan"))
    ('−0.123', '1,234', '')
    """
    if math.isnan(value):
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def spread(mean: float, low: float = float("nan"), high: float = float("nan")) -> str:
    """A mean with the bounds of its interval, where it has one.

    >>> spread(0.4, 0.3, 0.5), spread(0.4)
    ('0.4 [0.3, 0.5]', '0.4')
    """
    mean, low, high = float(mean), float(low), float(high)
    return shown(mean) if math.isnan(low + high) else f"{shown(mean)} [{shown(low)}, {shown(high)}]"


def first_of(texts: Sequence[str]) -> str:
    """The first of some texts, and how many more there are.

    >>> first_of(["The Louvre is in", "Rome is in"])
    'The Louvre is in (and 1 more)'
    """
    first, more = (str(texts[0]) if len(texts) else ""), len(texts) - 1
    return f"{_clipped(first, _CELL)} (and {more} more)" if more > 0 else first


def numbers_in(numbers: Mapping[str, float], most: int = 3) -> str:
    """The first of some numbers by name, of those that are known.

    >>> numbers_in({"rank": 1.0, "size": float("nan"), "columns": 96.0})
    'rank = 1, columns = 96'
    """
    known = [(name, text) for name, value in numbers.items() if (text := shown(float(value)))]
    return ", ".join(f"{name} = {text}" for name, text in known[:most])


def _clipped(text: str, most: int) -> str:
    """On one line, and not longer than that."""
    line = " ".join(text.split()) if "\n" in text or "\t" in text else text
    return line if len(line) <= most else f"{line[: most - 1]}…"
