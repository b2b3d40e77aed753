"""The result of an evaluation: one row per prompt, and what they add up to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities.statistics import bootstrap_ci, success_rate_ci


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A line of the summary: the mean over cases of a column's mean over a case's prompts of one kind.

    Attributes:
        name: of the line.
        probe: the kind of prompts.
        column: of the rows.
        meaning: in a few words, with the published name where it has one.
        share: whether it is a share of successes, so that an interval of a proportion applies.
    """

    name: str
    probe: str
    column: str
    meaning: str
    share: bool = True


# The honest ones first: what the model says by itself, and whether anything else moved.
_MEASURES = (
    Measure(name="exact match", probe="efficacy", column="exact_match", meaning="greedy answer to the prompt is o*"),
    Measure(
        name="paraphrase exact match", probe="paraphrase", column="exact_match", meaning="… to the paraphrases is o*"
    ),
    Measure(
        name="locality", probe="neighbourhood", column="same_answer",
        meaning="neighbours: first answer as before the edit",
    ),
    Measure(
        name="unrelated locality", probe="unrelated", column="same_answer",
        meaning="unrelated: first answer as before the edit",
    ),
    Measure(name="first answer", probe="efficacy", column="first_answer", meaning="o*'s first token ranks first"),
    Measure(name="efficacy", probe="efficacy", column="success", meaning="CounterFact ES: o* above o, prompt"),
    Measure(name="paraphrase", probe="paraphrase", column="success", meaning="CounterFact PS: … paraphrases"),
    Measure(
        name="neighbourhood", probe="neighbourhood", column="success", meaning="CounterFact NS: o above o*, neighbours"
    ),
    Measure(
        name="efficacy magnitude", probe="efficacy", column="magnitude", share=False,
        meaning="CounterFact EM: P(o*) − P(o), prompt",
    ),
    Measure(
        name="paraphrase magnitude", probe="paraphrase", column="magnitude", share=False,
        meaning="CounterFact PM: … paraphrases",
    ),
    Measure(
        name="neighbourhood magnitude", probe="neighbourhood", column="magnitude", share=False,
        meaning="CounterFact NM: P(o) − P(o*), neighbours",
    ),
    Measure(
        name="efficacy tokens", probe="efficacy", column="token_accuracy",
        meaning="zsRE efficacy: o*'s tokens, teacher-forced",
    ),
    Measure(
        name="paraphrase tokens", probe="paraphrase", column="token_accuracy",
        meaning="zsRE paraphrase: … paraphrases",
    ),
    Measure(
        name="specificity tokens", probe="unrelated", column="token_accuracy",
        meaning="zsRE specificity: recorded answer's tokens",
    ),
    Measure(
        name="specificity own tokens", probe="unrelated", column="same_tokens",
        meaning="… the unedited model's own tokens",
    ),
)  # fmt: skip
_SCORED = ("efficacy", "paraphrase", "neighbourhood")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One row per prompt and model state, and what they add up to.

    Attributes:
        rows: columns ``case, subject, target, target_new, probe, prompt, logprob_new, logprob_true,
            probability_new, probability_true, rank_new, rank_true, success, token_accuracy, generation,
            exact_match, model, same_answer, same_tokens, kl``. ``model`` is ``"edited"`` or ``"unedited"``;
            ``probe`` is ``"efficacy"``, ``"paraphrase"``, ``"neighbourhood"`` or ``"unrelated"``, whose
            ``target`` is its own answer. Log-probabilities are means per token in nats, probabilities and ranks
            those of the first token; ``success`` is o* over o, and o over o* for neighbours and unrelated
            prompts; ``token_accuracy`` is the share of the wanted answer's tokens that are predicted,
            teacher-forced. ``same_answer``, ``same_tokens`` and ``kl`` (in nats) compare with the unedited
            model: its first answer, its choices in place of those tokens, and its distribution.
        texts: where fluency was asked for, columns ``case, prompt, text, entropy, model``.

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
        case. The column ``meaning`` says what each line is. The honest ones come first: the model's own
        words and first answers. After them come those of the published tables, on whose scale they are:
        ``score`` is the harmonic mean of efficacy, paraphrase and neighbourhood (Meng et al. 2022), where
        the cases have all three; magnitudes compare probabilities per token (geometric means over a target's
        tokens); ``fluency`` is a hundred times the n-gram entropy in bits.

        >>> evaluation.summary().loc["efficacy", "edited"]                       # doctest: +SKIP
        100.0
        """
        table: dict[str, dict[str, float]] = {}
        meanings: dict[str, str] = {}
        for state in ("edited", "unedited"):
            rows = _with_derived(self.rows.query("model == @state"))
            means: dict[str, float] = {}
            for measure in _MEASURES:
                values = _per_case(rows.query("probe == @measure.probe"), measure.column)
                if len(values):
                    means[measure.name] = float(values.mean())
                    line = _interval(values, state, confidence, seed, measure.share)
                    table.setdefault(measure.name, {}).update(line)
                    meanings[measure.name] = measure.meaning
                if measure.name == _SCORED[-1] and all(name in means for name in _SCORED):
                    table.setdefault("score", {})[state] = 100 * harmonic_mean([means[name] for name in _SCORED])
                    meanings["score"] = "CounterFact S: harmonic mean of these three"
            if self.texts is not None:
                own = _per_case(self.texts.query("model == @state"), "entropy")
                table.setdefault("fluency", {}).update(_interval(own, state, confidence, seed, share=False))
                meanings["fluency"] = "GE: n-gram entropy of long texts, bits × 100"
        return pd.DataFrame.from_dict(table, orient="index").assign(meaning=pd.Series(meanings, dtype=object))

    def save(self, path: str | Path) -> Path:
        """Write the rows as CSV, and the texts, where there are any, beside them (``rows.csv``, ``rows.texts.csv``)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows.to_csv(path, index=False)
        if self.texts is not None:
            self.texts.to_csv(path.with_suffix(f".texts{path.suffix}"), index=False)
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
