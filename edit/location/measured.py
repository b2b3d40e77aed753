"""What edits at each layer do, fact by fact: the measured answer to where to edit."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from edit.evaluation import Baseline, evaluate_each
from edit.methods import EditingMethod
from edit.requests.requests import EditRequest
from locate.errors import NumericsError

# By name, what is told of a fact's edit; the first two are shares of what was left to gain (Hase et al. 2023).
OUTCOMES = {
    "rewrite": "prompt: gain of P(o*), as a share of what there was to gain",
    "paraphrase rewrite": "paraphrases: the same",
    "efficacy": "prompt: o* above o",
    "paraphrase": "paraphrases: o* above o",
    "neighbourhood": "neighbours: o above o*",
}
SCORED = ("efficacy", "paraphrase", "neighbourhood")


def edited_rows(
    model: TransformerBridge, method: EditingMethod, requests: Sequence[EditRequest], layer: int, before: Baseline
) -> pd.DataFrame:
    """Each request edited alone at a layer: the rows of its evaluation; none of a request that cannot be edited there.

    Args:
        model: a raw-mode bridge.
        method: one that spreads over several layers ends at this one.
        requests: to edit.
        layer: where.
        before: the unedited model's answers.

    Raises:
        NumericsError: no request can be edited at this layer.

    >>> before = edit.baseline(model, [request], generate=False)
    >>> edited_rows(model, edit.ROME(), [request], 4, before)["case"].nunique()
    1
    """
    how: dict[str, Any] = {"layer": layer, "generate": False, "progress": False}
    try:
        return evaluate_each(model, method, requests, baseline=before, **how).rows
    except NumericsError as error:  # of one of them: the others shall not lack theirs
        whole = error
    parts: list[pd.DataFrame] = []
    for index, request in enumerate(requests if len(requests) > 1 else ()):
        try:
            own = evaluate_each(model, method, [request], baseline=before.of_case(index), **how).rows
        except NumericsError as error:
            warnings.warn(f"Not edited at layer {layer}: {error}", stacklevel=2)
        else:
            parts.append(own.assign(case=index))
    if not parts:
        raise whole
    return pd.concat(parts, ignore_index=True)


def outcomes_of(rows: pd.DataFrame, facts: int) -> Float[np.ndarray, "outcome fact"]:
    """What is told of each fact's edit, NaN where it has no such prompts or was not edited.

    >>> float(outcomes_of(evaluation.rows, 1)[2, 0]) in (0, 1)
    True
    """
    keys = ["case", "probe", "prompt"]
    before = rows.query("model == 'unedited'").drop_duplicates(keys).set_index(keys)["probability_new"]
    edited: Any = rows.query("model == 'edited'").copy()
    was = before.reindex(pd.MultiIndex.from_frame(edited[keys])).to_numpy()
    edited["gain"] = (edited["probability_new"] - was) / (1 - was)
    found = {
        "rewrite": ("efficacy", "gain"), "paraphrase rewrite": ("paraphrase", "gain"),
        **{name: (name, "success") for name in SCORED},
    }  # fmt: skip
    table = np.full((len(OUTCOMES), facts), np.nan)
    for place, name in enumerate(OUTCOMES):
        asked, column = found[name]
        for case, own in _by_case(edited[edited["probe"] == asked], column):
            table[place, case] = own
    return table


def _by_case(rows: pd.DataFrame, column: str) -> Iterator[tuple[int, float]]:
    means: Any = rows.assign(**{column: rows[column].astype(float)}).groupby("case")[column].mean()
    yield from ((int(case), float(value)) for case, value in means.items())


def score_of(outcomes: Float[np.ndarray, "outcome fact"]) -> float:
    """The harmonic mean of efficacy, paraphrase and neighbourhood success over facts; NaN where one is missing.

    >>> score_of(np.ones((5, 2)))
    1.0
    """
    names = list(OUTCOMES)
    means = [_nanmean(outcomes[names.index(name)]) for name in SCORED]
    if any(np.isnan(mean) for mean in means):
        return float("nan")
    return 0.0 if min(means) == 0 else len(means) / sum(1 / mean for mean in means)


def _nanmean(values: Float[np.ndarray, "fact"]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
