"""Which states carry a change: each of them exchanged in turn between base and edited model, both ways, exactly."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.names import DIRECTIONS, HEAD, HEADS
from edit.propagation.asking import asked_of
from edit.propagation.propagation import Propagation, check_mediator
from edit.propagation.sides import Changed, sides_of
from edit.requests.probes import REACHED, Probed, named_roles
from locate.contrast.contrast import Contrast
from locate.contrast.sweep import kept_hooks, sweep, sweep_heads
from locate.errors import SiteError
from locate.names import DEFAULT_BUDGET
from locate.sites.places import hooks_of
from locate.sites.site import KINDS, Kind

MEDIATORS = (*KINDS, HEADS)


def mediate(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    roles: Sequence[str] | str = REACHED,
    kinds: Sequence[str] | str | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Propagation:
    """Measure how an edit changes each probe's answer, and which states carry the change.

    Base and edited model read the same tokens, so each state has a base and an edited value. Every state
    from the edited layer on is exchanged in turn, exactly: its base value put into the edited model
    (effect lost), and its edited value into the base model (effect gained).

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build, such as a fine-tune of it.
        probes: what to ask (see ``probes_for``), or a request whose fact provides the probes. Where an old answer is
            not known, it is the base model's own.
        roles: of the probes whose mediation is measured (``"consequence"`` for any number of hops); totals are
            measured for all. By default those whose answers the edit should bring.
        kinds: which states to exchange: ``resid``, ``mlp``, ``attn`` at each position; ``heads``, each head's output at
            all positions at once; ``attn_head``, the same at each position, which takes the longest. By default all
            but the last, of those that the model has.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probes, or one whose answers no token tells apart, or that the two models spell otherwise.
        UpdateError: the update does not fit the model, is not one of its weights, or changes nothing.
        ModelError: the other model is of another build.

    >>> flow = edit.mediate(model, update, request, roles="edit", kinds=["mlp"])
    >>> bool(flow.totals.loc[0, "total_effect"] != 0)
    True
    """
    sides = sides_of(model, change)
    asked = asked_of(sides, probes)
    named = mediators(model) if kinds is None else [kinds] if isinstance(kinds, str) else kinds
    kinds = tuple(dict.fromkeys(check_mediator(kind) for kind in named))
    roles = named_roles(roles)
    keep = mediating_hooks(model, kinds)
    rows, effects = [], []
    followed = sum(one.probe.role in roles for one in asked)
    total = len(asked) + followed * 2 * _groups(kinds)
    with tqdm(total=total, desc="propagation", unit="sweep", disable=not progress, delay=1) as bar:
        for one in asked:
            contrast = one.contrast(sides, keep=keep if one.probe.role in roles else (), budget=budget)
            rows.append(one.totals(model, contrast.source, contrast.target))
            bar.update()
            if one.probe.role in roles:
                effects.append(mediation(contrast, kinds, bar.update).expand_dims(probe=[len(rows) - 1]))
    longest = max(one.length for one in asked)
    every = {"probe": np.arange(len(asked)), "position": np.arange(longest)}
    data = xr.concat(effects, "probe", join="outer") if effects else nothing(model, kinds)
    return Propagation(
        totals=pd.DataFrame(rows),
        data=data.reindex(every),
        tokens=tuple(one.tokens(model) for one in asked),
        layers=sides.layers,
        info={
            "model": str(model.cfg.model_name),
            "method": sides.described["method"],
            "kinds": list(kinds),
            "roles": list(roles),
        },
    )


def mediators(model: TransformerBridge) -> tuple[str, ...]:
    """The kinds of state that are exchanged by default: those that the model has.

    >>> mediators(model)
    ('resid', 'mlp', 'attn', 'heads')
    """
    found = []
    for kind in MEDIATORS:
        with suppress(SiteError):
            mediating_hooks(model, [kind])
            found.append(kind)
    return tuple(found)


def mediating_hooks(model: TransformerBridge, kinds: Sequence[str]) -> list[str]:
    """The hook points that both runs must keep.

    >>> mediating_hooks(model, ["mlp"])[0]
    'blocks.0.hook_mlp_out'
    """
    return [*kept_hooks(model, _plain(kinds)), *(hooks_of(model, HEAD) if {HEAD, HEADS} & set(kinds) else [])]


def reached(contrast: Contrast) -> range:
    """The layers behind which the two runs can differ: from the first block that is not shared by both.

    >>> from edit.propagation.asking import Asked
    >>> from edit.propagation.sides import Sides
    >>> probe = edit.probes_for(request)[0]
    >>> reached(Asked.of(model, probe).contrast(Sides.of(model, update)))
    range(4, 9)
    """
    one, other = contrast.target.residuals, contrast.source.residuals
    n = contrast.target.n_layers
    if one[0] is not other[0]:
        return range(n)
    return range(next((layer for layer in range(n) if one[layer + 1] is not other[layer + 1]), n), n)


def mediation(
    contrast: Contrast, kinds: Sequence[str] = MEDIATORS, swept: Callable[[], object] = lambda: None
) -> xr.Dataset:
    """How much of the contrast's difference each state carries by itself.

    Args:
        contrast: edited (the target) against base, whose runs have kept ``mediating_hooks``.
        kinds: of states; ``heads`` is each head's output at all positions at once, ``attn_head`` at each by itself.
        swept: called after each sweep.

    Returns:
        ``mediation`` (dims ``direction, kind, position, layer``), ``heads`` (dims ``direction, layer, head``) and
        ``attn_head`` (dims ``direction, position, layer, head``), in units of the metric: ``lost`` where the edited
        model's state takes its base value, ``gained`` where the base model's takes its edited one. Zero before the
        first difference; NaN in layers that have no such state.

    >>> from edit.propagation.asking import Asked
    >>> from edit.propagation.sides import Sides
    >>> probe = edit.probes_for(request)[0]
    >>> keep = mediating_hooks(model, ["mlp"])
    >>> contrast = Asked.of(model, probe).contrast(Sides.of(model, update), keep=keep)
    >>> mediation(contrast, ["mlp"])["mediation"].sizes["layer"]
    9
    """
    plain, positions = _plain(kinds), range(contrast.target.tokens.shape[1])
    n, layers = contrast.target.n_layers, reached(contrast)
    parts: list[list[Tensor]] = [[], [], []]
    for direction in (contrast, contrast.reversed()):
        sign = 1 if direction is contrast else -1
        measure, own = direction.measure(), direction.ends().target.mean(0)
        if plain:
            found = sweep(direction, plain, measure, positions=positions, layers=layers)  # kind position layer row 1
            parts[0].append(_whole(sign * (own - found.cpu().mean(-2))[..., 0], layers, axis=2))
            swept()
        for index, (kind, places) in enumerate({HEADS: [None], HEAD: positions}.items(), start=1):
            if kind in kinds:
                found = sweep_heads(direction, measure, positions=places, layers=layers)  # position layer head row 1
                parts[index].append(_whole(sign * (own - found.cpu().mean(-2))[..., 0], layers, axis=1))
                swept()
    coords = {"direction": list(DIRECTIONS), "position": np.arange(len(positions)), "layer": np.arange(n)}
    data = xr.Dataset(coords=coords)
    if plain:
        data = data.assign_coords(kind=list(plain))
        data["mediation"] = ("direction", "kind", "position", "layer"), _array(parts[0])
    if HEADS in kinds:
        data[HEADS] = ("direction", "layer", "head"), _array(parts[1])[:, 0]
    if HEAD in kinds:
        data[HEAD] = ("direction", "position", "layer", "head"), _array(parts[2])
    return data


def _groups(kinds: Sequence[str]) -> int:
    """Sweeps in each direction."""
    return bool(_plain(kinds)) + (HEADS in kinds) + (HEAD in kinds)


def _plain(kinds: Sequence[str]) -> list[Kind]:
    return [kind for kind in KINDS if kind in kinds]


def nothing(model: TransformerBridge, kinds: Sequence[str]) -> xr.Dataset:
    """The same of no probe.

    >>> nothing(model, ["mlp"])["mediation"].sizes["probe"]
    0
    """
    coords = {"direction": list(DIRECTIONS), "position": [], "layer": np.arange(model.cfg.n_layers)}
    data = xr.Dataset(coords={"probe": np.arange(0), **coords})
    if plain := _plain(kinds):
        data = data.assign_coords(kind=plain)
        data["mediation"] = (
            ("probe", "direction", "kind", "position", "layer"),
            np.zeros((0, 2, len(plain), 0, model.cfg.n_layers), np.float32),
        )
    if HEADS in kinds:
        shape = 0, 2, model.cfg.n_layers, model.cfg.n_heads
        data[HEADS] = ("probe", "direction", "layer", "head"), np.zeros(shape, np.float32)
    if HEAD in kinds:
        shape = 0, 2, 0, model.cfg.n_layers, model.cfg.n_heads
        data[HEAD] = ("probe", "direction", "position", "layer", "head"), np.zeros(shape, np.float32)
    return data


def _whole(effects: Float[Tensor, "..."], layers: range, *, axis: int) -> Float[Tensor, "..."]:
    """With the layers before the first difference, where nothing is carried."""
    shape = list(effects.shape)
    shape[axis] = layers.start
    return torch.cat([effects.new_zeros(shape), effects], axis)


def _array(parts: Sequence[Float[Tensor, "..."]]) -> np.ndarray:
    return torch.stack(list(parts)).float().numpy()
