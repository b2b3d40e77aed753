"""How an edit moves attention, and how much of it is undone where attention is held as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import spearmanr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.names import DIRECTIONS, HEADS
from edit.propagation.asking import asked_of
from edit.propagation.attending import KEYS, Sets, exchanged, on_keys, pattern_hooks, subject_tokens
from edit.propagation.mediation import mediating_hooks, mediation
from edit.propagation.sides import Changed, sides_of
from edit.requests.probes import REACHED, Probed, as_probed
from edit.requests.requests import EditRequest
from locate.contrast.contrast import Contrast
from locate.errors import FactError, LocateError, UpdateError
from locate.names import DEFAULT_BUDGET
from locate.results import Result, place_of_largest
from locate.showing import first_of
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a head's drift is, where it is no single key's: half of what all keys gain and lose.
TOTAL = "total"


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionDrift(Result):
    """What an edit does to attention, and what attention does for the edit.

    Attributes:
        data: ``base`` and ``edited`` (dims ``probe, key, layer, head``): attention from the last token to the
            ``subject``, to the ``first`` token (where attention rests whatever is asked; it counts as that where it is
            the subject's too) and to all ``other`` ones; ``total`` (dims ``probe, layer, head``), the total variation
            between the two. ``effect`` (dims ``probe, direction, layer, head``): what the head's output carries, in
            logits, where that was measured. ``masked`` (dims ``probe, direction, mask, sample``): the logit difference
            o* − o with patterns exchanged: ``lost``, base patterns held in the edited model, or ``gained``, edited
            ones in the base model. A ``mask`` is so many heads (−1 for all); sample 0 is of those that drifted most,
            the others are of heads taken at random. ``ends`` (dims ``probe, side``): of base and edited model.
            ``old_back`` (dims ``probe, mask``): whether o is ahead of o* with base patterns held.
        probes: role and text of each, and its answers ``old`` and ``new``.
        left_out: the probes that have no place here, and why.
        info: how it was made.

    >>> drifted.best().kind, drifted.data["base"].dims
    ('attn_head', ('probe', 'key', 'layer', 'head'))
    """

    stored_as = "attention_drift"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.attention_figures:plot_attention_drift"}

    probes: tuple[dict[str, str], ...]
    left_out: dict[str, str]
    info: dict[str, Any]

    @property
    def drift(self) -> xr.DataArray:
        """Attention in the edited model less that in the base model; dims ``probe, key, layer, head``."""
        return self.data["edited"] - self.data["base"]

    def undone(self) -> xr.DataArray:
        """Which share of the edit's effect each mask undoes (``lost``) or brings (``gained``).

        Dims ``probe, direction, mask, sample``.

        >>> drifted.undone().sel(mask=-1, direction="lost").shape[0]
        1
        """
        base, edited = (self.data["ends"].sel(side=side, drop=True) for side in ("base", "edited"))
        effect, masked = edited - base, self.data["masked"]
        effect = effect.where(effect != 0)
        parts = [(edited - masked.sel(direction="lost")) / effect, (masked.sel(direction="gained") - base) / effect]
        return xr.concat(parts, pd.Index(DIRECTIONS, name="direction")).transpose(*map(str, masked.dims))

    def correlations(self) -> pd.DataFrame:
        """Spearman's correlation over heads of each drift with what heads carry, one row per probe.

        Signed for single keys; of ``total`` drift, with the size of the effect. Heads whose patterns do not differ are
        left out.

        >>> list(drifted.correlations().columns)
        ['probe', 'key', 'direction', 'spearman', 'heads']

        Raises:
            LocateError: what heads carry was not measured.
        """
        if "effect" not in self.data:
            raise LocateError("What heads carry was not measured; ask for it by effects=True.")
        rows = []
        for probe in self.data["probe"].values:
            there = (self.data["total"].sel(probe=probe) > 0).values
            for key in (*KEYS, TOTAL):
                total = key == TOTAL
                own = (self.data["total"] if total else self.drift.sel(key=key)).sel(probe=probe).values[there]
                for direction in DIRECTIONS:
                    effect = self.data["effect"].sel(probe=probe, direction=direction).values[there]
                    several = there.sum() > 2 and np.ptp(own) > 0 and np.ptp(effect) > 0
                    found: Any = spearmanr(own, abs(effect) if total else effect) if several else None
                    rows.append({
                        "probe": int(probe), "key": key, "direction": direction,
                        "spearman": float("nan") if found is None else float(found.statistic),
                        "heads": int(there.sum()),
                    })  # fmt: skip
        return pd.DataFrame(rows)

    def masks(self) -> pd.DataFrame:
        """The share of each probe's effect that masks undo or bring, beside as many heads at random.

        >>> drifted.masks()["mask"].tolist()
        ['1', 'all', '1', 'all']
        """
        share = self.undone()
        chosen, random = share.sel(sample=0, drop=True), share.sel(sample=share["sample"] > 0).mean("sample")
        table = xr.Dataset({"share": chosen, "random": random}).to_dataframe().reset_index()
        table["mask"] = [str(one) if one > 0 else "all" for one in table["mask"]]
        return table.merge(pd.DataFrame(self.probes), left_on="probe", right_index=True)

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: of the first probe, what masks of the most drifted heads undo and bring.

        >>> list(drifted.summary())[:2]
        ['undone by 1', 'undone by all']
        """
        share = self.undone().isel(probe=0).sel(sample=0)
        words = {"lost": "undone", "gained": "brought"}
        return {
            f"{words[direction]} by {'all' if mask < 0 else mask}": float(share.sel(direction=direction, mask=mask))
            for direction in DIRECTIONS for mask in share["mask"].values
        }  # fmt: skip

    def best(self, key: str = "subject") -> Site:
        """The head whose attention to a key drifted most, over all probes.

        >>> drifted.best("first").kind
        'attn_head'
        """
        drift = self.data["total"] if key == TOTAL else self.drift.sel(key=_check_key(key))
        return Site("attn_head", **place_of_largest(abs(drift.mean("probe"))))

    def plot(self, **options: Any) -> "Figure":
        """Where attention drifted, and what holding it undoes; see ``plot_attention_drift`` beside this module."""
        return self.draw(**options)

    def _on(self) -> str:
        return first_of([one["text"] for one in self.probes])

    def _rows(self) -> pd.DataFrame:
        return pd.DataFrame(self.masks()[["text", "direction", "mask", "share", "random"]])

    def _tables(self) -> list[xr.Dataset]:
        each = [(side, key) for side in ("base", "edited") for key in KEYS]
        parts = {f"{side}_{key}": self.data[side].sel(key=key, drop=True) for side, key in each}
        table = xr.Dataset({**parts, "total": self.data["total"]})
        if "effect" in self.data:
            table = table.assign({one: self.data["effect"].sel(direction=one, drop=True) for one in DIRECTIONS})
        return [table]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.merge(pd.DataFrame(self.probes), left_on="probe", right_index=True)


def attention_drift(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    subject: str | None = None,
    roles: Sequence[str] | str = REACHED,
    masked: Sequence[int] = (1, 5, 20),
    by: str = TOTAL,
    queries: Literal["all", "last"] | str = "all",
    random: int = 5,
    effects: bool = True,
    seed: int = 0,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> AttentionDrift:
    """Measure how an edit moves attention from the last token, and how much of it goes through that.

    A mask holds the attention patterns of some heads at their values in the other model while all else runs on,
    exactly: of so many heads as drifted most, of as many at random, and of all heads whose patterns differ.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        probes: what to ask, or a request, whose fact provides it. Those that do not name the subject are left out.
        subject: by default the request's.
        roles: of the probes.
        masked: of how many heads; all of them together always are.
        by: which drift says who drifted most: ``total``, or to the ``subject``, ``first`` or ``other`` tokens.
        queries: hold what ``all`` tokens attend to, or the ``last`` alone.
        random: how many sets of as many heads taken at random.
        effects: whether to measure what each head's output carries, which takes the longest.
        seed: of the random sets.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no subject is given, or no probe of these roles names it.
        UpdateError: the change does not fit the model, or leaves all patterns as they are.
        ModelError: the model has layers without attention patterns; or the other model is of another build.
        SiteError: it shows patterns only after they were used.

    >>> found = edit.attention_drift(model, update, request, roles="edit", masked=[1, 5], progress=False)
    >>> found.masks()["mask"].tolist()
    ['1', '5', 'all', '1', '5', 'all']
    """
    _check_key(by)
    patterns = pattern_hooks(model)
    sides = sides_of(model, change)
    probes = as_probed(probes)
    if subject is None:
        if not isinstance(probes, EditRequest):
            raise FactError("subject: these probes do not say whom they are about; give subject=…, or a request.")
        subject = probes.fact.subject
    asked, spans, left_out = subject_tokens(model, asked_of(sides, probes), subject, roles)
    keep = [*patterns, *(mediating_hooks(model, [HEADS]) if effects else [])]
    sets = Sets(counts=tuple(sorted({*masked})), random=random, seed=seed, queries=queries)
    parts = []
    for one, span in tqdm(list(zip(asked, spans, strict=True)), "attention drift", disable=not progress, delay=1):
        contrast = one.contrast(sides, keep=keep, budget=budget)
        found = _drift(contrast, patterns, span)
        drift = found["total"] if by == TOTAL else abs(found["edited"] - found["base"]).sel(key=by)
        found = found.merge(exchanged(contrast, one, patterns, drift.values, sets))
        if effects:
            found["effect"] = mediation(contrast, [HEADS])[HEADS]
        parts.append(found)
    data: Any = xr.concat(parts, pd.Index(range(len(parts)), name="probe"))
    if not bool((data["total"] > 0).any()):
        raise UpdateError(
            f"The change by {sides.described['method']} leaves all that these prompts' last tokens attend to as it is, "
            "as one behind the last attention does. Give an earlier edit, or other probes."
        )
    return AttentionDrift(
        data=data, left_out=left_out,
        probes=tuple({name: getattr(one.probe, name) for name in ("role", "text", "old", "new")} for one in asked),
        info={
            "model": str(model.cfg.model_name), "method": sides.described["method"], "layers": list(sides.layers),
            "subject": subject, "by": by, "queries": queries,
        },
    )  # fmt: skip


def load_attention_drift(path: str | Path) -> AttentionDrift:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_attention_drift(drifted.save("drift.nc")).info["by"]
    'total'
    """
    return AttentionDrift.load(path)


def _drift(contrast: Contrast, patterns: Sequence[str], span: tuple[int, int]) -> xr.Dataset:
    """Attention from the last token in both models."""
    sides = {"base": contrast.source, "edited": contrast.target}
    last = {side: torch.stack([run.kept[name][0, :, -1].float().cpu() for name in patterns])
            for side, run in sides.items()}  # fmt: skip
    total = (last["edited"] - last["base"]).abs().sum(-1) / 2
    data = {side: (("key", "layer", "head"), on_keys(one, span).numpy()) for side, one in last.items()}
    coords = {"key": list(KEYS), "layer": np.arange(len(patterns)), "head": np.arange(total.shape[1])}
    return xr.Dataset({**data, "total": (("layer", "head"), total.numpy())}, coords=coords)


def _check_key(key: str) -> str:
    if key not in (*KEYS, TOTAL):
        raise LocateError(f"There is no drift to {key!r}; choose among {', '.join((*KEYS, TOTAL))}.")
    return key
