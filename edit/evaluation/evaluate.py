"""Did the edit take, does it generalise, and did it leave the rest alone?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import bootstrap_ci, success_rate_ci

from edit.evaluation.generation import exact_match, generate_greedily
from edit.evaluation.scoring import next_token_logprobs, score_targets
from edit.requests import EditRequest
from edit.updates import WeightUpdate, within, without
from locate.errors import FactError
from locate.facts import Fact

_PROBES = ("efficacy", "paraphrase", "neighbourhood")


@runtime_checkable
class Method(Protocol):
    """Anything that fits an update."""

    def fit(self, model: TransformerBridge, requests: Sequence[EditRequest], *, progress: bool = True) -> WeightUpdate:
        """Find the update."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One row per probe and model state, and what they add up to.

    Attributes:
        rows: columns ``case, subject, probe, prompt, model, logprob_new, logprob_true, rank_new, rank_true,
            success, generation, exact_match, same_answer, kl``. ``model`` is ``"edited"`` or ``"unedited"``.
            Log-probabilities are means per token in nats; ``success`` is o* over o (o over o* for
            neighbours); ``same_answer`` and ``kl`` (in nats) compare with the unedited model.

    >>> evaluation.rows.loc[0, "probe"]
    'efficacy'
    """

    rows: pd.DataFrame

    def summary(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Percentages over cases with confidence intervals, for the edited and the unedited model.

        Each case counts once: its probes of one kind are averaged first. Where every case is then a plain
        success or failure, the interval is the exact one of a proportion (Clopper-Pearson), which stays wide
        for few cases even if all agree. Otherwise it is a percentile bootstrap over cases, which can only
        show the spread among them: it is too narrow where few cases agree, and missing (NaN) for a single
        case. ``score`` is the harmonic mean of efficacy, paraphrase and neighbourhood (Meng et al. 2022),
        where the cases have all three.

        >>> evaluation.summary().loc["efficacy", "edited"]                       # doctest: +SKIP
        100.0
        """
        table = {}
        for state in ("edited", "unedited"):
            own = self.rows.query("model == @state")
            asked = {probe: own.query("probe == @probe") for probe in _PROBES}
            columns = {probe: _per_case(rows, "success") for probe, rows in asked.items()}
            columns["exact match"] = _per_case(asked["efficacy"], "exact_match")
            columns["paraphrase exact match"] = _per_case(asked["paraphrase"], "exact_match")
            columns["locality"] = _per_case(asked["neighbourhood"], "same_answer")
            columns["first answer"] = _per_case(
                asked["efficacy"].assign(first=asked["efficacy"]["rank_new"] == 1), "first"
            )
            for name, values in columns.items():
                if len(values):
                    table.setdefault(name, {}).update(_interval(values, state, confidence, seed))
            if all(len(columns[probe]) for probe in _PROBES):
                means = [float(columns[probe].mean()) for probe in _PROBES]
                table.setdefault("score", {})[state] = 100 * harmonic_mean(means)
        return pd.DataFrame(table).T

    def save(self, path: str | Path) -> Path:
        """Write the rows as CSV."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows.to_csv(path, index=False)
        return path

    @classmethod
    def join(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """Several evaluations as one, with their cases numbered on."""
        frames, start = [], 0
        for part in parts:
            frames.append(part.rows.assign(case=part.rows["case"] + start))
            start += int(part.rows["case"].to_numpy().max()) + 1
        return cls(rows=pd.concat(frames, ignore_index=True))


def evaluate(
    model: TransformerBridge,
    update: WeightUpdate,
    cases: Sequence[EditRequest | Fact],
    *,
    generate: bool = True,
    max_new_tokens: int = 16,
) -> Evaluation:
    """Ask the edited and the unedited model every prompt, paraphrase and neighbour of the cases.

    The model is left as it came, edited or not.

    Args:
        model: a raw-mode bridge.
        update: the edit to judge, applied to the model or not.
        cases: the edited facts, with their new targets.
        generate: whether to let the model speak as well (greedy, natural stop, exact match).
        max_new_tokens: at most, per generation.

    Raises:
        FactError: a case has no new target.
        UpdateError: the update does not fit the model.

    >>> evaluation = edit.evaluate(model, update, [request])
    >>> evaluation.rows["model"].unique().tolist()
    ['edited', 'unedited']
    """
    requests = _requests(cases)
    probes = [probe for index, request in enumerate(requests) for probe in _probes(index, request)]
    with without(model, update):
        plain, before = _ask(model, probes, generate, max_new_tokens)
    with within(model, update):
        edited, after = _ask(model, probes, generate, max_new_tokens)
    kl = (before.exp() * (before - after)).sum(-1).clamp_min(0)  # below 0 only by rounding
    same = before.argmax(-1) == after.argmax(-1)
    edited = edited.assign(model="edited", same_answer=same.numpy(), kl=kl.numpy())
    plain = plain.assign(model="unedited", same_answer=True, kl=0.0)
    return Evaluation(rows=pd.concat([edited, plain], ignore_index=True))


def evaluate_each(
    model: TransformerBridge,
    method: Method,
    cases: Sequence[EditRequest | Fact],
    *,
    generate: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Edit one case at a time on the unedited model, evaluate each edit, and put the results together.

    >>> evaluation = edit.evaluate_each(model, edit.ROME(layer=4), facts)       # doctest: +SKIP
    """
    parts = []
    for request in tqdm(_requests(cases), "edit and evaluate", disable=not progress, delay=1):
        update = method.fit(model, [request], progress=False)
        parts.append(evaluate(model, update, [request], generate=generate))
    return Evaluation.join(parts)


def _requests(cases: Sequence[EditRequest | Fact]) -> list[EditRequest]:
    if not cases:
        raise FactError("There are no cases to evaluate; give at least one fact with a new target.")
    return [case if isinstance(case, EditRequest) else EditRequest(case) for case in cases]


def _probes(case: int, request: EditRequest) -> list[dict[str, object]]:
    fact = request.fact
    prompts = [("efficacy", fact.text), *(("paraphrase", fact.fill(p)) for p in fact.paraphrases)]
    prompts += [("neighbourhood", text) for text in fact.neighbours]
    shared = {"case": case, "subject": fact.subject, "target": fact.target, "target_new": request.target_new}
    return [{**shared, "probe": probe, "prompt": prompt} for probe, prompt in prompts]


def _ask(
    model: TransformerBridge, probes: list[dict[str, object]], generate: bool, max_new_tokens: int
) -> tuple[pd.DataFrame, Tensor]:
    rows = pd.DataFrame(probes)
    prompts = rows["prompt"].tolist()
    targets = [*rows["target_new"], *rows["target"]]
    scores = score_targets(model, list(zip([*prompts, *prompts], targets, strict=True)))
    new, true = scores[: len(prompts)], scores[len(prompts) :]
    rows["logprob_new"] = [score.mean_logprob for score in new]
    rows["logprob_true"] = [score.mean_logprob for score in true]
    rows["probability_new"] = [float(torch.tensor(score.first_logprob).exp()) for score in new]
    rows["probability_true"] = [float(torch.tensor(score.first_logprob).exp()) for score in true]
    rows["rank_new"] = [score.rank for score in new]
    rows["rank_true"] = [score.rank for score in true]
    neighbour = rows["probe"] == "neighbourhood"
    wins = rows["logprob_new"] > rows["logprob_true"]
    # For a neighbour success means that the old object still wins; a tie is a failure either way.
    rows["success"] = wins.where(~neighbour, rows["logprob_true"] > rows["logprob_new"])
    if generate:
        rows["generation"] = generate_greedily(model, prompts, max_new_tokens=max_new_tokens)
        wanted = rows["target_new"].where(~neighbour, rows["target"])
        rows["exact_match"] = [exact_match(g, [w]) for g, w in zip(rows["generation"], wanted, strict=True)]
    return rows, next_token_logprobs(model, prompts)


def _per_case(rows: pd.DataFrame, column: str) -> pd.Series:
    if column not in rows or rows.empty:
        return pd.Series(dtype=float)
    return pd.Series(rows.groupby("case")[column].mean(), dtype=float)


def _interval(values: pd.Series, state: str, confidence: float, seed: int) -> dict[str, float]:
    if values.isin([0, 1]).all():
        exact = success_rate_ci(values.astype(bool).tolist(), confidence=confidence)
        low, high = exact.ci_low, exact.ci_high
    elif len(values) == 1:
        low = high = float("nan")
    else:
        sample, generator = torch.tensor(values.to_numpy()), torch.Generator().manual_seed(seed)
        bounds = bootstrap_ci(sample, confidence=confidence, n_resamples=2000, generator=generator)
        low, high = (float(bound) for bound in bounds)
    return {state: 100 * values.mean(), f"{state} low": 100 * low, f"{state} high": 100 * high}
