"""Whether an edit can be undone: bit for bit, and as singular directions are taken out of what it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change, within, without
from edit.changes.directions import Directions
from edit.propagation.asking import ANSWERS, Asked, asked_of
from edit.propagation.sides import Changed, Sides, sides_of
from edit.requests.probes import Probed, named_roles
from locate.engine import refreeze
from locate.errors import FactError, LocateError, UpdateError
from locate.model.held import HeldWeights
from locate.model.weights import fingerprint, hf_parameters, model_fingerprint
from locate.names import DEFAULT_BUDGET
from locate.results import Result
from locate.showing import first_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is done with the k largest singular directions: those of ΔW taken out of the edited weights; those alone put into
# the base weights; and those of the edited weights themselves taken out, as who does not know the base would do it.
DROPPED, KEPT, BLIND = WAYS = ("dropped", "kept", "blind")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reversal(Result):
    """What is left of an edit as singular directions are dropped.

    Attributes:
        data: ``value`` (dims ``probe, way, k, answer``) and ``ends`` (dims ``probe, side, answer``, of base and
            edited). An ``answer`` is ``logit_diff`` (o* − o), ``logprob_new``, ``rank_new``, ``logprob_old`` or
            ``rank_old``. The ways are ``dropped`` (the edited weights without the k largest directions of ΔW, matrix
            by matrix), ``kept`` (the base weights with these alone) and ``blind`` (the edited weights without their
            own k largest directions, for which no base is needed: arXiv:2505.20819).
        probes: role and text of each, and its answers ``old`` and ``new``.
        rank: the most directions that ΔW has in a matrix. Of rank 1, as ROME's, k = 1 is all of it.
        reverted: whether the model was, bit for bit, what it had been, after the change was applied and reverted; None
            where the edited side is a model of its own, and nothing was applied.
        info: how it was made.

    >>> found = edit.reversibility(model, update, request, counts=[1], progress=False)
    >>> found.rank, found.reverted, round(float(found.undone().sel(way="dropped")[0, 0]), 2)
    (1, True, 1.0)
    """

    stored_as = "reversal"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.reversal_figures:plot_reversal"}

    probes: tuple[dict[str, str], ...]
    rank: int
    reverted: bool | None
    info: dict[str, Any]

    def undone(self) -> xr.DataArray:
        """Which share of the edit's effect on the logit difference is gone; dims ``probe, way, k``.

        0 where it is all there, 1 where the base model answers. So it is 1 − what ``kept`` brings. NaN for a probe
        that the edit does not reach.

        >>> edit.reversibility(model, update, request, counts=[1], progress=False).undone().dims
        ('probe', 'way', 'k')
        """
        value, ends = (self.data[name].sel(answer="logit_diff", drop=True) for name in ("value", "ends"))
        base, edited = (ends.sel(side=side, drop=True) for side in ("base", "edited"))
        effect = edited - base
        return ((edited - value) / effect.where(effect != 0)).transpose("probe", "way", "k")

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: of the first probe, what is undone by each way and k.

        >>> found = edit.reversibility(model, update, request, counts=[1], ways=["dropped"], progress=False)
        >>> {name: round(value, 2) for name, value in found.summary().items()}
        {'undone, dropped 1': 1.0}
        """
        own = self.undone().isel(probe=0)
        return {
            f"undone, {way} {k}": float(own.sel(way=way, k=k)) for way in own["way"].values for k in own["k"].values
        }

    def returns(self) -> xr.DataArray:
        """Whether the old answer is back: ahead of the new one, and of a rank no worse than in the base model.

        >>> edit.reversibility(model, update, request, counts=[1], progress=False).returns().dtype
        dtype('bool')
        """
        value, before = self.data["value"], self.data["ends"].sel(side="base", drop=True)
        ahead = value.sel(answer="logit_diff", drop=True) < np.maximum(0, before.sel(answer="logit_diff", drop=True))
        as_high = value.sel(answer="rank_old", drop=True) <= before.sel(answer="rank_old", drop=True)
        return (ahead & as_high).transpose("probe", "way", "k")

    def plot(self, **options: Any) -> "Figure":
        """What is undone by k, and what becomes of both answers; see ``plot_reversal`` beside this module."""
        return self.draw(**options)

    def _on(self) -> str:
        return first_of([one["text"] for one in self.probes])

    def _tables(self) -> list[xr.Dataset]:
        values = self.data["value"].to_dataset("answer")
        return [values.assign(undone=self.undone(), returns=self.returns())]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.merge(pd.DataFrame(self.probes), left_on="probe", right_index=True)


def reversibility(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    ways: Sequence[str] = WAYS,
    roles: Sequence[str] | str = ("edit", "paraphrase", "alias"),
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Reversal:
    """Undo a change: exactly, and by dropping its largest singular directions.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        probes: what to ask, or a request whose fact provides it.
        counts: how many directions of each changed matrix (of a vector its only one) are dropped or kept.
        ways: ``dropped``, ``kept``, ``blind``; see ``Reversal``.
        roles: of the probes that are asked.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probes of these roles, or one whose answers no token tells apart.
        UpdateError: the change does not fit the model, or changes nothing.
        ModelError: the other model is of another build, or what differs are no floating-point numbers.
        LocateError: no counts, or an unknown way.

    >>> found = edit.reversibility(model, update, request, counts=[1], progress=False)
    >>> found.data["value"].dims
    ('probe', 'way', 'k', 'answer')
    """
    sides = sides_of(model, change)
    counts, ways = sorted({*counts}), list(dict.fromkeys(ways))
    if not counts or counts[0] < 1:
        raise LocateError(f"counts: give numbers of directions from 1 on, found {counts}.")
    if not ways or (unknown := [way for way in ways if way not in WAYS]):
        raise LocateError(f"ways: choose among {', '.join(WAYS)}, found {unknown[0] if ways else 'none'!r}.")
    asked = _of_roles(asked_of(sides, probes), roles)
    runs = [sides.runs(one.prompt.tokens[None], budget=budget) for one in asked]
    known = _Known(sides)
    rank = max(len(one) for one in known.of_change.values())
    values = np.full((len(asked), len(ways), len(counts), len(ANSWERS)), np.nan)
    with tqdm(total=len(ways) * len(counts), desc="reversal", disable=not progress, delay=1) as bar:
        for place, way in enumerate(ways):
            for index, k in enumerate(counts):
                bar.update()
                if index and way != BLIND and counts[index - 1] >= rank:  # all of it, as before
                    values[:, place, index] = values[:, place, index - 1]
                    continue
                with known.weights(way, k).entered():
                    for row, (one, (base, _)) in enumerate(zip(asked, runs, strict=True)):
                        values[row, place, index] = list(one.answers(refreeze(base).logits[0]).values())
    ends = [[list(one.answers(run.logits[0]).values()) for run in both] for one, both in zip(asked, runs, strict=True)]
    data = xr.Dataset(
        {"value": (("probe", "way", "k", "answer"), values), "ends": (("probe", "side", "answer"), np.array(ends))},
        coords={
            "probe": np.arange(len(asked)), "way": ways, "k": counts, "answer": list(ANSWERS),
            "side": ["base", "edited"],
        },
    )  # fmt: skip
    return Reversal(
        data=data, rank=rank, reverted=None if sides.change is None else reverts(model, sides.change),
        probes=tuple({name: getattr(one.probe, name) for name in ("role", "text", "old", "new")} for one in asked),
        info={
            "model": str(model.cfg.model_name), "method": sides.described["method"], "layers": list(sides.layers),
            "parameters": list(sides.changed),
        },
    )  # fmt: skip


def reverts(model: TransformerBridge, change: Change) -> bool:
    """Whether a change that is applied and reverted leaves every bit of the model as it was.

    Of the parameters that it changes all bits are looked at, of the others a sum over all and a sample.

    Raises:
        UpdateError: it does not fit the model, or does nothing to it.

    >>> reverts(model, update)
    True
    """

    def prints() -> list[str]:
        parameters = hf_parameters(model)
        return [model_fingerprint(model), *(fingerprint(parameters[name]) for name in change.parameters)]

    with without(model, change):
        before = prints()
    with within(model, change):
        edited = prints()
    if edited == before:
        raise UpdateError(f"The change by {change.method} leaves all weights as they are.")
    with without(model, change):
        return prints() == before


def load_reversal(path: str | Path) -> Reversal:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> found = edit.reversibility(model, update, request, counts=[1], progress=False)
    >>> edit.load_reversal(found.save("reversal.nc")).reverted
    True
    """
    return Reversal.load(path)


class _Known:
    """The directions of what differs, found once: of ΔW by name, and of the edited weights where they are asked for."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        self.of_change = {name: sides.directions(name) for name in sides.changed}
        self._by_place = {_place(sides.changed[name][1]): own for name, own in self.of_change.items()}
        self._of_edited: dict[Any, Directions] = {}

    def weights(self, way: str, k: int) -> HeldWeights:
        """Weights with the k largest directions dropped, or with them alone."""

        def made(base: Tensor, edited: Tensor) -> Tensor:
            part = self._directions(way, base, edited).top(k).reshape(base.shape).to(base.device)
            return base.to(part) + part if way == KEPT else edited.to(part) - part

        return self.sides.before.between(self.sides.after, made)

    def _directions(self, way: str, base: Tensor, edited: Tensor) -> Directions:
        known, place = self._of_edited if way == BLIND else self._by_place, _place(edited)
        if place not in known:  # of ΔW where the model computes with copies of parts, each with directions of its own
            known[place] = Directions.of(edited) if way == BLIND else Directions.between(base, edited)
        return known[place]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _of_roles(asked: Sequence[Asked], roles: Sequence[str] | str) -> list[Asked]:
    roles = named_roles(roles)
    if found := [one for one in asked if one.probe.role in roles]:
        return found
    there = ", ".join(dict.fromkeys(one.probe.role for one in asked))
    raise FactError(f"There are no probes of role {' or '.join(roles)} among those given, which are of role {there}.")
