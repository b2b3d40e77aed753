"""Finding circuits: every edge of a model scored on pairs of prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.circuits.circuit import Circuit
from locate.circuits.gathering import Gathered, Pairs, check_gap, check_slope
from locate.circuits.scoring import Sums, add_scores, edge_method
from locate.circuits.written import tellable
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metrics, warn_of_small_effects
from locate.contrast.pairs import Text
from locate.engine.rows import Budget
from locate.errors import FactError, LocateError
from locate.model.weights import model_fingerprint
from locate.names import DEFAULT_BUDGET

DEFAULT_METHOD = "eap-ig-inputs"
# Edges times pairs that are cut one by one unless they are named.
_MOST_CUTS = 2**18


@torch.inference_mode(False)
def find_circuit(
    model: TransformerBridge,
    pairs: Pairs,
    corrupt: Corruption | Text | Sequence[Text] | None = None,
    *,
    method: str = DEFAULT_METHOD,
    metric: Metrics | None = None,
    steps: int = 5,
    by_position: bool = False,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Circuit:
    """Score every edge of a model by what cutting it would do to the answer.

    An edge leads from what writes to the residual stream (the embedding, a head, an MLP) to what reads from it (the
    query of a head, the key or value of a key-value head, an MLP, the logits). Its score is
    (a_u(x′) − a_u(x)) · ∂m/∂in_v, summed over positions: what the writer u writes in the corrupted run and not in the
    clean one, times the gradient of the metric with respect to the stream as v reads it. So a negative score is of an
    edge that works for the metric. Scores are averaged over pairs.

    A mixture of experts is one component, whose output is the sum of what its experts add.

    Args:
        model: a raw-mode bridge.
        pairs: paired prompts (``locate.tasks``); or a fact, a text, or a list of those, with ``corrupt``; or a
            ``Contrast`` of a clean and a corrupted run that have kept what ``locate.circuits.written.written_hooks``
            names, or a list of those. Prompts may differ in length from pair to pair. The runs of a contrast may have
            read the same under other weights, as those of an edited (clean) and its base model.
        corrupt: a corruption, another prompt, or a list of those.
        method: where the gradient is taken. ``"eap"`` (Syed et al. 2023, arXiv:2310.10348): at the clean run.
            ``"eap-ig-inputs"`` (Hanna et al. 2024, arXiv:2403.17806), also ``"eap-ig"``: averaged over ``steps`` points
            between the corrupted and the clean embeddings; under other weights, between the weights of the two runs.
            ``"eap-ig-activations"``: averaged over points of what each component writes by itself, many times as slow.
            ``"clean-corrupted"``: at both runs. ``"eap-relp"``: at the clean run, by the rules of relevance propagation
            (see ``attribute``). ``"exact"``: no gradient, but each edge is cut, as ``patch_edges`` does; for small
            models.
        metric: of several the first counts; by default that of the paired prompts, or the logit of the clean answer
            over the other one.
        steps: of integration.
        by_position: keep scores position by position as well; all prompts must then have one length.
        budget: the most tokens in one pass, an eighth of it where gradients are kept.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        A circuit in which every edge is kept: choose by ``top``.

    Raises:
        FactError: there are no pairs, prompts of a pair do not fit each other, or lengths differ ``by_position``.
        LocateError: an unknown method, a metric without a gradient, or one that is the same in both runs.
        ModelError: the architecture writes to the stream what is neither attention nor an MLP, or reads it otherwise
            than through one norm; or weights differ between the runs by which no component writes.

    >>> circuit = locate.find_circuit(model, locate.tasks.ioi(model, 4), method="eap", progress=False)
    >>> circuit.top(20).n_edges
    20
    """
    how = edge_method(method)
    if steps < 1:
        raise LocateError(f"steps: must be 1 or more, found {steps}.")
    graph = tellable(model)
    gathered = Gathered(model, pairs, corrupt, metric=metric, budget=budget)
    if by_position and len(gathered.lengths) > 1:
        raise FactError(
            f"by_position: prompts need one length, found {gathered.lengths} tokens. Take the pairs of one length, as "
            "PairedPrompts.by_length gives them."
        )
    if how.path == "cut":
        if by_position:
            raise LocateError("by_position: an edge is cut at all positions at once. Use another method.")
        _check_cuts(model, int(graph.edges().sum()), gathered, budget)
    shape = len(graph.writers), len(graph.readers)
    sums = Sums(
        total=torch.zeros(shape, dtype=torch.float32), squares=torch.zeros(shape, dtype=torch.float32),
        by_position=torch.zeros(gathered.lengths[0], *shape, dtype=torch.float32) if by_position else None,
    )  # fmt: skip
    ends: list[Any] = []
    record: dict[str, Any] = {}
    with tqdm(total=len(gathered), desc="scoring edges", unit="pair", disable=not progress, delay=1) as bar:
        for contrast in gathered.contrasts():
            metrics = contrast.metrics(gathered.metric)[:1]
            ends.append(contrast.ends(metrics))
            record = record or {**contrast.record, "metric": metrics[0].name, "metric_label": metrics[0].label}
            before = sums.n
            add_scores(sums, contrast, graph, metrics[0], how, steps=steps)
            bar.update(sums.n - before)
    clean, corrupted = (torch.cat([getattr(one, side) for one in ends]) for side in ("target", "source"))
    check_gap(record["metric"], float(clean.mean()), float(corrupted.mean()))
    warn_of_small_effects(metrics, clean, corrupted)
    check_slope(record["metric"], float(sums.total.abs().max()) / sums.n, float(clean.mean() - corrupted.mean()))
    info = {
        **{name: record[name] for name in ("model", "prompt", "metric", "metric_label", "corruption")},
        "method": method, "pairs": len(gathered), "lengths": gathered.lengths, "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()), **({"tokens": record["tokens"]} if len(gathered.lengths) == 1 else {}),
        **({"steps": steps} if how.path in ("inputs", "activations") else {}),
    }  # fmt: skip
    places = None if sums.by_position is None else (sums.by_position / sums.n)
    return Circuit.of(
        graph, sums.mean, model_print=model_fingerprint(model), standard_error=sums.error, by_position=places, info=info
    )


def _check_cuts(model: TransformerBridge, edges: int, gathered: Gathered, budget: int) -> None:
    """Whether there are few enough edges and pairs to cut each edge on each pair.

    Raises:
        LocateError: there are not.
    """
    rows = edges * gathered.n_rows
    if rows > _MOST_CUTS:
        passes = -(-rows // Budget.of(model, budget).rows(max(gathered.lengths)))
        raise LocateError(
            f"Cutting each of {edges} edges on {gathered.n_rows} pairs takes about {passes} passes ({rows} rows; up to "
            f"{_MOST_CUTS} are run). Give fewer pairs, or score edges by another method and give the best of them to "
            "patch_edges, which has no bound."
        )
