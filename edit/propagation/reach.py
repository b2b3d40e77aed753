"""What reached how far, and what told of it: scores of probes beside outcomes, over facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from scipy.stats import rankdata
from sklearn.linear_model import Ridge

from edit.propagation.predicted import FEATURES, ReachPrediction
from edit.propagation.propagation import Propagation
from edit.propagation.reused import MEASURES, MediatorReuse
from locate.contrast.correlation import correlated
from locate.errors import FactError, LocateError, counted, suggest
from locate.results import Result
from locate.showing import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTCOMES = ("answered", "margin", "share")
COMBINED = "combined"
# Of the scores, those that are combined: the others say much the same as these.
COMBINING = ("near", "first order", "donor", "mediators")
# Of the ridge on ranks from −½ to ½.
_RIDGE = 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ReachStudy(Result):
    """How far edits reached, probe by probe, beside scores that should tell of it.

    Attributes:
        data: by ``fact`` and ``probe`` (as many as the fact with most has; NaN beyond): ``score`` (by ``name`` too),
            ``outcome`` (by ``what`` too): ``answered``, whether o* ranks above o after the edit (1 or 0); ``margin``,
            by how many logits; ``share``, the total effect as a share of that on the edit's own prompt; and ``role``
            and ``text``, empty beyond.
        info: how it was made; ``coefficients`` of the combined score, fitted on all facts.

    >>> studied.table().index.name
    'role'
    """

    stored_as = "reach_study"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.reach_figures:plot_reach_study"}

    info: dict[str, Any]

    def correlations(
        self, names: Sequence[str] | None = None, *, confidence: float = 0.95, resamples: int = 500, seed: int = 0
    ) -> pd.DataFrame:
        """Spearman's correlation of every score with every outcome over all probes; intervals draw facts, not probes.

        Args:
            names: of the scores; by default all.
            confidence: of the intervals.
            resamples: of the bootstrap.
            seed: of the bootstrap.

        >>> int(studied.correlations()["facts"].max())
        3
        """
        rows = []
        for name in self.data["name"].values if names is None else names:
            for what in self.data["what"].values:
                one = self.data["score"].sel(name=name).transpose("fact", "probe").values
                other = self.data["outcome"].sel(what=what).transpose("fact", "probe").values
                found = correlated("pooled", one, other, confidence=confidence, resamples=resamples, seed=seed)
                probes = int((~np.isnan(one + other)).sum())
                rows.append({"score": str(name), "outcome": str(what), **found._asdict(), "probes": probes})
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """By role, how many probes there are and the mean of each outcome.

        >>> studied.table().columns.tolist()
        ['probes', 'answered', 'margin', 'share']
        """
        roles = self.data["role"].values
        rows = {}
        for role in dict.fromkeys(role for role in roles.ravel() if role):
            own = self.data["outcome"].transpose("what", "fact", "probe").values[:, roles == role]
            rows[str(role)] = {"probes": own.shape[1], **dict(zip(OUTCOMES, own.mean(1), strict=True))}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("role")

    def _on(self) -> str:
        probes = np.count_nonzero(self.data["role"].values != "")
        return f"{counted(self.info['facts'], 'fact')}, {probes} probes"

    def _found(self) -> str:
        best: Any = self.correlations(resamples=200).dropna(subset="value").sort_values("value").iloc[-1]
        told = spread(best["value"], best["low"], best["high"])
        return f"{best['score']} goes with {best['outcome']} best, ρ {told}"

    def _rows(self) -> pd.DataFrame:
        return self.table()

    def plot(self, **options: Any) -> "Figure":
        """The correlations with their intervals; see ``plot_reach_study`` in ``edit.propagation.reach_figures``."""
        return self.draw(**options)


def load_reach_study(path: str | Path) -> ReachStudy:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_reach_study(studied.save("studied.nc")).data.sizes["fact"]
    3
    """
    return ReachStudy.load(path)


def reuse_study(found: Sequence[MediatorReuse]) -> ReachStudy:
    """Whether probes that re-use the edit prompt's mediators are those that are answered, over facts.

    Args:
        found: from ``edit.mediator_reuse``, one for each edit; those of one prompt are of one fact.

    Raises:
        FactError: there are none.

    >>> edit.reuse_study([reuse]).data["name"].values.tolist()
    ['rank_correlation', 'cosine', 'overlap', 'gained', 'lost']
    """
    if not found:
        raise FactError("There is no re-use of mediators to compare; give at least one result.")
    tables = []
    for one in found:
        table = one.table()
        table["share"] = _shares(table["total_effect"], table["total_effect"].iloc[0])
        tables.append(table.iloc[1:])
    own = [str(one.totals["text"].iloc[0]) for one in found]
    info = {"model": _shared(found, "model"), "method": _shared(found, "method"), "coefficients": {}}
    return _study(_by_fact(tables, own), MEASURES, info)


def judge_reach(
    predictions: Sequence[ReachPrediction], flows: Sequence[Propagation], *, towards: str = "share", folds: int = 10
) -> ReachStudy:
    """How well predictions told which probes edits would reach, each score alone and combined.

    The combined score is a ridge on ranks of some scores, fitted on other facts than those that it is judged on. It
    ranks scores over all facts: what it gives to a probe is said beside others. Edits of one prompt, as by several
    methods or to several answers, are of one fact.

    Args:
        predictions: from ``edit.predict_reach``, one for each edit.
        flows: from ``edit.mediate`` with the edit's own prompt and the same probes, in the same order.
        towards: the outcome that the combined score is fitted to: ``share``, ``margin`` or ``answered``.
        folds: into which facts are put in turns; of as many facts at most.

    Raises:
        FactError: there are none, not as many of both, or a flow lacks a probe that was predicted.
        LocateError: fewer than two folds, or no such outcome.

    >>> edit.judge_reach([foreseen], [flow]).data["name"].values.tolist()[:2]
    ['near', 'key']
    """
    if not predictions or len(predictions) != len(flows):
        raise FactError(
            f"Give as many flows as predictions, at least one; found {len(predictions)} predictions and {len(flows)}."
        )
    if folds < 2:
        raise LocateError(f"folds: must be 2 or more, found {folds}.")
    if towards not in OUTCOMES:
        raise LocateError(f"towards: there is no outcome {towards!r}. {suggest(towards, OUTCOMES)}")
    each = [_realised(one.table(), flow.totals) for one, flow in zip(predictions, flows, strict=True)]
    tables = _by_fact(each, [str(_own(flow.totals)["text"]) for flow in flows])
    names, coefficients = list(FEATURES), {}
    if len(tables) > 1:
        coefficients = _combine(tables, towards, min(folds, len(tables)))
        names.append(COMBINED)
    info = {
        "model": _shared(predictions, "model"),
        "method": _shared(flows, "method"),
        "coefficients": coefficients,
        "towards": towards,
    }
    return _study(tables, names, info)


def _realised(table: pd.DataFrame, totals: pd.DataFrame) -> pd.DataFrame:
    """Predictions with what became of them."""
    key = ["text", "new", "old"]
    both: Any = table.merge(totals.drop_duplicates(key)[[*key, "edited", "total_effect"]], on=key, how="left")
    if both["edited"].isna().any():
        raise _lacking(repr(both.loc[both["edited"].isna(), "text"].iloc[0]))
    both["margin"], both["answered"] = both["edited"], both["edited"] > 0
    both["share"] = _shares(both["total_effect"], _own(totals)["total_effect"])
    return both


def _own(totals: pd.DataFrame) -> pd.Series:
    """The edit's own prompt."""
    found: Any = totals[totals["role"] == "edit"]
    if not len(found):
        raise _lacking("the edit's own prompt")
    return found.iloc[0]


def _lacking(what: str) -> FactError:
    return FactError(f"A flow has not {what}; give those of the same request and probes, in the same order.")


def _shares(effects: Any, own: Any) -> Any:
    """Of the effect on the edit's own prompt; NaN where there is none."""
    return effects / (own or np.nan)


def _by_fact(tables: Sequence[pd.DataFrame], prompts: Sequence[str]) -> list[pd.DataFrame]:
    """Tables of edits of one prompt as one: they are no facts apart, for folds and for the bootstrap."""
    facts = [[table for table, own in zip(tables, prompts, strict=True) if own == prompt]
             for prompt in dict.fromkeys(prompts)]  # fmt: skip
    return [pd.concat(each, ignore_index=True) for each in facts]


def _combine(tables: Sequence[pd.DataFrame], towards: str, folds: int) -> dict[str, float]:
    """Give each table a score by a ridge that has not seen its fact; and coefficients of one that has seen all.

    Scores and outcomes are ranked over all facts, from −½ to ½; what is NaN is in the middle. Ranks of
    scores need no outcomes, so that the facts that are judged do not tell on themselves.
    """
    whole = pd.concat(tables, ignore_index=True)
    fact = np.concatenate([np.full(len(one), place) for place, one in enumerate(tables)])
    scores = np.stack([_ranks(whole[name].to_numpy(float)) for name in COMBINING], axis=1)
    wanted, combined = whole[towards].to_numpy(float), np.zeros(len(whole))
    for fold in range(folds):
        held = fact % folds == fold
        model = Ridge(alpha=_RIDGE).fit(scores[~held], _ranks(wanted[~held]))
        combined[held] = model.predict(scores[held])
    for place, one in enumerate(tables):
        one[COMBINED] = combined[fact == place]
    fitted = Ridge(alpha=_RIDGE).fit(scores, _ranks(wanted))
    return {name: float(value) for name, value in zip(COMBINING, fitted.coef_, strict=True)}


def _ranks(values: Float[np.ndarray, "probe"]) -> Float[np.ndarray, "probe"]:
    known = ~np.isnan(values)
    ranks = np.zeros(len(values))
    ranks[known] = (rankdata(values[known]) - 0.5) / max(1, known.sum()) - 0.5
    return ranks


def _study(tables: Sequence[pd.DataFrame], names: Sequence[str], info: dict[str, Any]) -> ReachStudy:
    most = max(len(one) for one in tables)
    score, outcome = (np.full((len(of), len(tables), most), np.nan) for of in (names, OUTCOMES))
    words = {name: np.full((len(tables), most), "", dtype=object) for name in ("role", "text")}
    for place, one in enumerate(tables):
        score[:, place, : len(one)] = one[list(names)].to_numpy(float).T
        outcome[:, place, : len(one)] = one[list(OUTCOMES)].to_numpy(float).T
        for name, own in words.items():
            own[place, : len(one)] = one[name].to_numpy()
    data: dict[str, Any] = {
        "score": (("name", "fact", "probe"), score),
        "outcome": (("what", "fact", "probe"), outcome),
    }
    data |= {name: (("fact", "probe"), own) for name, own in words.items()}
    coords = {"name": list(names), "what": list(OUTCOMES), "fact": np.arange(len(tables)), "probe": np.arange(most)}
    return ReachStudy(data=xr.Dataset(data, coords=coords), info={**info, "facts": len(tables)})


def _shared(found: Sequence[MediatorReuse | Propagation | ReachPrediction], what: str) -> str:
    return ", ".join(dict.fromkeys(str(one.info[what]) for one in found))
