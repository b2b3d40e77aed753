"""Re-use of mediators: whether what carries an edit to its own prompt's answer carries it to other answers too."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.names import DIRECTIONS, HEAD, HEADS
from edit.propagation.asking import Asked, asked_of
from edit.propagation.mediation import mediating_hooks, reached
from edit.propagation.propagation import Propagation
from edit.propagation.reused import MediatorReuse
from edit.propagation.sides import Changed, Sides, sides_of
from edit.requests.probes import REACHED, Probed, named_roles
from locate.contrast.contrast import Contrast
from locate.contrast.sweep import exchange, sweep, sweep_heads
from locate.errors import FactError, SiteError, UpdateError
from locate.model.weights import hf_parameters
from locate.names import DEFAULT_BUDGET
from locate.sites.places import layers_with
from locate.sites.site import Site, hook_name

_MODULES = {"mlp": "mlp", HEAD: "attn"}


def mediator_reuse(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    top: int | float = 0.02,
    flow: Propagation | None = None,
    roles: Sequence[str] | str = REACHED,
    samples: int = 20,
    seed: int = 0,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> MediatorReuse:
    """Measure whether what carries an edit to its own prompt's answer carries it to the other probes' answers.

    Mediators are heads and MLPs whose outputs the edit changes and whose own weights it does not. Each takes its edited
    value in the base model by itself, at all positions, on every probe. Then the edit prompt's largest do so together,
    and lose it together in the edited model, against random sets of as many heads and as many MLPs. All is exact.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build; or their ``Sides``.
        probes: one of them of role ``edit``; or a request whose fact provides them.
        top: how many of the edit prompt's mediators are taken together, or their share (below 1).
        flow: from ``edit.mediate`` of the same change and probes with ``heads``, whose effects are taken from it.
        roles: of the probes that are looked at.
        samples: how many random sets.
        seed: of the random sets.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probe is the edit's own prompt, or none is beside it; or a flow that has not all of them.
        SiteError: fewer than two components only pass the change on, or there are not so many; no random sets.
        UpdateError: the update does not fit the model, or changes nothing or not the edit's own answer; or a flow of
            another one.
        ModelError: the other model is of another build.

    >>> found = edit.mediator_reuse(model, update, request, top=5, samples=4)
    >>> int(found.data["chosen"].sum()), found.table()["role"].tolist()[:2]
    (5, ['edit', 'paraphrase'])
    """
    sides = sides_of(model, change)
    asked = _wanted(asked_of(sides, probes), named_roles(roles))
    if samples < 1:
        raise SiteError(f"samples: must be 1 or more, found {samples}.")
    keep = mediating_hooks(model, ["mlp", HEADS])
    mediators: list[Site] = []
    sets: list[list[int]] = []
    rows, effects, together = [], [], []
    for one in tqdm(asked, "re-use of mediators", disable=not progress, delay=1):
        contrast = one.contrast(sides, keep=keep, budget=budget)
        rows.append(one.totals(model, contrast.source, contrast.target))
        if not rows[0]["total_effect"]:
            raise UpdateError(
                f"The change by {sides.described['method']} does nothing to the answer of {one.probe.text!r}, so "
                "nothing carries it there. Give the prompt that was edited as the probe of role 'edit'."
            )
        if not mediators:
            mediators = mediators_of(sides, contrast)
        heads = None if flow is None else _heads_of(flow, rows[-1])
        effects.append(_effects(contrast.reversed(), mediators, heads))
        if not sets:
            towards = effects[0] * np.sign(rows[0]["total_effect"])
            sets = _sets(mediators, towards, _how_many(top, len(mediators)), samples, seed)
        together.append(_together(contrast, [[mediators[place] for place in places] for places in sets]))
    joint = np.stack(together)
    data = xr.Dataset(
        {
            "effect": (("probe", "mediator"), np.stack(effects)),
            "chosen": ("mediator", np.isin(np.arange(len(mediators)), sets[0])),
            "joint": (("probe", "direction"), joint[..., 0]),
            "random": (("probe", "direction", "sample"), joint[..., 1:]),
        },
        coords={
            "probe": np.arange(len(asked)), "direction": list(DIRECTIONS),
            "kind": ("mediator", [one.kind for one in mediators]),
            "layer": ("mediator", [one.layer for one in mediators]),
            "head": ("mediator", [-1 if one.head is None else one.head for one in mediators]),
        },
    )  # fmt: skip
    info = {
        "model": str(model.cfg.model_name), "method": sides.described["method"], "layers": list(sides.layers),
        "samples": samples, "seed": seed,
    }  # fmt: skip
    return MediatorReuse(data=data, totals=pd.DataFrame(rows), info=info)


def mediators_of(sides: Sides, contrast: Contrast) -> list[Site]:
    """Heads and MLPs whose outputs differ in a contrast's runs, and whose own weights do not.

    Raises:
        SiteError: there are fewer than two.

    >>> from edit.propagation.asking import Asked
    >>> sides, probe = Sides.of(model, update), edit.probes_for(request)[0]
    >>> contrast = Asked.of(model, probe).contrast(sides, keep=mediating_hooks(model, ["mlp", "heads"]))
    >>> min(site.layer for site in mediators_of(sides, contrast))
    5
    """
    model = sides.model
    touched = {id(one) for name, one in hf_parameters(model).items() if name in sides.changed}
    found: list[Site] = []
    for kind, part in _MODULES.items():
        for layer in layers_with(model, kind):
            module = getattr(model.blocks[layer], part, None)
            if module is not None and any(id(one) in touched for one in module.parameters()):
                continue
            one, other = (run.kept[hook_name(kind, layer)] for run in (contrast.target, contrast.source))
            if kind == "mlp":
                found += [Site("mlp", layer=layer)] if bool((one != other).any()) else []
            else:
                apart = (rearrange(one != other, "row position head d_head -> head (row position d_head)")).any(-1)
                found += [Site(HEAD, layer=layer, head=head) for head in apart.nonzero().flatten().tolist()]
    if len(found) < 2:
        where = f"in layers {', '.join(map(str, sides.layers))}" if sides.layers else "outside of the layers"
        raise SiteError(
            f"{len(found)} heads and MLPs only pass the change on: it is {where}, and what computes with changed "
            "weights does not count. Give a change of fewer weights, or of earlier layers."
        )
    return found


def _wanted(asked: Sequence[Asked], roles: Sequence[str]) -> list[Asked]:
    """The edit's own prompt first, and others of these roles."""
    own = [one for one in asked if one.probe.role == "edit"]
    if not own:
        raise FactError(
            "No probe is the edit's own prompt, whose mediators are to be looked for; give one of role edit."
        )
    others = [one for one in asked if one.probe.role in roles and one.probe.role != "edit"]
    if not others:
        raise FactError(
            f"There is no probe beside the edit's own prompt that its mediators could carry the edit to; give some of "
            f"roles {', '.join(role for role in roles if role != 'edit') or '…'}."
        )
    return [own[0], *others]


def _heads_of(flow: Propagation, row: dict[str, Any]) -> Float[np.ndarray, "layer head"]:
    """What each head gains on a probe, by a flow."""
    table: Any = flow.totals
    same = table.index[(table["text"] == row["text"]) & (table["new"] == row["new"]) & (table["old"] == row["old"])]
    if not len(same) or bool(flow.heads.sel(probe=same[0]).isnull().all()):
        raise FactError(
            f"flow: has no heads' effects on {row['text']!r}; give the flow of these probes, or leave it out."
        )
    if not np.isclose(table.loc[same[0], "total_effect"], row["total_effect"], rtol=1e-3, atol=1e-3):
        raise UpdateError(
            f"flow: is of another change: its total effect on {row['text']!r} is "
            f"{table.loc[same[0], 'total_effect']:.3f}, that of this one {row['total_effect']:.3f}."
        )
    return flow.heads.sel(probe=same[0], direction="gained").transpose("layer", "head").values


def _effects(
    contrast: Contrast, mediators: Sequence[Site], heads: Float[np.ndarray, "layer head"] | None
) -> Float[np.ndarray, "mediator"]:
    """What the base model gains by each mediator's edited value at all positions."""
    layers, measure, own = reached(contrast), contrast.measure(), contrast.ends().target.mean()
    found = sweep(contrast, ["mlp"], measure, positions=[None], layers=layers)[0, 0].cpu() - own
    of = {("mlp", -1, layer): float(value) for layer, value in zip(layers, found.mean((-2, -1)), strict=True)}
    if heads is None:
        swept = sweep_heads(contrast, measure, positions=[None], layers=layers)[0].cpu() - own
        heads = np.concatenate([np.zeros((layers.start, swept.shape[1])), swept.mean((-2, -1)).numpy()])
    return np.array([
        of["mlp", -1, one.layer] if one.head is None else heads[one.layer, one.head] for one in mediators
    ])  # fmt: skip


def _how_many(top: int | float, n: int) -> int:
    """As many as asked for, at least one."""
    share = isinstance(top, float) and 0 < top < 1
    wanted = max(1, round(top * n)) if share else top
    if not isinstance(wanted, int) or not 1 <= wanted < n:
        raise SiteError(f"top: {n} heads and MLPs pass the change on; give 1 to {n - 1}, or a share, found {top}.")
    return wanted


def _sets(
    mediators: Sequence[Site], effects: Float[np.ndarray, "mediator"], k: int, samples: int, seed: int
) -> list[list[int]]:
    """The k of the largest effect; and random ones, as many of each kind."""
    top = np.sort(np.argsort(-effects, kind="stable")[:k])
    kinds, draw = np.array([one.kind for one in mediators]), np.random.default_rng(seed)
    every = [(np.flatnonzero(kinds == kind), int((kinds[top] == kind).sum())) for kind in _MODULES]
    drawn = [np.sort(np.concatenate([draw.choice(own, n, replace=False) for own, n in every])) for _ in range(samples)]
    return [one.tolist() for one in (top, *drawn)]


def _together(contrast: Contrast, sets: Sequence[Sequence[Site]]) -> Float[np.ndarray, "direction set"]:
    """What sets of mediators lose and gain when all of a set change places at once."""
    places = [_places(one) for one in sets]
    found = []
    for way, sign in ((contrast, 1), (contrast.reversed(), -1)):
        own = way.ends().target.mean(0)
        found.append(sign * (own - exchange(way, places, way.measure()).cpu().mean(1))[:, 0].numpy())
    return np.stack(found)


def _places(sites: Sequence[Site]) -> dict[str, list[int] | None]:
    places: dict[str, list[int] | None] = {}
    for one in sites:
        own = places.setdefault(one.hook, None if one.head is None else [])
        if own is not None and one.head is not None:
            own.append(one.head)
    return places
