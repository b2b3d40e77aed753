"""Choosing the layer to edit by what edits there do, and not by where tracing peaks."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.evaluation import baseline, evaluate_each
from edit.methods import EditingMethod
from edit.requests.requests import EditRequest
from locate.engine.reach import reaching_layers
from locate.errors import FactError, NumericsError, SiteError
from locate.facts.facts import Fact
from locate.model.anatomy import check_layer

_SCORES = ("efficacy", "paraphrase", "neighbourhood", "score")


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerChoice:
    """What edits at each layer did on facts kept apart for the choice.

    Attributes:
        table: by layer (the last one, where a method spreads over several), percentages of efficacy, paraphrase and
            neighbourhood success, and their harmonic mean, the score; NaN for a layer that could not be edited.
        layer: of the largest score; of several the one with the largest mean P(o*).

    >>> choice.layer in choice.table.index                                          # doctest: +SKIP
    True
    """

    table: pd.DataFrame

    @property
    def layer(self) -> int:
        """The layer whose edits score best."""
        ordered = self.table.sort_values(["score", "P(new)"], ascending=False)
        return int(ordered.index[0])  # type: ignore[arg-type]


def choose_layer(
    model: TransformerBridge,
    method: EditingMethod,
    cases: Sequence[EditRequest | Fact],
    *,
    layers: Sequence[int] | None = None,
    progress: bool = True,
) -> LayerChoice:
    """Edit each case alone at each layer, and compare.

    Where causal tracing peaks is not where edits work best (Hase et al. 2023, arXiv:2301.04213), so the choice is
    measured. Judge the method afterwards on other facts than these.

    Args:
        model: a raw-mode bridge.
        method: an editing method; one that spreads over several layers ends at the layer that is tried.
        cases: facts with paraphrases and neighbours, kept apart for this.
        layers: to try; by default every second one of the first half, as far as any is read at earlier tokens.
        progress: whether to show a bar.

    Raises:
        FactError: no cases, or cases without paraphrases or neighbours, of which there is no score.
        SiteError: no such layer, or none to try.
        NumericsError: no layer could be edited; one of several is a warning.

    >>> edit.choose_layer(model, edit.ROME(), facts[:20], layers=[3, 4, 5]).layer   # doctest: +SKIP
    4
    """
    n = model.cfg.n_layers
    usual = range(0, max(1, min(n // 2, len(reaching_layers(model)))), 2)
    tried = [check_layer(model, layer) for layer in (usual if layers is None else layers)]
    if not tried:
        raise SiteError("layers: give at least one to try.")
    asked = [(c.paraphrases, c.fact.neighbours) if isinstance(c, EditRequest) else (c.paraphrases, c.neighbours)
             for c in cases]  # fmt: skip
    if not any(paraphrases for paraphrases, _ in asked) or not any(neighbours for _, neighbours in asked):
        raise FactError("Layers are compared by a score, for which some cases need paraphrases and some neighbours.")
    rows: dict[int, dict[str, float]] = {}
    failed: NumericsError | None = None
    before = baseline(model, cases, generate=False, progress=progress)
    for layer in tqdm(tried, "layers", disable=not progress, delay=1):
        try:
            result = evaluate_each(model, method, cases, layer=layer, generate=False, baseline=before, progress=False)
        except NumericsError as error:  # one layer that cannot be edited must not cost the others
            failed = error
            warnings.warn(f"Layer {layer} has no score: {error}", stacklevel=2)
            rows[layer] = dict.fromkeys([*_SCORES, "P(new)"], float("nan"))
            continue
        percentages: Any = result.summary()["edited"]
        prompts: Any = result.rows.query("model == 'edited' and probe == 'efficacy'")
        named = {name: float(percentages[name]) for name in _SCORES}
        rows[layer] = {**named, "P(new)": float(prompts["probability_new"].mean())}
    if failed is not None and all(math.isnan(row["score"]) for row in rows.values()):
        raise failed
    return LayerChoice(table=pd.DataFrame(rows).T.rename_axis("layer"))
