"""Path patching: does what one component writes reach another directly, and does it matter there?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast, Ends, as_contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric, Metrics, warn_of_small_effects
from locate.contrast.pairs import Text
from locate.engine import DEFAULT_BUDGET, Branch, Intervention, Measure, Pin
from locate.engine.rows import in_parts, rows_of
from locate.errors import ModelError, SiteError
from locate.model.anatomy import Anatomy
from locate.patching.patches import Patches
from locate.sites.components import Component
from locate.sites.graph import Graph, summed_graph

Through = Literal["direct", "mlps", "all"]
# Where components send from, and which of these are held at their own output while one sends.
_SENT = {"heads": "attn_head_z", "mlps": "mlp_out"}
_HELD = {"direct": ("attn_head_z", "mlp_out"), "mlps": ("attn_head_z",), "all": ()}


def path_patch(
    model: TransformerBridge,
    clean: Text | Sequence[Text] | Contrast,
    corrupt: Corruption | Text | Sequence[Text] | None = None,
    *,
    receivers: str | Sequence[str] = ("logits",),
    senders: Literal["heads", "mlps"] | Sequence[str] = "heads",
    through: Through = "direct",
    metric: Metrics | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Patches:
    """Send each sender's corrupted output along its paths to the receivers alone, and measure the clean run.

    As in Wang et al. 2023 (arXiv:2211.00593), section 3.1: one sender at a time takes its output of the corrupted run,
    at all positions, while every other attention head (unless ``through="all"``) keeps its clean output; what then
    arrives at the receivers is put into the clean run, where everything after them is computed anew.

    Args:
        model: a raw-mode bridge.
        clean: as in ``patch``.
        corrupt: as in ``patch``.
        receivers: one or more heads by their input (``a9.h6.q``), MLPs (``m9``) or ``logits``; all of them together.
        senders: all ``"heads"``, all ``"mlps"``, or components by name.
        through: ``"direct"`` keeps every component between sender and receivers at its clean output; ``"mlps"`` lets
            the MLPs between them respond, so that paths through MLPs count as well; ``"all"`` lets everything respond.
        metric: as in ``patch``.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        Patches of direction ``break``: by layer and head, or by layer for MLPs, or by sender where they are named. A
        sender at or after all receivers sends nothing, and keeps the clean value.

    Raises:
        SiteError: a component that the model does not have.
        ModelError: the architecture cannot be resumed from the middle, or adds to the stream what is neither attention
            nor an MLP, which no path could be told from.

    >>> patches = locate.path_patch(model, fact, locate.TokenSwap("The Colosseum"), receivers=["logits"])
    >>> patches.scores.dims
    ('layer', 'head')
    """
    if through not in get_args(Through):
        raise SiteError(f"through must be one of {', '.join(get_args(Through))}, found {through!r}.")
    receivers = [receivers] if isinstance(receivers, str) else receivers
    found = summed_graph(model, "Patch sites instead.")
    reached = [found.reader(name) for name in receivers]
    if not reached:
        raise SiteError("receivers: give at least one.")
    if len({one.layer == found.anatomy.n_layers for one in reached}) > 1:
        raise SiteError(
            "The logits are read after all other receivers: patch the paths to them in a call of their own."
        )
    sent = _senders(found, senders)
    names = list(dict.fromkeys(one.hook for one in found.writers if one.site in _SENT.values()))
    inputs = sorted({one.hook for one in reached})
    contrast = as_contrast(
        model, clean, corrupt, direction="break", keep=names, keep_target=[*names, *inputs], metric=metric,
        budget=budget,
    )  # fmt: skip
    if not contrast.target.resumable:
        raise ModelError("Path patching needs an architecture that can be resumed from the middle; this one cannot.")
    metrics = contrast.metrics(metric)
    values, ends = _PathPatcher(contrast, found, reached, through, metrics).patch(sent, progress)
    return _labelled(contrast, found.anatomy, senders, values, ends, metrics, receivers, through)


@dataclass(frozen=True, eq=False)
class _PathPatcher:
    contrast: Contrast
    graph: Graph
    receivers: list[Component]
    through: Through
    metrics: tuple[Metric, ...]

    def patch(self, senders: list[Component], progress: bool) -> tuple[Float[Tensor, "sender row metric"], Ends]:
        contrast, target, n = self.contrast, self.contrast.target, len(self.contrast.rows)
        ends, measure = contrast.ends(self.metrics), contrast.measure(self.metrics)
        warn_of_small_effects(self.metrics, *ends)
        values = ends.target.expand(len(senders), -1, -1).clone()
        groups: dict[str, list[int]] = {}
        for index, one in enumerate(senders):
            groups.setdefault(one.hook, []).append(index)
        last = max(one.order for one in self.receivers)
        with tqdm(total=len(senders), desc="path patching", disable=not progress, delay=1) as bar:
            for members in groups.values():
                if senders[members[0]].order < last:
                    # Every row is held at all later layers, so that as many rows at a time make up one pass.
                    rows = target.rows_at_a_time(contrast.first) // target.n_layers
                    for some in in_parts(members, rows // n):
                        arrived = self._send([senders[i] for i in some])
                        values[some] = self._receive(arrived, len(some), measure)
                bar.update(len(members))
        return values, ends

    def _send(self, senders: list[Component]) -> dict[str, Tensor]:
        """What arrives at the receivers' inputs, sender by sender in all rows."""
        contrast, target, first = self.contrast, self.contrast.target, self.contrast.first
        columns = self._columns
        layer, name = senders[0].layer, senders[0].hook
        names = {one.hook for one in self.graph.writers if one.layer >= layer and one.site in _HELD[self.through]} - {
            name
        }
        interventions: dict[str, Intervention] = {
            one: Pin(values=self._repeated(target.kept[one], len(senders)), columns=columns) for one in sorted(names)
        }
        clean, corrupted = (
            rows_of(run.kept[name], rows)[:, first:]
            for run, rows in ((target, contrast.rows.target), (contrast.source, contrast.rows.source))
        )
        # One sender at a time says what it says in the source.
        sent = repeat(clean, "row ... -> sender row ...", sender=len(senders)).clone()
        for index, one in enumerate(senders):
            if one.head is None:
                sent[index] = corrupted
            else:
                sent[index, :, :, one.head] = corrupted[:, :, one.head]
        interventions[name] = Pin(values=rearrange(sent, "sender row ... -> (sender row) ..."), columns=columns)
        branch = Branch(
            layer=layer, rows=self._rows(len(senders)), states=self._repeated(target.residuals[layer], len(senders)),
            interventions=interventions,
        )  # fmt: skip
        inputs = dict.fromkeys(one.hook for one in self.receivers if one.order > senders[0].order)
        return target.record(first, branch, list(inputs))

    def _receive(self, arrived: dict[str, Tensor], n: int, measure: Measure) -> Float[Tensor, "sender row metric"]:
        """The target with what arrived at the receivers put in."""
        target, first = self.contrast.target, self.contrast.first
        interventions: dict[str, Intervention] = {}
        start = target.n_layers
        for name, values in arrived.items():
            receivers = [one for one in self.receivers if one.hook == name]
            only = tuple(sorted({one.head for one in receivers if one.head is not None})) or None
            chosen = values if only is None else values[:, :, list(only)]
            interventions[name] = Pin(values=chosen, columns=self._columns, only=only)
            start = min(start, receivers[0].layer)
        if start == target.n_layers:
            (states,) = arrived.values()
            interventions = {}
        else:
            states = self._repeated(target.residuals[start], n)
        branch = Branch(layer=start, rows=self._rows(n), states=states, interventions=interventions)
        found = target.resume(first, [branch], measure=measure).float().cpu()
        return rearrange(found, "(sender row) metric -> sender row metric", sender=n)

    @property
    def _columns(self) -> tuple[int, ...]:
        return tuple(range(self.contrast.target.tokens.shape[1] - self.contrast.first))

    def _rows(self, times: int) -> Int[Tensor, "row"]:
        return repeat(self.contrast.rows.target, "row -> (sender row)", sender=times)

    def _repeated(self, values: Tensor, times: int) -> Tensor:
        """The target's own states from the first difference on: those of all rows, so many times."""
        own = rows_of(values, self.contrast.rows.target)[:, self.contrast.first :]
        return repeat(own, "row ... -> (sender row) ...", sender=times)


def _senders(found: Graph, senders: Literal["heads", "mlps"] | Sequence[str]) -> list[Component]:
    if isinstance(senders, str) and senders in _SENT:
        return [one for one in found.writers if one.site == _SENT[senders]]
    if isinstance(senders, str) or not senders:
        raise SiteError(f"senders must be 'heads', 'mlps' or a list of components, found {senders!r}.")
    chosen = [found.writer(name) for name in senders]
    if any(one.site not in _SENT.values() for one in chosen):
        raise SiteError("senders: heads and MLPs send; to send the embedding, patch resid_pre of the first layer.")
    return chosen


def _labelled(
    contrast: Contrast,
    made_of: Anatomy,
    senders: Literal["heads", "mlps"] | Sequence[str],
    values: Float[Tensor, "sender row metric"],
    ends: Ends,
    metrics: Sequence[Metric],
    receivers: Sequence[str],
    through: str,
) -> Patches:
    coords: dict[str, Any]
    if senders == "heads":
        coords = {"layer": np.arange(made_of.n_layers), "head": np.arange(made_of.n_heads)}
    elif senders == "mlps":
        coords = {"layer": np.arange(made_of.n_layers)}
    else:
        coords = {"sender": list(senders)}
    dims = ("metric", *coords)
    table = f"({' '.join(coords)}) metric -> {' '.join(dims)}"
    sizes = {name: len(places) for name, places in coords.items()}
    mean, error = (rearrange(part, table, **sizes) for part in contrast.mean(values))
    clean, corrupted = (contrast.mean(end)[0] for end in ends)
    data = xr.Dataset(
        {
            "values": (dims, mean.numpy()),
            "standard_error": (dims, error.numpy()),
            "clean": ("metric", clean.numpy()),
            "corrupted": ("metric", corrupted.numpy()),
        },
        coords={"metric": [metric.name for metric in metrics], **coords},
    )
    info = {
        **contrast.record, "sites": f"paths_to_{'_'.join(receivers)}", "by": list(coords), "direction": "break",
        "receivers": list(receivers), "through": through, "precision": "model",
        "metrics": {metric.name: metric.label for metric in metrics},
    }  # fmt: skip
    return Patches(data=data, metric=metrics[0].name, info=info)
