"""Pairs of prompts as contrasts whose runs have kept what circuits need: of one length each, and of a bounded size."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from locate.circuits.written import check_weights, tellable, written_hooks
from locate.contrast.contrast import Contrast
from locate.contrast.corruption import Corruption
from locate.contrast.measures import as_metrics
from locate.contrast.metrics import Metrics
from locate.contrast.pairs import Pair, Text, make_pairs, separate
from locate.errors import FactError, LocateError
from locate.facts.facts import Fact
from locate.tasks.paired import PairedPrompts

Pairs = PairedPrompts | Contrast | Sequence[Contrast] | Text | Sequence[Text]
# Floats that runs of one group keep, in units of what a token takes in passing.
_KEPT = 8
# Of the metric's difference between the runs: what no edge's score exceeds is rounding.
_NO_SLOPE = 1e-6


class Gathered:
    """Pairs in groups that are run together.

    >>> gathered = Gathered(model, locate.tasks.ioi(model, 4), budget=4096)
    >>> len(gathered), sum(contrast.record["pairs"] for contrast in gathered.contrasts())
    (4, 4)
    """

    def __init__(
        self,
        model: TransformerBridge,
        pairs: Pairs,
        corrupt: Corruption | Text | Sequence[Text] | None = None,
        *,
        metric: Metrics | None = None,
        budget: int,
    ) -> None:
        """Encode them all, so that what does not fit is said before anything is run.

        Raises:
            FactError: there are none; the prompts of a pair do not fit each other, or nothing tells them from each
                other; or a contrast is of another model.
            ModelError: the runs of a contrast have other weights, and no edge carries some of what that changes.
        """
        self.model, self.budget = model, budget
        self.metric = metric
        self._contrasts = _contrasts(pairs)
        self._groups: list[list[Pair]] = []
        self._only: Contrast | None = None
        self._corruption = corrupt if isinstance(corrupt, Corruption) else None
        if self._contrasts:
            names, graph = written_hooks(model), tellable(model)
            for contrast in self._contrasts:
                if contrast.target.model is not model:
                    raise FactError("The contrast's runs are of another model than the one given; give theirs.")
                contrast.check_kept(names, names)
                check_weights(contrast, graph)
            return
        if not isinstance(pairs, str | PairedPrompts) and isinstance(pairs, Sequence):
            check_flat(pairs)
        if isinstance(pairs, PairedPrompts):
            if corrupt is not None:
                raise FactError("corrupt: paired prompts bring their own; leave it out.")
            self.metric = pairs.metric if metric is None else metric
            clean: Any = pairs.clean
            corrupt = pairs.corrupt
        else:
            clean = pairs
        if corrupt is None:
            raise FactError("corrupt: give a corruption or other prompts, or PairedPrompts or a Contrast for both.")
        self._metrics = as_metrics(self.metric) if self.metric else ()
        by_length: dict[int, list[Pair]] = {}
        for one, other in separate(clean, corrupt):
            (pair,) = make_pairs(model, one, other, self._metrics)
            by_length.setdefault(len(pair.clean.tokens), []).append(pair)
        for length, own in sorted(by_length.items()):
            at_once = max(1, _KEPT * budget // (length * len(written_hooks(model))))
            self._groups += [own[start : start + at_once] for start in range(0, len(own), at_once)]

    def __len__(self) -> int:
        """How many pairs there are."""
        return sum(len(one.questions.prompts) for one in self._contrasts) + sum(map(len, self._groups))

    @property
    def n_rows(self) -> int:
        """How many corrupted versions there are of all pairs together."""
        own = sum(len(one.rows) for one in self._contrasts)
        return own + sum(len(pair.corrupted.tokens) for group in self._groups for pair in group)

    @property
    def lengths(self) -> list[int]:
        """The numbers of tokens that there are."""
        own = {one.target.tokens.shape[1] for one in self._contrasts}
        return sorted(own | {len(group[0].clean.tokens) for group in self._groups})

    def contrasts(self) -> Iterator[Contrast]:
        """The contrasts, clean runs as their targets, one after the other; a single one is run once and held."""
        yield from self._contrasts
        if len(self._groups) == 1:
            self._only = self._only or self._run(self._groups[0])
            yield self._only
            return
        yield from map(self._run, self._groups)

    def _run(self, group: list[Pair]) -> Contrast:
        names = written_hooks(self.model)
        return Contrast.of_pairs(
            self.model, group, direction="break", keep=names, keep_target=names, metrics=self._metrics,
            budget=self.budget, corruption=self._corruption,
        )  # fmt: skip


def _contrasts(pairs: Pairs) -> tuple[Contrast, ...]:
    """Of what users give, contrasts that are run already.

    Raises:
        FactError: some are, and others are not.
    """
    several = [pairs] if isinstance(pairs, Contrast) else pairs if isinstance(pairs, list | tuple) else []
    found = tuple(one for one in several if isinstance(one, Contrast))
    if found and len(found) < len(several):
        raise FactError("pairs: give contrasts alone, or facts and texts alone; found both.")
    return found


def check_flat(pairs: Sequence[Any]) -> None:
    """Whether a list is of what a pair has on its clean side.

    Raises:
        FactError: it is of pairs.

    >>> check_flat(["The Louvre is in", "Big Ben is in"])
    """
    if any(isinstance(one, PairedPrompts) for one in pairs):
        raise FactError(
            f"pairs: give one PairedPrompts, found a list of {len(pairs)}. Join them by PairedPrompts(name=…, "
            "clean=…, corrupt=…) of all their prompts, or give each of them alone."
        )
    # Token ids are a sequence too, of numbers.
    if any(isinstance(one, tuple | list) and any(isinstance(part, Fact | str) for part in one) for one in pairs):
        raise FactError(
            "pairs: a list of pairs is not read. Give the clean prompts as pairs and the corrupted ones as corrupt, or "
            "both as locate.tasks.PairedPrompts.of(clean, corrupt, answers=…)."
        )


def check_slope(metric: str, largest: float, gap: float) -> None:
    """Whether estimates are of anything.

    Raises:
        LocateError: they are nothing beside what the metric differs by between the runs.
    """
    if largest <= _NO_SLOPE * abs(gap):
        raise LocateError(
            f"The largest score is {largest:.1e}, and {metric!r} differs by {abs(gap):.3g} between the runs: at the "
            "run where gradients are taken it has none, as a divergence from the clean run has none there. Take the "
            "method eap-ig-inputs, clean-corrupted or exact, or another metric."
        )


def check_gap(metric: str, clean: float, corrupted: float) -> None:
    """Whether there is anything that edges could carry.

    Raises:
        LocateError: the metric is the same in both runs.
    """
    if clean == corrupted:
        raise LocateError(
            f"The metric {metric!r} is {clean:.4g} in the clean and in the corrupted run, so that no edge matters to "
            "it. Choose other pairs or another metric."
        )
