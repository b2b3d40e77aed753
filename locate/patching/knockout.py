"""Attention knockout: cut the flow from some tokens to others, and see whether the answer needed it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr
from einops import rearrange
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.measures import as_metrics
from locate.contrast.metrics import Metrics, joint_measure, reading_of
from locate.contrast.sweep import check_window, window_layers
from locate.engine import DEFAULT_BUDGET, BlockedAttention, Branch, FrozenRun, check_live, freeze
from locate.errors import SiteError
from locate.facts.answers import encode_question
from locate.facts.facts import Fact
from locate.facts.prompts import Positions, answer_strings, encode_target, resolve_positions, token_strings
from locate.facts.questions import Questions
from locate.model.precision import Precision, check_precision, computing_in
from locate.results import Measured, place_of_largest
from locate.showing import shown
from locate.sites.places import hooks_of
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# As large as the rounding of a divergence from itself.
_NOTHING = 1e-6
_WINDOW = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Knockout(Measured):
    """The answer with attention blocked in each window of layers, for one or more metrics (``of`` changes the view).

    Attributes:
        data: ``values`` with dims ``metric, source, layer`` (and ``head``), ``clean`` with dim ``metric``.
        metric: the metric in view.
        info: how it was made.

    >>> knocked = locate.attention_knockout(model, fact)                               # doctest: +SKIP
    >>> knocked.change.dims                                                            # doctest: +SKIP
    ('source', 'layer')
    """

    stored_as = "knockout"
    figures: ClassVar[Mapping[str, str]] = {"plot": "locate.patching.figures:plot_knockout"}

    @property
    def values(self) -> xr.DataArray:
        """The metric with attention blocked."""
        return self._view("values")

    @property
    def change(self) -> xr.DataArray:
        """The relative change, (m_blocked − m) / |m|; where m is 0 unblocked, as a divergence is, m_blocked."""
        return (self.values - self.clean) / (abs(self.clean) if self.is_relative else 1.0)

    @property
    def is_relative(self) -> bool:
        """Whether ``change`` is: a divergence is 0 without a block, and nothing can be relative to it."""
        return abs(self.clean) > _NOTHING

    def best(self) -> Site:
        """The attention in the centre of the window whose blocking changes the answer most; of single heads, the head.

        >>> knocked.best().kind
        'attn'
        """
        where = place_of_largest(abs(self.change))
        head = where.get("head")
        return Site("attn" if head is None else "attn_head", layer=where["layer"], head=head)

    def plot(self, **options: Any) -> "Figure":
        """Lines over layers; see ``locate.plots.plot_knockout``."""
        return self.draw(**options)

    def _on(self) -> str:
        return f"{self.info['prompt']} → {self.info['answer'].strip()}"

    def _found(self) -> str:
        change = self.change.values.ravel()
        most = float(change[np.nanargmax(abs(change))])
        how = f"{shown(self.clean)}, changed by {shown(100 * most)}%" if self.is_relative else shown(most)
        return f"{self.metric} {how} at most"

    def _rows(self) -> pd.DataFrame:
        """The windows of the largest change, either way."""
        table = self.to_dataframe().dropna(subset="change")
        return table.sort_values("change", key=abs, ascending=False, ignore_index=True)

    def _tables(self) -> list[xr.Dataset]:
        return [xr.Dataset({"value": self.values, "change": self.change})]


def load_knockout(path: str | Path) -> Knockout:
    """Read a knockout that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> locate.load_knockout("knocked.nc").metric
    'probability'
    """
    return Knockout.load(path)


def attention_knockout(
    model: TransformerBridge,
    fact: Fact,
    *,
    source: Positions | Mapping[str, Positions] = "subject",
    target: Positions = "last",
    window: int | None = None,
    heads: bool = False,
    metric: Metrics = "probability",
    precision: Precision | str = "model",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Knockout:
    """Keep some tokens from attending to others in a window of layers, around each layer in turn.

    The method of Geva et al. 2023 (arXiv:2304.14767): the attention scores from ``target`` to ``source`` are set to −∞
    in [l − k/2, l + k/2], and the relative change of the answer's probability is reported. A token that could then
    attend to nothing keeps itself.

    Args:
        model: a raw-mode bridge.
        fact: what to ask.
        source: the tokens that are not attended to: ``"subject"``, ``"last"``, ``"others"`` or any positions; or
            several such sets by name, to compare them.
        target: the tokens that do not attend to them.
        window: how many layers are blocked together; by default 9 (or all layers of a smaller model).
        heads: block one head at a time, in a window of one layer.
        metric: one or more of the metrics.
        precision: ``"bfloat16"`` runs the matrix products in bfloat16.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: the subject is not in the prompt, or the target has no token.
        SiteError: a position out of range, a window that the model has no room for, or one of several layers for heads.

    >>> knocked = locate.attention_knockout(model, fact, source="subject", target="last", window=9)
    >>> knocked.change.dims
    ('source', 'layer')
    """
    n_layers = model.cfg.n_layers
    if heads and window not in (None, 1):
        raise SiteError(f"Single heads are blocked in one layer at a time; leave window={window} out.")
    window = 1 if heads else check_window(window, n_layers, usual=_WINDOW)
    metrics = as_metrics(metric)
    check_precision(precision, model)
    check_live(model, hooks_of(model, "attn_scores")[0])
    prompt = encode_question(model, fact)
    alone, reading = torch.zeros(1, dtype=torch.long), reading_of(model, metrics, [prompt], [fact.target])
    run = freeze(model, reading.rows(prompt.tokens[None], alone), at=reading.at(alone), budget=budget)
    answer = encode_target(model, prompt, fact.target)[:1]
    questions = Questions(
        model=model, prompts=(prompt,), answers=answer, targets_new=(fact.target_new,), whole=reading.whole,
        clean=reading.next_token(run.logits, alone),
    )  # fmt: skip
    measure = joint_measure(metrics, questions, alone)
    clean = measure(run.logits, run.at[0])[0].cpu()
    if isinstance(source, Mapping):
        named = {str(name): resolve_positions(prompt, places) for name, places in source.items()}
    else:
        label = source if isinstance(source, str) else "positions " + ", ".join(map(str, source))
        named = {label: resolve_positions(prompt, source)}
    if not named:
        raise SiteError("source: give at least one set of positions.")
    queries = resolve_positions(prompt, target)
    for name, keys in named.items():
        if min(keys) > max(queries):
            warnings.warn(
                f"No target stands at or after the source {name!r}, so nothing flows from it that could be blocked.",
                stacklevel=2,
            )
    units = list(range(int(model.cfg.n_heads))) if heads else [None]
    values = clean.expand(len(named), n_layers, len(units), -1).clone()
    with tqdm(total=len(named), desc="attention knockout", disable=not progress, delay=1) as bar:
        for index, keys in enumerate(named.values()):
            branches = [_branch(run, queries, keys, layer, window, units) for layer in range(n_layers)]
            with computing_in(precision, model):
                found = run.resume(min(queries), branches, measure=measure)
            values[index] = rearrange(found.float().cpu(), "(layer head) metric -> layer head metric", layer=n_layers)
            bar.update()
    # Of a hybrid's layers, some have no attention that could be blocked.
    spans = [window_layers(layer, window, n_layers) for layer in range(n_layers)]
    values[:, [not hooks_of(model, "attn_scores", span) for span in spans]] = float("nan")
    dims = ("metric", "source", "layer", *(["head"] if heads else []))
    table = rearrange(values if heads else values[:, :, 0], "source layer ... metric -> metric source layer ...")
    coords: dict[str, Any] = {
        "metric": [one.name for one in metrics], "source": list(named), "layer": np.arange(n_layers),
        **({"head": units} if heads else {}),
    }  # fmt: skip
    info = {
        "model": str(model.cfg.model_name), "prompt": prompt.text, "subject": fact.subject,
        "answer": model.tokenizer.decode(answer.tolist()), "answer_tokens": answer_strings(model, prompt, fact.target),
        "target_new": fact.target_new, "window": window,
        "tokens": token_strings(model, prompt.tokens), "precision": precision,
        "target": target if isinstance(target, str) else "positions " + ", ".join(map(str, target)),
        "positions": {name: list(keys) for name, keys in named.items()},
        "metrics": {one.name: one.label for one in metrics},
    }  # fmt: skip
    data = xr.Dataset({"values": (dims, table.numpy()), "clean": ("metric", clean.float().numpy())}, coords=coords)
    return Knockout(data=data, metric=metrics[0].name, info=info)


def _branch(
    run: FrozenRun, queries: Sequence[int], keys: tuple[int, ...], layer: int, window: int, units: Sequence[int | None]
) -> Branch:
    span = window_layers(layer, window, run.n_layers)
    start = min(queries)
    heads = None if units[0] is None else torch.tensor(units)
    blocked = BlockedAttention(queries=tuple(query - start for query in queries), keys=keys, heads=heads)
    rows = torch.zeros(len(units), dtype=torch.long)
    return Branch(
        layer=span.start, rows=rows, states=run.residuals[span.start][:, start:].expand(len(units), -1, -1),
        interventions=dict.fromkeys(hooks_of(run.model, "attn_scores", span), blocked),
    )  # fmt: skip
