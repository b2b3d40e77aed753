"""The result of an evaluation: one row per prompt, and what they add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities.statistics import bootstrap_ci, success_rate_ci

from locate.contrast.bootstrap import resampled_means
from locate.showing import Shown, first_of, spread
from locate.store.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measure(NamedTuple):
    """A line of the summary: the mean over cases of a column's mean over a case's prompts of one kind.

    Attributes:
        name: of the line.
        probe: the kind of prompts.
        column: of the rows.
        meaning: in a few words, with the published name where it has one.
    """

    name: str
    probe: str
    column: str
    meaning: str


# The honest ones first: what the model says by itself, and whether anything else moved.
_MEASURES = (
    Measure("exact match", "efficacy", "exact_match", "prompt: greedy answer is o*"),
    Measure("paraphrase exact match", "paraphrase", "exact_match", "paraphrases: greedy answer is o*"),
    Measure("locality", "neighbourhood", "same_answer", "neighbours: first answer as before the edit"),
    Measure("unrelated locality", "unrelated", "same_answer", "unrelated: first answer as before the edit"),
    Measure("first answer", "efficacy", "first_answer", "prompt: o*'s first own token ranks first"),
    Measure("efficacy", "efficacy", "success", "prompt: o* above o (CounterFact ES)"),
    Measure("paraphrase", "paraphrase", "success", "paraphrases: o* above o (CounterFact PS)"),
    Measure("neighbourhood", "neighbourhood", "success", "neighbours: o above o* (CounterFact NS)"),
    Measure("efficacy magnitude", "efficacy", "magnitude", "prompt: P(o*) − P(o) (CounterFact EM)"),
    Measure("paraphrase magnitude", "paraphrase", "magnitude", "paraphrases: P(o*) − P(o) (CounterFact PM)"),
    Measure("neighbourhood magnitude", "neighbourhood", "magnitude", "neighbours: P(o) − P(o*) (CounterFact NM)"),
    Measure("efficacy tokens", "efficacy", "token_accuracy", "prompt: tokens of o*, forced (zsRE efficacy)"),
    Measure("paraphrase tokens", "paraphrase", "token_accuracy", "paraphrases: tokens of o*, forced (zsRE paraphrase)"),
    Measure("specificity tokens", "unrelated", "token_accuracy", "unrelated: its tokens, forced (zsRE specificity)"),
    Measure("missed", "efficacy", "missed", "edits whose value did not reach o*, or its end, when fitted"),
    Measure("specificity own tokens", "unrelated", "same_tokens", "unrelated: choices as before the edit, forced"),
)
_WRITTEN = (
    Measure("fluency", "texts", "entropy", "long texts: n-gram entropy, bits × 100 (GE)"),
    Measure("reference score", "texts", "reference", "long texts: like those on things with o*, TF-IDF cosine (RS)"),
)
_NO_SHARE = "magnitude"  # every other column counts successes
_SCORED = ("efficacy", "paraphrase", "neighbourhood")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Shown):
    """One row per prompt and model state, and what they add up to.

    Attributes:
        rows: columns ``case, subject, target, target_new, probe, prompt, logprob_new, logprob_true,
            probability_new, probability_true, rank_new, rank_true, success, tokens_new, tokens_true, token_accuracy,
            generation, exact_match, model, missed, same_answer, same_tokens, kl``. ``model`` is ``"edited"`` or
            ``"unedited"``; ``probe`` is ``"efficacy"``, ``"paraphrase"``, ``"neighbourhood"`` or ``"unrelated"``, whose
            ``target`` is its own answer. ``tokens_new`` and ``tokens_true`` show how the answers are spelled, token by
            token with ``|`` between. Log-probabilities are means per token in nats, probabilities and ranks those of
            the first token that tells the two answers apart, after those that both begin with; ``success`` is o* over
            o, and o over o* for neighbours and unrelated prompts; ``token_accuracy`` is the share of the wanted
            answer's tokens that are predicted, teacher-forced. ``same_answer``, ``same_tokens`` and ``kl`` (in nats)
            compare with the unedited model: its first answer (there as well), its choices in place of those tokens,
            and its distribution. ``missed`` says that the edit's value did not reach its target when it was fitted.
        texts: where fluency was asked for, columns ``case, prompt, text, entropy, model``, and ``reference`` where
            there were references: the similarity of all of a case's texts to its own.

    >>> evaluation.rows.loc[0, "probe"]
    'efficacy'
    """

    rows: pd.DataFrame
    texts: pd.DataFrame | None = None

    def summary(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Percentages over cases with confidence intervals, for the edited and the unedited model.

        Each case counts once: its prompts of one kind are averaged first. Where every case is then a plain
        success or failure, the interval is the exact one of a proportion (Clopper-Pearson), which stays wide
        for few cases even if all agree. Otherwise it is a percentile bootstrap over cases, which can only
        show the spread among them: it is too narrow where few cases agree, and missing (NaN) for a single
        case. The column ``meaning`` says what each line is ("forced": each token is predicted from the true
        ones before it). The honest ones come first: the model's own words and first answers. After them come
        those of the published tables, on whose scale they are:
        ``score`` is the harmonic mean of efficacy, paraphrase and neighbourhood (Meng et al. 2022), where
        there are all three; magnitudes compare probabilities per token (geometric means over a target's
        tokens); ``fluency`` is a hundred times the n-gram entropy in bits, ``reference score`` a hundred times the
        cosine.

        >>> evaluation.summary().loc["efficacy", "edited"]                       # doctest: +SKIP
        100.0
        """
        table: dict[str, dict[str, float]] = {}
        meanings: dict[str, str] = {}
        for state in ("edited", "unedited"):
            rows = _with_derived(self.rows.query("model == @state"))
            cases: dict[str, pd.Series] = {}
            for measure in _MEASURES:
                values = _per_case(rows.query("probe == @measure.probe"), measure.column)
                if measure.name == "missed" and not self.missed:
                    continue
                if len(values):
                    cases[measure.name] = values
                    line = _interval(values, state, confidence, seed, measure.column != _NO_SHARE)
                    table.setdefault(measure.name, {}).update(line)
                    meanings[measure.name] = measure.meaning
                if measure.name == _SCORED[-1] and all(name in cases for name in _SCORED):
                    scored = pd.DataFrame({name: cases[name] for name in _SCORED})
                    table.setdefault("score", {}).update(_score_interval(scored, state, confidence, seed))
                    meanings["score"] = "harmonic mean of these three (CounterFact S)"
            texts = pd.DataFrame() if self.texts is None else self.texts.query("model == @state")
            for measure in _WRITTEN:
                values = _per_case(texts, measure.column).dropna()
                if len(values):
                    table.setdefault(measure.name, {}).update(_interval(values, state, confidence, seed, False))
                    meanings[measure.name] = measure.meaning
        return pd.DataFrame.from_dict(table, orient="index").assign(meaning=pd.Series(meanings, dtype=object))

    @property
    def missed(self) -> list[str]:
        """The edits whose values did not reach their targets when they were fitted, as far as changes say so.

        >>> isinstance(evaluation.missed, list)
        True
        """
        if "missed" not in self.rows:
            return []
        asked = self.rows.query("probe == 'efficacy' and model == 'edited'")
        own: Any = asked[asked["missed"].fillna(False).astype(bool)]
        texts = zip(own["prompt"], own["target"], own["target_new"], strict=True)
        return [f"{prompt}: {old} → {new}" for prompt, old, new in texts]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per prompt and model state: the rows.

        >>> len(evaluation.to_dataframe()) == len(evaluation.rows)
        True
        """
        return self.rows.copy()

    def plot(self, **options: Any) -> "Figure":
        """What the edited and the unedited model do, with intervals; see ``edit.evaluation.figures``.

        >>> evaluation.plot().axes[0].get_xlabel()
        'cases [%]'
        """
        return import_module("edit.evaluation.figures").plot_evaluation(self, **options)

    def save(self, path: str | Path) -> Path:
        """Write the rows as CSV, and the texts, where there are any, beside them (``rows.csv``, ``rows.texts.csv``)."""
        path = Path(path)
        tables = {path: self.rows, path.with_suffix(f".texts{path.suffix}"): self.texts}
        for place, table in tables.items():
            if table is not None:
                with whole_file(place) as partial:
                    table.to_csv(partial, index=False)
        return path

    @classmethod
    def join(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """Several evaluations as one, with their cases numbered on."""
        rows, texts, start = [], [], 0
        for part in parts:
            rows.append(part.rows.assign(case=part.rows["case"] + start))
            if part.texts is not None:
                texts.append(part.texts.assign(case=part.texts["case"] + start))
            start += int(part.rows["case"].to_numpy().max()) + 1
        whole = pd.concat(texts, ignore_index=True) if texts else None
        return cls(rows=pd.concat(rows, ignore_index=True), texts=whole)

    def _headline(self) -> Mapping[str, str]:
        own = self.rows.query("probe == 'efficacy' and model == 'edited'")
        asked = [f"{one['prompt']}: {one['target']} → {one['target_new']}" for one in own.to_dict("records")]
        table = self.summary()
        named = [name for name in ("exact match", "efficacy", "locality", "score") if name in table.index]
        return {
            "on": first_of(asked),
            "sizes": f"cases {self.rows['case'].nunique()}, prompts {len(self.rows) // self.rows['model'].nunique()}",
            "found": ", ".join(f"{name} {_told(table, name, 'edited')}" for name in named[:3]),
            "before": ", ".join(f"{name} {_told(table, name, 'unedited')}" for name in named[:3]),
        }

    def _rows(self) -> pd.DataFrame:
        table = self.summary()
        columns = {state: [_told(table, name, state) for name in table.index] for state in ("edited", "unedited")}
        return pd.DataFrame({"measure": table.index, **columns})

    def _picture(self) -> "Figure":
        return self.plot()


def _told(table: pd.DataFrame, name: str, state: str) -> str:
    return spread(*(table.loc[name, f"{state}{end}"] for end in ("", " low", " high")))


def _with_derived(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.assign(first_answer=rows["rank_new"] == 1)
    if "logprob_new" in rows:
        gain = np.exp(rows["logprob_new"]) - np.exp(rows["logprob_true"])
        sign = np.where(rows["probe"].isin(["efficacy", "paraphrase"]), 1, -1)
        rows["magnitude"] = gain * sign
    return rows


def _per_case(rows: pd.DataFrame, column: str) -> pd.Series:
    if column not in rows or rows.empty:
        return pd.Series(dtype=float)
    return pd.Series(rows.groupby("case")[column].mean(), dtype=float)


def _score_interval(cases: pd.DataFrame, state: str, confidence: float, seed: int) -> dict[str, float]:
    """The harmonic mean of the means; a case that lacks a kind of prompt counts in the others."""
    values = cases.to_numpy(dtype=float)
    score = 100.0 * harmonic_mean(np.nanmean(values, axis=0).tolist())
    with np.errstate(divide="ignore"):  # NaN for a draw without any case of a kind
        scores = 100 * 3 / (1 / resampled_means(values, seed=seed)).sum(1)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(scores, [tail, 100 - tail]) if len(values) > 1 else (np.nan, np.nan)
    return {state: score, f"{state} low": float(low), f"{state} high": float(high)}


def _interval(values: pd.Series, state: str, confidence: float, seed: int, share: bool) -> dict[str, float]:
    if share and values.isin([0, 1]).all():
        exact = success_rate_ci(values.astype(bool).tolist(), confidence=confidence)
        low, high = exact.ci_low, exact.ci_high
    elif len(values) == 1:
        low = high = float("nan")
    else:
        sample, generator = torch.tensor(values.to_numpy()), torch.Generator().manual_seed(seed)
        bounds = bootstrap_ci(sample, confidence=confidence, n_resamples=2000, generator=generator)
        low, high = (float(bound) for bound in bounds)
    return {state: 100 * values.mean(), f"{state} low": 100 * low, f"{state} high": 100 * high}
