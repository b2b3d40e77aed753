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

from locate.contrast.branches import rows_of
from locate.contrast.contrast import Contrast, Ends, as_contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric, Metrics, warn_of_small_effects
from locate.contrast.pairs import Text
from locate.engine import DEFAULT_BUDGET, Branch, Intervention, Measure, Pin
from locate.engine.rows import in_parts
from locate.errors import ModelError, SiteError
from locate.patching.nodes import Node
from locate.patching.patches import Patches

Through = Literal["direct", "mlps", "all"]


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
        ModelError: the architecture cannot be resumed from the middle.

    >>> patches = locate.path_patch(model, fact, locate.TokenSwap("The Colosseum"), receivers=["logits"])
    >>> patches.scores.dims
    ('layer', 'head')
    """
    if through not in get_args(Through):
        raise SiteError(f"through must be one of {', '.join(get_args(Through))}, found {through!r}.")
    receivers = [receivers] if isinstance(receivers, str) else receivers
    reached = [_checked(model, Node.parse(name), name, receiver=True) for name in receivers]
    if not reached:
        raise SiteError("receivers: give at least one.")
    if len({node.is_logits for node in reached}) > 1:
        raise SiteError(
            "The logits are read after all other receivers: patch the paths to them in a call of their own."
        )
    sent = _senders(model, senders)
    n_layers = model.cfg.n_layers
    names = [f"blocks.{layer}.{hook}" for layer in range(n_layers) for hook in ("attn.hook_z", "hook_mlp_out")]
    inputs = sorted({name for node in reached for name in _inputs(node)})
    contrast = as_contrast(
        model, clean, corrupt, direction="break", keep=names, keep_target=[*names, *inputs], budget=budget
    )
    if not contrast.target.resumable:
        raise ModelError("Path patching needs an architecture that can be resumed from the middle; this one cannot.")
    metrics = contrast.metrics(metric)
    values, ends = _PathPatcher(contrast, reached, through, metrics).patch(sent, progress)
    return _labelled(contrast, senders, values, ends, metrics, receivers, through)


@dataclass(frozen=True, eq=False)
class _PathPatcher:
    contrast: Contrast
    receivers: list[Node]
    through: Through
    metrics: tuple[Metric, ...]

    def patch(self, senders: list[Node], progress: bool) -> tuple[Float[Tensor, "sender row metric"], Ends]:
        contrast, target, n = self.contrast, self.contrast.target, len(self.contrast.rows)
        ends, measure = contrast.ends(self.metrics), contrast.measure(self.metrics)
        warn_of_small_effects(self.metrics, *ends)
        values = ends.target.expand(len(senders), -1, -1).clone()
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, node in enumerate(senders):
            groups.setdefault((node.layer, node.head is None), []).append(index)
        last = max(target.n_layers if node.is_logits else node.layer for node in self.receivers)
        with tqdm(total=len(senders), desc="path patching", disable=not progress, delay=1) as bar:
            for (layer, is_mlp), members in groups.items():
                # An MLP comes after the attention of its own block, and a head before its block's MLP.
                if layer < last or (layer == last and not is_mlp and self._mlp_of(last)):
                    # Every row is held at all later layers, so that as many rows at a time make up one pass.
                    rows = target.rows_at_a_time(contrast.first) // target.n_layers
                    for some in in_parts(members, rows // n):
                        arrived = self._send(layer, [senders[i] for i in some])
                        values[some] = self._receive(arrived, len(some), measure)
                bar.update(len(members))
        return values, ends

    def _mlp_of(self, layer: int) -> bool:
        return any(node.layer == layer and node.head is None for node in self.receivers)

    def _send(self, layer: int, nodes: list[Node]) -> dict[str, Tensor]:
        """What arrives at the receivers' inputs, sender by sender in all rows."""
        contrast, target, first = self.contrast, self.contrast.target, self.contrast.first
        columns = self._columns
        own = "hook_mlp_out" if nodes[0].head is None else "attn.hook_z"
        frozen = {"direct": ("attn.hook_z", "hook_mlp_out"), "mlps": ("attn.hook_z",), "all": ()}[self.through]
        name = f"blocks.{layer}.{own}"
        names = {f"blocks.{later}.{hook}" for later in range(layer, target.n_layers) for hook in frozen} - {name}
        interventions: dict[str, Intervention] = {
            one: Pin(values=self._repeated(target.kept[one], len(nodes)), columns=columns) for one in sorted(names)
        }
        clean, corrupted = (
            rows_of(run.kept[name], rows)[:, first:]
            for run, rows in ((target, contrast.rows.target), (contrast.source, contrast.rows.source))
        )
        # One sender at a time says what it says in the source.
        sent = repeat(clean, "row ... -> sender row ...", sender=len(nodes)).clone()
        for index, node in enumerate(nodes):
            if node.head is None:
                sent[index] = corrupted
            else:
                sent[index, :, :, node.head] = corrupted[:, :, node.head]
        interventions[name] = Pin(values=rearrange(sent, "sender row ... -> (sender row) ..."), columns=columns)
        branch = Branch(
            layer=layer, rows=self._rows(len(nodes)), states=self._repeated(target.residuals[layer], len(nodes)),
            interventions=interventions,
        )  # fmt: skip
        inputs = [name for node in self.receivers for name in _inputs(node) if _at(name, target.n_layers) >= layer]
        return target.record(first, branch, inputs)

    def _receive(self, arrived: dict[str, Tensor], n: int, measure: Measure) -> Float[Tensor, "sender row metric"]:
        """The target with what arrived at the receivers put in."""
        target, first = self.contrast.target, self.contrast.first
        interventions: dict[str, Intervention] = {}
        start = target.n_layers
        for name, values in arrived.items():
            heads = [node.head for node in self.receivers if name in _inputs(node) and node.head is not None]
            only = tuple(sorted(set(heads))) if heads else None
            chosen = values if only is None else values[:, :, list(only)]
            interventions[name] = Pin(values=chosen, columns=self._columns, only=only)
            start = min(start, _at(name, target.n_layers))
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


def _inputs(node: Node) -> list[str]:
    """The hook points where a receiver reads."""
    if node.is_logits:
        return ["ln_final.hook_in"]
    if node.head is None:
        return [f"blocks.{node.layer}.mlp.hook_in"]
    return [f"blocks.{node.layer}.attn.hook_{node.input}"]


def _at(name: str, n_layers: int) -> int:
    return n_layers if name.startswith("ln_final") else int(name.split(".")[1])


def _senders(model: TransformerBridge, senders: Literal["heads", "mlps"] | Sequence[str]) -> list[Node]:
    layers = range(model.cfg.n_layers)
    if senders == "heads":
        return [Node(layer, head) for layer in layers for head in range(int(model.cfg.n_heads))]
    if senders == "mlps":
        return [Node(layer) for layer in layers]
    if isinstance(senders, str) or not senders:
        raise SiteError(f"senders must be 'heads', 'mlps' or a list of components, found {senders!r}.")
    return [_checked(model, Node.parse(name), name, receiver=False) for name in senders]


def _checked(model: TransformerBridge, node: Node, name: str, *, receiver: bool) -> Node:
    n_layers = model.cfg.n_layers
    if node.is_logits:
        if not receiver:
            raise SiteError("The logits receive; they send nothing. Leave them out of the senders.")
        return node
    if node.layer >= n_layers:
        raise SiteError(f"{name}: layer {node.layer} is out of range: the model has {n_layers} layers.")
    if node.head is not None:
        if receiver and node.input is None:
            raise SiteError(
                f"{name}: a head receives by its query, key or value; write {name}.q, {name}.k or {name}.v."
            )
        if not receiver and node.input is not None:
            raise SiteError(f"{name}: a head sends one output; write it without .{node.input}.")
        shared = receiver and node.input in ("k", "v")
        n = int((getattr(model.cfg, "n_key_value_heads", None) if shared else None) or model.cfg.n_heads)
        if node.head >= n:
            what = "key-value heads" if n != model.cfg.n_heads else "heads"
            raise SiteError(f"{name}: head {node.head} is out of range: a layer of the model has {n} {what}.")
    return node


def _labelled(
    contrast: Contrast,
    senders: Literal["heads", "mlps"] | Sequence[str],
    values: Float[Tensor, "sender row metric"],
    ends: Ends,
    metrics: Sequence[Metric],
    receivers: Sequence[str],
    through: str,
) -> Patches:
    config = contrast.questions.model.cfg
    coords: dict[str, Any]
    if senders == "heads":
        coords = {"layer": np.arange(config.n_layers), "head": np.arange(int(config.n_heads))}
    elif senders == "mlps":
        coords = {"layer": np.arange(config.n_layers)}
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
