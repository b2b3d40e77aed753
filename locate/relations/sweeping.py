"""Linear relations after every layer, fitted together and tried on other subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from locate.facts.facts import Fact
from locate.facts.prompts import token_strings
from locate.facts.relations import Relation, facts_of
from locate.names import DEFAULT_BUDGET
from locate.relations.asking import Asked, Split, split
from locate.relations.judging import EDITS, judge
from locate.relations.linearity import RelationLinearity
from locate.relations.maps import MAPS, Estimate, check_form, check_layers, estimate


def relation_linearity(
    model: TransformerBridge,
    facts: Relation | Sequence[Fact],
    *,
    layers: Sequence[int] | None = None,
    to_layer: int | None = None,
    n: int = 8,
    beta: float = 2.25,
    rank: int | None = None,
    knows: bool = True,
    seed: int = 0,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> RelationLinearity:
    """Fit a linear relation after every layer, and try each on the subjects that it was not fitted to.

    See ``LinearRelation`` for what is fitted. All layers come from the same backward passes, which cost what the lowest
    of them does.

    Args:
        model: a raw-mode bridge.
        facts: of one relation.
        layers: after which the subject's state is taken; by default all below ``to_layer``.
        to_layer: after which the object's state is; by default the last.
        n: how many examples the maps are fitted to.
        beta: the scale of the Jacobian in the maps.
        rank: of the inverse that edits are made by; by default 100, or the width of the model's states if less.
        knows: leave out subjects of which the model does not say the object's first token after ``n`` examples.
        seed: of the examples, and of which other subject each is edited to.
        budget: the most tokens that one pass of the model holds at a time.
        progress: whether to show bars on anything longer than a second.

    Raises:
        FactError: the facts are of several relations, or too few are usable.
        SiteError: a layer that the model does not have, or that is not below ``to_layer``.
        ModelError: the architecture cannot be resumed.
        LocateError: a rank above the width of the model's states, or a scale that is not positive.

    >>> found = locate.relation_linearity(model, capitals, layers=[3, 5], n=3, knows=False, progress=False)
    >>> found.faithfulness.sel(map="linear relation").shape
    (2,)
    """
    found = fit_maps(
        model, facts, layers, to_layer, n=n, beta=beta, rank=rank, knows=knows, seed=seed, budget=budget,
        progress=progress,
    )  # fmt: skip
    asked = Asked.of(model, found.parted.held_out, found.parted.examples)
    return linearity_of(
        model, asked, found.estimates, found.to_layer, beta=beta, rank=found.rank, seed=seed, budget=budget,
        progress=progress, about=describe(model, found.parted),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What maps are made of.

    Attributes:
        parted: the facts that are examples, and those that are held out.
        estimates: by layer of the subjects' states.
        to_layer: of the objects' states.
        rank: of the inverse.
    """

    parted: Split
    estimates: Mapping[int, Estimate]
    to_layer: int
    rank: int


def fit_maps(
    model: TransformerBridge, facts: Relation | Sequence[Fact], layers: Sequence[int] | None, to_layer: int | None, *,
    n: int, beta: float, rank: int | None, knows: bool, seed: int, budget: int, progress: bool,
) -> Fitted:  # fmt: skip
    """The estimates of some layers, by default all below ``to_layer``; arguments and errors as ``relation_linearity``.

    >>> options = {"n": 2, "beta": 1.0, "rank": 3, "knows": False, "seed": 0, "budget": 4096, "progress": False}
    >>> list(fit_maps(model, capitals, [3, 5], None, **options).estimates)
    [3, 5]
    """
    above = int(model.cfg.n_layers) - 1 if to_layer is None else to_layer
    chosen = list(range(above) if layers is None else layers)
    wanted = check_layers(model, chosen, to_layer)
    rank, given = check_form(model, beta, rank), facts_of(facts)
    parted = split(model, given, n, knows=knows, seed=seed, budget=budget)
    found = estimate(model, parted.examples, chosen, wanted, budget=budget, progress=progress)
    return Fitted(parted=parted, estimates=found, to_layer=wanted, rank=rank)


def describe(model: TransformerBridge, parted: Split) -> dict[str, Any]:
    """Of a result, which model and facts it is about."""
    return {
        "model": str(model.cfg.model_name), "relation": parted.examples[0].relation or parted.examples[0].prompt,
        "examples": [_kept(fact) for fact in parted.examples], "held_out": [_kept(fact) for fact in parted.held_out],
        "given": parted.given, "known": parted.known,
    }  # fmt: skip


def _kept(fact: Fact) -> dict[str, Any]:
    """What of a fact is asked."""
    return {name: getattr(fact, name) for name in ("prompt", "subject", "target", "joined", "chat", "relation")}


def linearity_of(
    model: TransformerBridge, asked: Asked, estimates: Mapping[int, Estimate], to_layer: int, *, beta: float, rank: int,
    seed: int, budget: int, progress: bool, about: dict[str, Any],
) -> RelationLinearity:  # fmt: skip
    """The result of trying maps and edits on questions."""
    verdict = judge(
        model, asked, estimates, to_layer, beta=beta, rank=rank, seed=seed, budget=budget, progress=progress
    )
    data = xr.Dataset(
        {"faithful": (("layer", "map", "subject"), verdict.faithful),
         "causal": (("layer", "edit", "subject"), verdict.causal), "other": ("subject", verdict.others)},
        coords={"layer": list(estimates), "map": list(MAPS), "edit": list(EDITS),
                "subject": [fact.subject for fact in asked.facts]},
    )  # fmt: skip
    said = [_text(model, token) for token in verdict.answers]
    info = {
        **about, "to_layer": to_layer, "beta": beta, "rank": rank, "seed": seed, "answers": said,
    }  # fmt: skip
    return RelationLinearity(data=data, info=info)


def _text(model: TransformerBridge, token: int) -> str:
    return token_strings(model, torch.tensor([token]))[0]
