"""Whether localisation finds the fact or the entity: how alike the layers are that it finds for related prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from transformer_lens.model_bridge import TransformerBridge

from edit.evaluation.scoring import Pair, score_targets
from edit.location.layer_scores import traced_layers
from locate.contrast.bootstrap import mean_interval
from locate.errors import FactError, LocateError
from locate.facts.facts import Fact
from locate.facts.prompts import worded
from locate.neurons.asking import ask
from locate.results import Result
from locate.showing import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From a model and facts to effects by layer, larger where the fact is found.
Locator = Callable[[TransformerBridge, Sequence[Fact]], Float[np.ndarray, "fact layer"]]
GROUPS = ("paraphrases", "hops")


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalisationSimilarity(Result):
    """How alike the layers are that a way of locating finds.

    Attributes:
        data: by ``group`` (paraphrases of a fact; a fact and the hops of its chain) and ``k`` (how many layers):
            ``similarity``, the mean share of the k layers that two prompts of a group have in common (Sim_cand), and
            ``rsim``, each with ``_low`` and ``_high``; by ``k``, ``unrelated`` of two unrelated facts (Sim_all),
            likewise; by ``prompt`` and ``layer``, the ``effect`` of each, with the ``fact`` that it is of.
        info: how it was made; ``facts`` that each group has, and ``left_out``, by group or fact the reason.

    >>> similarity.rsim.dims
    ('group', 'k')
    """

    stored_as = "localisation_similarity"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.location.similarity_figures:plot_localisation_similarity"}

    info: dict[str, Any]

    @property
    def rsim(self) -> xr.DataArray:
        """RSim = max((Sim_cand − Sim_all) / (1 − Sim_all), 0), by group and k."""
        return self.data["rsim"]

    def plot(self, **options: Any) -> "Figure":
        """RSim curves; see ``edit.location.similarity_figures``."""
        return self.draw(**options)

    def _on(self) -> str:
        return ", ".join(f"{group} of {n} facts" for group, n in self.info["facts"].items())

    def _found(self) -> str:
        """Of the fewest layers, where that is known."""
        own: Any = self._rows().dropna(subset="rsim").iloc[0]
        return f"RSim of {own['group']} at k = {own['k']}: {spread(own['rsim'], own['rsim_low'], own['rsim_high'])}"

    def _rows(self) -> pd.DataFrame:
        return self.to_dataframe()

    def _tables(self) -> Sequence[xr.Dataset]:
        names = [name for name in self.data if set(self.data[name].dims) <= {"group", "k"}]
        return [self.data[names]]


def localisation_similarity(
    model: TransformerBridge,
    facts: Sequence[Fact],
    *,
    locator: Locator | None = None,
    most: int = 10,
    only_known: bool = True,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> LocalisationSimilarity:
    """Relative similarity of the layers found for related prompts (Zhang, Yao et al. 2024, §5).

    Sim of two prompts is the share of their k layers of the largest effect that they have in common. RSim sets the mean
    within groups against the mean over unrelated facts: 1 where related prompts have the same layers, 0 where they have
    no more in common than any two facts.

    Args:
        model: a raw-mode bridge.
        facts: with paraphrases, or with consequences, whose present answers are traced; a consequence without an answer
            before the edit cannot be a hop.
        locator: from the model and facts to effects, ``fact layer``; by default causal tracing at the subject's last
            token, of MLP outputs.
        most: the largest k; at most one less than there are layers.
        only_known: whether to leave out prompts that the model does not answer, of which there is nothing to find.
        confidence: of the bootstrap intervals over facts.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: whether to show a bar.
        options: of the default locator: ``kinds`` (one), ``window`` and ``corruption``.

    Raises:
        FactError: paraphrases do not share the answer of their fact; no two unrelated facts are left, or neither
            paraphrases nor hops.
        LocateError: k or effects that make no sense.

    >>> found = edit.localisation_similarity(model, facts[::120], most=4, only_known=False, corruption=swap)
    >>> found.data["unrelated"].sizes["k"]
    4
    """
    if not 1 <= most < model.cfg.n_layers:
        raise LocateError(
            f"most: must be from 1 to {model.cfg.n_layers - 1}, one less than the model has layers; found {most}."
        )
    if not facts:
        raise FactError("There are no facts; give at least two.")
    for fact in facts:
        ask(model, fact)  # whether all its prompts have one answer
    everything = [prompt for index, fact in enumerate(facts) for prompt in _prompts(index, fact)]
    prompts, left_out = _answered(model, everything) if only_known else (everything, {})
    groups = {group: _members(prompts, group) for group in GROUPS}
    for group, members in groups.items():
        if not members:
            left_out[group] = f"no fact has {group} besides its own prompt" + " that the model answers" * only_known
    if not any(groups.values()):
        raise FactError(
            f"Nothing to compare: {'; '.join(left_out[group] for group in GROUPS)}. Give facts with either."
        )
    if locator is None:
        effects = _traced(model, prompts, progress, **options)
    else:
        effects = np.asarray(locator(model, [one.fact for one in prompts]), dtype=float)
    if effects.shape != (len(prompts), model.cfg.n_layers):
        raise LocateError(
            f"locator: gave effects of shape {effects.shape}; expected {(len(prompts), model.cfg.n_layers)}, a row for "
            "each fact and a column for each layer."
        )
    tops = _tops(effects, most)
    first = [index for index, one in enumerate(prompts) if one.group is None]
    unrelated = _unrelated([prompts[index].fact for index in first])
    if not unrelated.any():
        raise FactError(f"No two of these {len(first)} facts are unrelated: of another subject, relation and answer.")
    between = _overlaps(tops[first], tops[first])
    each = {group: _within(tops, members, len(facts)) for group, members in groups.items()}
    owners = np.array([prompts[index].index for index in first])
    how: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    data = _measured(each, between, unrelated, owners, len(facts), how)
    data |= {"effect": (("prompt", "layer"), effects), "fact": ("prompt", [one.index for one in prompts])}
    coords = {
        "group": list(GROUPS), "k": np.arange(1, most + 1), "layer": np.arange(model.cfg.n_layers),
        "prompt": [one.fact.text for one in prompts],
    }  # fmt: skip
    counts = {group: len(members) for group, members in groups.items()}
    info = {
        "model": str(model.cfg.model_name), "facts": counts, "of": len(facts), "left_out": left_out, **how,
    }  # fmt: skip
    return LocalisationSimilarity(data=xr.Dataset(data, coords=coords), info=info)


def load_localisation_similarity(path: str | Path) -> LocalisationSimilarity:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_localisation_similarity(similarity.save("similarity.nc")).info["of"]
    3
    """
    return LocalisationSimilarity.load(path)


class _Prompt(NamedTuple):
    """A way to ask for a fact, or for a hop of its chain; its own prompt is of no group."""

    index: int
    group: str | None
    fact: Fact


def _prompts(index: int, fact: Fact) -> list[_Prompt]:
    bare = replace(fact, paraphrases=(), neighbours=(), other_relations=(), consequences=(), target_new=None)
    asked = [_Prompt(index, None, bare)]
    asked += [_Prompt(index, "paraphrases", replace(bare, prompt=text)) for text in fact.paraphrases]
    asked += [
        _Prompt(index, "hops", replace(bare, prompt=one.prompt, target=one.target_before)) for one in fact.consequences
    ]
    return asked


def _answered(model: TransformerBridge, prompts: Sequence[_Prompt]) -> tuple[list[_Prompt], dict[str, str]]:
    """Those that the model answers, of facts whose own prompt it does; why others are left out."""
    pairs: list[Pair] = []
    for one in prompts:
        text = worded(model, one.fact.text, chat=one.fact.chat)
        pairs.append((text, one.fact.target, True) if one.fact.joined else (text, one.fact.target))
    known = [score.rank == 1 for score in score_targets(model, pairs)]
    own = {one.index: answered for one, answered in zip(prompts, known, strict=True) if one.group is None}
    kept = [one for one, answered in zip(prompts, known, strict=True) if answered and own[one.index]]
    unknown = [one.fact.text for one in prompts if one.group is None and not own[one.index]]
    return kept, {text: "the model does not answer it" for text in unknown}


def _members(prompts: Sequence[_Prompt], group: str) -> dict[int, list[int]]:
    """By fact, its own prompt and those of a group, where there are any."""
    found: dict[int, list[int]] = {}
    for place, one in enumerate(prompts):
        if one.group in (None, group):
            found.setdefault(one.index, []).append(place)
    return {index: places for index, places in found.items() if len(places) > 1}


def _traced(
    model: TransformerBridge, prompts: Sequence[_Prompt], progress: bool, kinds: Sequence[str] = ("mlp",), **how: Any
) -> Float[np.ndarray, "prompt layer"]:
    found = traced_layers(model, [one.fact for one in prompts], kinds, progress=progress, **how)
    return found[kinds[0]]


def _tops(effects: Float[np.ndarray, "prompt layer"], most: int) -> Bool[np.ndarray, "prompt k layer"]:
    """Whether a layer is among the k of the largest effect; what is NaN comes last."""
    places = np.argsort(np.argsort(-np.where(np.isnan(effects), -np.inf, effects), axis=1, kind="stable"), axis=1)
    return places[:, None] < np.arange(1, most + 1)[:, None]


def _overlaps(
    one: Bool[np.ndarray, "one k layer"], other: Bool[np.ndarray, "other k layer"]
) -> Float[np.ndarray, "one other k"]:
    sizes = np.arange(1, one.shape[1] + 1)
    return np.einsum("ikl,jkl->ijk", one.astype(float), other.astype(float)) / sizes


def _within(
    tops: Bool[np.ndarray, "prompt k layer"], members: Mapping[int, Sequence[int]], n: int
) -> Float[np.ndarray, "fact k"]:
    """Of each fact, the mean over pairs of its group; NaN where it has none."""
    found = np.full((n, tops.shape[1]), np.nan)
    for index, places in members.items():
        own = _overlaps(tops[places], tops[places])
        found[index] = own[np.triu_indices(len(places), 1)].mean(0)
    return found


def _unrelated(facts: Sequence[Fact]) -> Bool[np.ndarray, "fact fact"]:
    def apart(one: Fact, other: Fact) -> bool:
        named = one.relation is not None and other.relation is not None
        same = one.relation == other.relation if named else one.prompt == other.prompt
        return one.subject != other.subject and one.target != other.target and not same

    return np.array([[apart(one, other) for other in facts] for one in facts])


def _measured(
    each: Mapping[str, Float[np.ndarray, "fact k"]], between: Float[np.ndarray, "own own k"],
    unrelated: Bool[np.ndarray, "own own"], owners: np.ndarray, n: int, how: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Means and RSim, with intervals whose resamples draw facts, and with each its group and its unrelated pairs."""
    tail = 50 * (1 - how["confidence"])
    draws = np.random.default_rng(how["seed"]).multinomial(n, np.full(n, 1 / n), size=how["resamples"]).astype(float)
    pairs = unrelated[..., None] * between
    apart = pairs.sum((0, 1)) / unrelated.sum()
    weights = draws[:, owners]
    with np.errstate(invalid="ignore", divide="ignore"):
        of_pairs = np.einsum("ri,ijk,rj->rk", weights, pairs, weights, optimize=True)
        drawn_apart = of_pairs / np.einsum("ri,ij,rj->r", weights, unrelated.astype(float), weights)[:, None]
        low, high = np.nanpercentile(drawn_apart, [tail, 100 - tail], axis=0)
        data: dict[str, Any] = {"unrelated": ("k", apart), "unrelated_low": ("k", low), "unrelated_high": ("k", high)}
        tables: dict[str, list[np.ndarray]] = {}
        for values in each.values():
            there = ~np.isnan(values)
            mean, bottom, top = mean_interval(values, **how)
            drawn = (draws @ np.where(there, values, 0)) / (draws @ there.astype(float))
            relative = _rsim(drawn, drawn_apart)
            enough = there[:, 0].sum() > 1
            bounds = (
                np.nanpercentile(relative, [tail, 100 - tail], axis=0) if enough else np.full((2, len(apart)), np.nan)
            )
            rows = {"similarity": mean, "similarity_low": bottom, "similarity_high": top, "rsim": _rsim(mean, apart),
                    "rsim_low": bounds[0], "rsim_high": bounds[1]}  # fmt: skip
            for name, row in rows.items():
                tables.setdefault(name, []).append(row)
    return data | {name: (("group", "k"), np.stack(rows)) for name, rows in tables.items()}


def _rsim(candidates: np.ndarray, unrelated: np.ndarray) -> np.ndarray:
    return np.maximum((candidates - unrelated) / (1 - unrelated), 0)
