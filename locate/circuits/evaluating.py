"""How much of an answer circuits carry: metrics of each, pair by pair, between those of nothing and of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locate.circuits.gathering import Gathered
from locate.circuits.running import mean_written, run_circuits
from locate.contrast.contrast import Contrast
from locate.contrast.metrics import hardly_differ
from locate.errors import LocateError, tell
from locate.sites.graph import Graph

# What cut edges bring: what their writers write in the corrupted run, its mean over all pairs, or nothing. The last two
# hold at every position.
Ablation = Literal["corrupt", "mean", "zero"]
# Of the larger of two values: what is less is rounding, and no gap to divide by.
_NO_GAP = 1e-5
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A metric of circuits.

    Attributes:
        values: of each circuit.
        whole: of the model as it is.
        empty: of the circuit without an edge.
        metric: its name.
    """

    values: Float[np.ndarray, "circuit pair"]
    whole: Float[np.ndarray, "pair"]
    empty: Float[np.ndarray, "pair"]
    metric: str = ""

    def faithfulness(self, pairs: Sequence[int] | np.ndarray | None = None) -> Float[np.ndarray, "circuit"]:
        """What share of the way from nothing to the model each circuit goes, in the mean over these pairs."""
        chosen = slice(None) if pairs is None else np.asarray(pairs)
        high, low = self.whole[chosen].mean(), self.empty[chosen].mean()
        return (self.values[:, chosen].mean(1) - low) / (high - low)

    def resampled(self) -> Float[np.ndarray, "resample circuit"]:
        """The same in the means over pairs drawn with replacement."""
        n = len(self.whole)
        draws = np.random.default_rng(0).integers(0, n, size=(_RESAMPLES, n))
        return np.stack([self.faithfulness(one) for one in draws])

    def check(self) -> None:
        """Whether there is a way between them; a short one is warned about.

        Raises:
            LocateError: the metric is the same with all edges and without any.
        """
        high, low = float(self.whole.mean()), float(self.empty.mean())
        if abs(high - low) <= _NO_GAP * max(abs(high), abs(low)):
            raise LocateError(
                f"The metric {self.metric!r} is {high:.4g} in the model and {low:.4g} with every edge cut, so that "
                "there is no gap for a circuit to fill. Choose other pairs, another metric or another ablation."
            )
        if hardly_differ(high, low):
            tell(
                f"The metric {self.metric!r} is {high:.4g} in the model and {low:.4g} with every edge cut: shares of "
                "so small a gap mean little. Choose other pairs, another metric or another ablation."
            )


def evaluate(
    gathered: Gathered,
    graph: Graph,
    kept: Bool[np.ndarray, "circuit writer reader"],
    *,
    ablation: Ablation = "corrupt",
    progress: Callable[[int], object] = lambda rows: None,
) -> Measured:
    """The first metric of each circuit on each pair; of a single pair with several corrupted versions on each of these.

    Raises:
        LocateError: the metric has no gap to fill.
        ModelError: the architecture has inputs that edges cannot be told apart at.
    """
    empty = np.zeros_like(kept[:1])
    masks = torch.from_numpy(np.concatenate([empty, kept]))
    instead = None
    if ablation != "corrupt":
        instead = torch.zeros(1, 1, 1, 1, dtype=torch.float32)
        if ablation == "mean":
            instead = mean_written(gathered.contrasts(), graph)
    values, whole = [], []
    name = ""
    for contrast in gathered.contrasts():
        metric = contrast.metrics(gathered.metric)[:1]
        name = metric[0].name
        found = run_circuits(contrast, graph, masks, metric, instead=instead, progress=progress)[..., 0]
        values.append(by_pair(contrast, found))
        whole.append(by_pair(contrast, contrast.ends(metric).target[:, 0].float()))
    every = np.concatenate(values, axis=-1)
    measured = Measured(values=every[1:], whole=np.concatenate(whole), empty=every[0], metric=name)
    measured.check()
    return measured


def by_pair(contrast: Contrast, values: Float[Tensor, "*circuit row"]) -> Float[np.ndarray, "*circuit pair"]:
    """The mean of each question's rows; of a single question its rows."""
    asked = contrast.rows.question
    every = asked.unique()
    if len(every) > 1:
        values = torch.stack([values[..., asked == one].mean(-1) for one in every], dim=-1)
    return values.double().cpu().numpy()
