"""What a report of knowledge location says in words: each sentence follows from the numbers beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from edit.location.layer_study import LayerStudy
from edit.location.readout import ColumnReadout
from edit.location.similarity import GROUPS, LocalisationSimilarity
from locate.contrast.bootstrap import mean_interval

# What Hit@50 of the new object does by an edit of each method, as published.
_RISES = {"ROME": False, "MEMIT": True, "FineTuning": False}
# RSim past so many layers, as published; a correlation below this is about none.
_FIVE, _LEVEL, _NONE = 5, 0.6, 0.2
_GROUPS = {"paraphrases": "paraphrases of a fact", "hops": "a fact and the hops of its chain"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A published finding, and whether it reappears.

    Attributes:
        title: what was looked at.
        published: what was found elsewhere.
        reappears: None where the numbers do not tell.
        text: the numbers that say so.
    """

    title: str
    published: str
    reappears: bool | None
    text: str

    @property
    def verdict(self) -> str:
        """In words.

        >>> Finding(title="", published="", reappears=None, text="").verdict
        'It cannot be told here whether the finding reappears.'
        """
        words = {True: "The finding reappears.", False: "The finding does not reappear."}
        return words.get(self.reappears, "It cannot be told here whether the finding reappears.")  # type: ignore[arg-type]

    @property
    def paragraph(self) -> str:
        """All of it."""
        return f"{self.text} Published: {self.published} {self.verdict}"


def concentration_finding(spread: pd.DataFrame, against: str) -> Finding:
    """Whether methods concentrate on fewer columns than the one that they are held against.

    Args:
        spread: a row for each edit, with its ``method``, ``effective`` (the share of columns) and ``top`` (that of
            ‖ΔW‖² which the five largest have).
        against: the method that is said to spread.

    >>> table = pd.DataFrame({"method": ["a", "b"], "effective": [0.1, 0.9], "top": [0.5, 0.1]})
    >>> concentration_finding(table, "b").reappears is None  # of one fact there are no intervals
    True
    """
    told, bounds = [], {}
    for name, own in spread.groupby("method", sort=False):
        effective = mean_interval(own["effective"].to_numpy(float))
        bounds[str(name)] = effective
        top = 100 * float(own["top"].to_numpy(float).mean())
        told.append(
            f"{name} is as if spread evenly over {_percent(*effective)} of the columns, of which the five largest have "
            f"{top:.0f}% of ‖ΔW‖²"
        )
    others = [one for name, one in bounds.items() if name != against]
    reappears = None
    if against in bounds and others and not any(np.isnan(one.low) for one in bounds.values()):
        below = [bool(one.high < bounds[against].low) for one in others]
        above = [bool(one.low > bounds[against].low) for one in others]
        reappears = True if all(below) else False if any(above) else None
    return Finding(
        title="Where changes are", reappears=reappears, text=f"{'; '.join(told)}.",
        published="ROME and MEMIT concentrate on few columns of the value layer, fine-tuning spreads.",
    )  # fmt: skip


def readout_finding(readouts: Mapping[str, ColumnReadout]) -> Finding:
    """Whether what the most changed columns say comes to be the new object, by the methods for which that is published.

    >>> finding = readout_finding({"ROME": edit.column_readout(model, update, [request])})
    >>> finding.title
    'What changed columns say'
    """
    told, agreed = [], []
    for name, one in readouts.items():
        row: Any = one.rates([50]).iloc[0]
        interval = "" if np.isnan(row["gain low"]) else f" [{_points(row['gain low'])}, {_points(row['gain high'])}]"
        told.append(
            f"{name}: Hit@50 goes from {100 * row['before']:.0f}% to {100 * row['after']:.0f}%, a change of "
            f"{_points(row['gain'])} points{interval}"
        )
        if (expected := _RISES.get(str(one.info["method"]))) is not None:
            if np.isnan(row["gain low"]):
                agreed.append(None)
            elif expected:
                agreed.append(True if row["gain low"] > 0 else False if row["gain"] <= 0 else None)
            else:
                agreed.append(bool(row["gain low"] <= 0))
    reappears = None if not agreed or None in agreed else all(agreed)
    if False in agreed:
        reappears = False
    return Finding(
        title="What changed columns say", reappears=reappears, text=f"{'; '.join(told)}.",
        published="MEMIT's Hit@50 rises by the edit (59.7 to 70.2), those of ROME and fine-tuning do not.",
    )  # fmt: skip


def similarity_finding(found: LocalisationSimilarity) -> Finding:
    """Whether the layers that tracing finds for related prompts are little more alike than any.

    >>> similarity_finding(similarity).title
    'What tracing finds'
    """
    past = found.data.sel(k=found.data["k"] > _FIVE)
    told, below, apart = [], [], []
    for group in GROUPS:
        own = past.sel(group=group)
        if own.sizes["k"] == 0 or bool(own["rsim"].isnull().all()):
            reason = found.info["left_out"].get(group, f"fewer than {_FIVE + 1} layers were considered")
            told.append(f"{_GROUPS[group]}: left out, {reason}")
            continue
        at = own.isel(k=int(own["rsim"].argmax("k")))
        rsim = [float(at[name]) for name in ("rsim", "rsim_low", "rsim_high")]
        told.append(
            f"RSim of {_GROUPS[group]} is at most {_number(*rsim)} past {_FIVE} layers (at {int(at['k'])}; "
            f"{found.info['facts'][group]} facts)"
        )
        below.append(rsim[0] < _LEVEL)
        apart.append(rsim[2] < _LEVEL if rsim[0] < _LEVEL else rsim[1] >= _LEVEL)
    reappears = None if not below or not all(apart) else all(below)
    return Finding(
        title="What tracing finds", reappears=reappears, text=f"{'; '.join(told)}.".replace("..", "."),
        published=f"RSim is below {_LEVEL} past five layers: tracing finds the entity rather than the fact.",
    )  # fmt: skip


def layer_finding(study: LayerStudy) -> Finding:
    """Whether what tracing says of layers goes together with what edits there do.

    >>> layer_finding(study).title
    'Which layer to edit'
    """
    table: Any = study.correlations(["rewrite"])
    told, uncorrelated = [], []
    for way, own in table.groupby("way", sort=False):
        by = own.set_index("over")
        parts = [f"{over} ρ = {_number(*by.loc[over, ['rho', 'low', 'high']], signed=True)}" for over in by.index
                 if not np.isnan(by.loc[over, "rho"])]  # fmt: skip
        told.append(f"{way}: {', '.join(parts)}" if parts else f"{way}: nothing to rank")
        if way == "tracing, MLP":
            rho, low, high = by.loc["across facts, by layer", ["rho", "low", "high"]]
            known = not np.isnan(low)
            uncorrelated.append((low <= 0 <= high or abs(rho) < _NONE) if known else None)
    pointed: Any = study.pointed()
    measured = pointed.loc["measured"]
    name = str(pointed.columns[1])
    where = [f"{way} points to layer {int(row['layer'])} ({name} {100 * row[name]:.0f}%)"
             for way, row in pointed.iterrows() if way != "measured"]  # fmt: skip
    text = (
        f"Rank correlations with how much edits by {study.info['method']} gain: {'; '.join(told)}. Edits work best at "
        f"layer {int(measured['layer'])} ({name} {100 * measured[name]:.0f}%); {', '.join(where) or 'nothing points'}."
    )
    return Finding(
        title="Which layer to edit", reappears=uncorrelated[0] if uncorrelated else None, text=text,
        published="the effect of tracing at a layer is about uncorrelated with the success of edits there (Hase et al. "
        "2023).",
    )  # fmt: skip


def _percent(mean: Any, low: Any, high: Any) -> str:
    return f"{100 * mean:.0f}%" + ("" if np.isnan(low) else f" [{100 * low:.0f}, {100 * high:.0f}]")


def _points(share: Any) -> str:
    return f"{100 * share:+z.0f}".replace("-", "−")


def _number(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    form = "+z.2f" if signed else "z.2f"
    told = f"{mean:{form}}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")
    return told.replace("-", "−")


def as_markdown(title: str, findings: Sequence[tuple[Finding, str]], left_out: Mapping[str, str]) -> str:
    """A page: a heading, a figure and a paragraph for each finding, and what there is not.

    >>> as_markdown("Where", [], {"hops": "no fact has hops"}).splitlines()[-1]
    '- hops: no fact has hops'
    """
    lines = [f"# {title}", ""]
    for one, figure in findings:
        lines += [f"## {one.title}", "", f"![{one.title}]({figure})", "", one.paragraph, ""]
    if left_out:
        lines += ["## Left out", "", *(f"- {name}: {reason}" for name, reason in left_out.items())]
    return "\n".join(lines).rstrip() + "\n"
