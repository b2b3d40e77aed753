"""Tables of what edits did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

# Of an evaluation's rows.
COLUMNS = ["model", "probe", "prompt", "generation", "tokens_new", "tokens_true", "probability_new",
           "probability_true", "success"]  # fmt: skip


def shown(value: float, form: str = ".3f") -> str:
    """A number; a dash where there is none, as of an error over a single fact."""
    return "–" if math.isnan(value) else f"{value:{form}}"


def between(low: float, high: float, form: str = ".3f") -> str:
    """An interval; a dash where there is none."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{low:{form}} to {high:{form}}"


def means_table(means: Any, title: str, form: str = ".3f") -> Table:
    """Means over facts by measure, with their intervals: columns ``mean``, ``low``, ``high`` and ``n``."""
    table = Table("measure", "mean", "95% interval", "facts", title=title)
    for name, row in means.iterrows():
        mean, low, high = (float(row[column]) for column in ("mean", "low", "high"))
        table.add_row(str(name), f"{mean:{form}}", between(low, high, form), f"{row['n']:.0f}")
    return table


def answers_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """What the edited model answers to each prompt of a single edit."""
    table = Table("probe", "prompt", "answer", "new object's tokens", "P(first)", title=title)
    for row in rows:
        if row["model"] == "edited":
            said = row["probe"], row["prompt"], row["generation"].strip(), row["tokens_new"]
            table.add_row(*said, f"{row['probability_new']:.3f}")
    return table


def scores_table(scores: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """The scores of many edits, beside those of the unedited model."""
    table = Table("metric", "edited [95% interval]", "unedited", title=title)
    for name, row in scores.items():
        known = not math.isnan(row["edited low"])
        interval = f" [{row['edited low']:.1f}, {row['edited high']:.1f}]" if known else ""
        table.add_row(name, f"{row['edited']:.1f}{interval}", f"{row['unedited']:.1f}")
    return table
