"""The result of a causal trace."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from locate.errors import LocateError, SiteError
from locate.results import Measured, place_of_largest, restoring
from locate.showing import shown
from locate.sites.site import Site, check_traced

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace(Measured):
    """Scores of every site, for one fact and one or more metrics, of which one is in view.

    ``scores`` and what follows from it are those of the metric in view, the first one asked for;
    ``of`` gives the same trace with another in view.

    Attributes:
        data: every metric's arrays: ``scores`` and ``standard_error`` (over corrupted samples) with dims
            ``metric, kind, position, layer``, for single heads ``head_scores`` and ``head_standard_error`` with
            dims ``metric, position, layer, head``, ``clean`` and ``corrupted`` with dim ``metric``.
        metric: the metric in view.
        answer: text of the answer token.
        answer_rank: its rank in the clean run (1 is the model's first answer).
        tokens: text of the prompt's tokens.
        subject_span: half-open range of the subject's token positions.
        info: how the trace was made.

    >>> trace = locate.causal_trace(model, fact)                                     # doctest: +SKIP
    >>> trace.answer, trace.answer_rank
    (' Paris', 1)
    """

    stored_as = "trace"
    format = 2
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.tracing.figures:plot_trace"}

    answer: str
    answer_rank: int
    tokens: tuple[str, ...]
    subject_span: tuple[int, int]

    @property
    def scores(self) -> xr.DataArray:
        """The metric with one state patched, averaged over corrupted samples; dims ``kind, position, layer``.

        Raises:
            SiteError: the trace was made of single heads alone; see ``head_scores``.
        """
        return self._of_kinds("scores")

    @property
    def standard_error(self) -> xr.DataArray:
        """Of each score, over the corrupted samples (NaN for a single one)."""
        return self._of_kinds("standard_error")

    @property
    def head_scores(self) -> xr.DataArray:
        """The same for single heads; dims ``position, layer, head``.

        Raises:
            SiteError: the trace was made without ``attn_head``.
        """
        return self._of_heads("head_scores")

    @property
    def head_standard_error(self) -> xr.DataArray:
        """Of each head's score, over the corrupted samples (NaN for a single one)."""
        return self._of_heads("head_standard_error")

    @property
    def corrupted(self) -> float:
        """The metric with the subject corrupted, averaged over samples."""
        return float(self._view("corrupted"))

    @property
    def total_effect(self) -> float:
        """How much the corruption took away: TE = m − m*."""
        return self.clean - self.corrupted

    @property
    def baseline(self) -> float:
        """What the scores start from: the corrupted run's metric, or the clean run's where states are broken."""
        return self.corrupted if self.info["direction"] == "restore" else self.clean

    @property
    def indirect_effect(self) -> xr.DataArray:
        """What each state restores, IE = m*_restored − m*; for ``direction="break"`` what breaking it takes away."""
        return self._effect(self.scores)

    @property
    def recovered(self) -> xr.DataArray:
        """The indirect effect as a share of the total effect."""
        return self.indirect_effect / self.total_effect

    @property
    def head_effect(self) -> xr.DataArray:
        """The indirect effect of single heads; dims ``position, layer, head``."""
        return self._effect(self.head_scores)

    def best(self, kind: str = "mlp", *, within: str = "subject") -> Site:
        """The site of the largest indirect effect, in the direction of the total effect.

        Args:
            kind: ``resid``, ``mlp``, ``attn`` or ``attn_head``.
            within: ``"subject"`` for the subject's tokens (where facts are recalled, and where an
                edit goes), ``"last"`` for the last token, or ``"all"``. The last token's late states
                restore the answer trivially; so where the subject ends the prompt, that token's ``resid`` does not
                count among the subject's.

        Raises:
            SiteError: a kind or position that was not traced; or the last token is all that there is of the subject.

        >>> trace.best("mlp").kind
        'mlp'
        """
        kind = check_traced(kind)
        if kind == "attn_head":
            table = self.head_effect
        else:
            if "scores" not in self.data or kind not in self.data.coords["kind"].values:
                raise SiteError(f"This trace has no {kind!r} scores; it was made with kinds={self.info['kinds']}.")
            table = self.indirect_effect.sel(kind=kind)
        last = len(self.tokens) - 1
        spans = {"subject": range(*self.subject_span), "last": range(last, last + 1), "all": range(last + 1)}
        if within not in spans:
            raise SiteError(f"within must be one of {sorted(spans)}, found {within!r}.")
        wanted = [at for at in spans[within] if not (kind == "resid" and within == "subject" and at == last)]
        if not wanted:
            raise SiteError(
                "The subject is the prompt's last token, whose late states restore the answer trivially: no residual "
                "state is best. Ask for another kind, or for within='last'."
            )
        table = table.isel(position=np.isin(table["position"], wanted))
        if table.sizes["position"] == 0:
            raise SiteError(f"This trace visited no position within {within!r}; it has {self.info['positions']}.")
        return Site(kind, **place_of_largest(restoring(table, self.total_effect)))

    def plot(self, **options: Any) -> "Figure":
        """Heat maps in the familiar layout; see ``locate.plots.plot_trace``."""
        return self.draw(**options)

    def _on(self) -> str:
        prompt = self.info.get("prompt", "".join(self.tokens))
        return f"{prompt} → {self.answer.strip()} (rank {self.answer_rank})"

    def _found(self) -> str:
        ends = f"{shown(self.clean)} clean, {shown(self.corrupted)} corrupted"
        return f"{self.metric} {ends}, total effect {shown(self.total_effect)}"

    def _choice(self) -> Site | None:
        kinds = self._kinds_here
        return self.best("mlp" if "mlp" in kinds else kinds[0])

    def _rows(self) -> pd.DataFrame:
        """By kind, the best site of the subject's tokens, and of the last."""
        rows = []
        for kind in self._kinds_here:
            for within in ("subject", "last"):
                with suppress(SiteError):
                    site = self.best(kind, within=within)
                    effects = self.head_effect if kind == "attn_head" else self.indirect_effect.sel(kind=kind)
                    at = {name: value for name, value in vars(site).items() if name != "kind" and value is not None}
                    effect = float(effects.sel(at))
                    rows.append({
                        "kind": kind, "of": within, **at, "token": self.tokens[at["position"]], "effect": effect,
                        "recovered": effect / self.total_effect,
                    })  # fmt: skip
        return pd.DataFrame(rows)

    @property
    def _kinds_here(self) -> list[str]:
        kinds = [str(kind) for kind in self.data["kind"].values] if "scores" in self.data else []
        return [*kinds, "attn_head"] if "head_scores" in self.data else kinds

    def _tables(self) -> list[xr.Dataset]:
        parts: list[xr.Dataset] = []
        if "scores" in self.data:
            parts.append(_columns(self.scores, self.standard_error, self.indirect_effect))
        if "head_scores" in self.data:
            heads = _columns(self.head_scores, self.head_standard_error, self.head_effect)
            parts.append(heads.expand_dims(kind=["attn_head"]))
        return parts

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(token=[self.tokens[position] for position in table["position"]])

    def _of_kinds(self, name: str) -> xr.DataArray:
        if name not in self.data:
            raise SiteError("This trace has single heads alone; see head_scores, and plot_trace_heads for a figure.")
        return self._view(name)

    def _of_heads(self, name: str) -> xr.DataArray:
        if name not in self.data:
            raise SiteError(f"This trace has no heads; it was made with kinds={self.info['kinds']}.")
        return self._view(name)

    def _effect(self, scores: xr.DataArray) -> xr.DataArray:
        sign = 1.0 if self.info["direction"] == "restore" else -1.0
        return (scores - self.baseline) * sign


def load_trace(path: str | Path) -> Trace:
    """Read a trace that was saved.

    Raises:
        DataError: the file is missing or is not a saved trace.

    >>> locate.load_trace("t.nc").answer
    ' Paris'
    """
    return Trace.load(path)


def check_comparable(traces: Sequence[Trace]) -> None:
    """Whether traces can be averaged: the same model, metric, kinds, window, direction, precision and corruption.

    Raises:
        LocateError: there are none, or they differ; the message says in what.
    """
    if not traces:
        raise LocateError("There are no traces to average.")
    how = (
        "model", "kinds", "window", "direction", "severed", "precision", "corruption", "samples", "scale", "std",
        "reference",
    )  # fmt: skip
    for name in how:
        found = {str(trace.info.get(name)) for trace in traces}
        if len(found) > 1:
            raise LocateError(
                f"These traces differ in their {name}: {', '.join(sorted(found))}. Average like with like."
            )
    found = {trace.metric for trace in traces}
    if len(found) == 1 and len(labels := {trace.info["metrics"][trace.metric] for trace in traces}) > 1:
        found = labels  # of different targets
    if len(found) > 1:
        raise LocateError(f"These traces show different metrics: {', '.join(sorted(found))}. Choose one with trace.of.")


def _columns(scores: xr.DataArray, error: xr.DataArray, effect: xr.DataArray) -> xr.Dataset:
    return xr.Dataset({"score": scores, "standard_error": error, "indirect_effect": effect})
