"""Attention patterns of two models: whom they are about, and what becomes of the answer where they are exchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.names import DIRECTIONS
from edit.propagation.asking import Asked
from edit.requests.probes import named_roles
from locate.contrast.branches import Graft
from locate.contrast.contrast import Contrast
from locate.engine import check_live
from locate.errors import FactError, LocateError, ModelError, SiteError
from locate.facts.prompts import encode_with_span
from locate.facts.subjects import AbsentSubject, find_subject
from locate.sites.places import layers_with
from locate.sites.table import hook_name

# What the last token may attend to: the first token is no part of the subject here, even where the subject begins it.
KEYS = ("subject", "first", "other")
_PATTERN = "attn_head_pattern"
ALL = -1


def pattern_hooks(model: TransformerBridge) -> list[str]:
    """The hook points of every layer's attention patterns.

    Raises:
        ModelError: a layer has none.
        SiteError: the model shows them after they were used.

    >>> pattern_hooks(model)[0]
    'blocks.0.attn.hook_pattern'
    """
    try:
        having = layers_with(model, _PATTERN)
    except SiteError:
        having = ()
    if missing := [str(layer) for layer in range(model.cfg.n_layers) if layer not in having]:
        raise ModelError(
            f"{type(model.original_model).__name__} has no attention patterns in layers {', '.join(missing)}, so what "
            "attention does for an edit cannot be told from what these layers do. Use edit.mediate, whose states all "
            "models have."
        )
    names = [hook_name(_PATTERN, layer) for layer in having]
    check_live(model, names[0])
    return names


def subject_tokens(
    model: TransformerBridge, asked: Sequence[Asked], subject: str, roles: Sequence[str] | str
) -> tuple[list[Asked], list[tuple[int, int]], dict[str, str]]:
    """The probes of some roles that name a subject, where it stands in each, and why the others are left out.

    Raises:
        FactError: an unknown role; or all are left out.
    """
    roles = named_roles(roles)
    found, spans, left_out = [], [], {}
    for one in asked:
        text = one.prompt.text
        if one.probe.role not in roles:
            left_out[text] = f"of role {one.probe.role}"
            continue
        try:
            start, stop = encode_with_span(model, text, *find_subject(text, subject)).subject_span
        except AbsentSubject:
            left_out[text] = f"does not name {subject}"
            continue
        if stop == 1:
            left_out[text] = f"{subject} is its first token, where attention rests whatever is asked"
            continue
        found.append(one)
        spans.append((max(start, 1), stop))
    if not found:
        why = "; ".join(f"{text!r} {reason}" for text, reason in left_out.items())
        raise FactError(f"No probe of role {' or '.join(roles)} can be asked what it attends to {subject!r} by: {why}.")
    return found, spans, left_out


def on_keys(last: Float[Tensor, "layer head key"], span: tuple[int, int]) -> Float[Tensor, "group layer head"]:
    """Attention to the tokens of a subject, to the first one, and to all others."""
    subject, first = last[..., slice(*span)].sum(-1), last[..., 0]
    return torch.stack([subject, first, last.sum(-1) - subject - first])


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Which sets of heads are exchanged together.

    Attributes:
        counts: how many heads.
        random: how many sets of each size are taken at random.
        seed: of these.
        queries: ``all`` tokens' patterns, or the ``last`` one's.
    """

    counts: tuple[int, ...]
    random: int
    seed: int
    queries: str

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.counts):
            raise LocateError(f"masked: give numbers of heads from 1 on, found {list(self.counts)}.")
        if self.queries not in ("all", "last"):
            raise LocateError(f"queries: hold those of 'all' tokens or of the 'last', found {self.queries!r}.")
        if self.random < 0:
            raise LocateError(f"random: must be 0 or more sets, found {self.random}.")

    def of(
        self, drift: Float[np.ndarray, "layer head"], there: Bool[np.ndarray, "layer head"]
    ) -> dict[tuple[int, int], dict[int, list[int]]]:
        """By mask and sample, the heads of each layer: those that drifted most, and as many at random."""
        heads = np.argwhere(there)
        order = np.argsort(-drift[there], kind="stable")
        generator = np.random.RandomState(self.seed)
        found = {(ALL, 0): heads}
        for count in self.counts:
            found[count, 0] = heads[order[:count]]
            for sample in range(1, self.random + 1):
                found[count, sample] = heads[generator.permutation(len(heads))[:count]]
        return {which: _by_layer(own) for which, own in found.items() if len(own)}


def exchanged(
    contrast: Contrast, asked: Asked, patterns: Sequence[str], drift: Float[np.ndarray, "layer head"], sets: Sets
) -> xr.Dataset:
    """What both models answer, and what becomes of it where one takes the other's patterns in sets of heads.

    Returns:
        ``ends`` (dim ``side``), ``masked`` (dims ``direction, mask, sample``), and ``old_back`` (dim ``mask``).
    """
    pairs = [(contrast.source.kept[name], contrast.target.kept[name]) for name in patterns]
    there = torch.stack([(one != other).flatten(2).any(-1)[0] for one, other in pairs]).cpu().numpy()
    chosen = sets.of(drift, there)
    counts = [*sets.counts, ALL]
    values = np.full((len(DIRECTIONS), len(counts), sets.random + 1), np.nan)
    ends = [asked.answers(run.logits[0])["logit_diff"] for run in (contrast.source, contrast.target)]
    for index, direction in enumerate((contrast, contrast.reversed()) if chosen else ()):
        whole = sets.queries == "all"
        position = direction.first if whole else direction.target.tokens.shape[1] - 1
        graft = Graft(direction, position, everywhere=whole)
        logits = direction.target.resume(position, [graft.attending(heads) for heads in chosen.values()])
        for (count, sample), row in zip(chosen, logits, strict=True):
            values[index, counts.index(count), sample] = asked.answers(row)["logit_diff"]
    data: dict[str, Any] = {
        "ends": ("side", ends), "masked": (("direction", "mask", "sample"), values),
        "old_back": ("mask", values[0, :, 0] < 0),
    }  # fmt: skip
    coords = {
        "side": ["base", "edited"], "direction": list(DIRECTIONS), "mask": counts, "sample": range(sets.random + 1),
    }  # fmt: skip
    return xr.Dataset(data, coords=coords)


def _by_layer(heads: np.ndarray) -> dict[int, list[int]]:
    return {int(layer): sorted(heads[heads[:, 0] == layer, 1].tolist()) for layer in np.unique(heads[:, 0])}
