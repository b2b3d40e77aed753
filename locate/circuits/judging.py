"""Circuits put to the test by running them: faithfulness, completeness, minimality."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import pandas as pd
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.circuits.comparing import Scored
from locate.circuits.evaluating import Ablation, Measured, evaluate
from locate.circuits.faithfulness import Faithfulness, counts, random_edges
from locate.circuits.gathering import Gathered, Pairs
from locate.circuits.networks import takes_part
from locate.circuits.selecting import feeding, possible_edges
from locate.circuits.written import tellable
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metrics
from locate.contrast.pairs import Text
from locate.errors import LocateError, suggest
from locate.model.weights import model_fingerprint
from locate.names import DEFAULT_BUDGET
from locate.sites.graph import Graph

Corrupt = Corruption | Text | Sequence[Text] | None
Masks = Bool[np.ndarray, "circuit writer reader"]


@runtime_checkable
class Ranked(Scored, Protocol):
    """A circuit whose best edges can be asked for."""

    @property
    def n_edges(self) -> int: ...
    def top(self, k: int | float, how: Any = ..., *, absolute: bool = ...) -> Scored: ...


@torch.inference_mode(False)
def faithfulness(
    circuit: Ranked,
    model: TransformerBridge,
    pairs: Pairs,
    corrupt: Corrupt = None,
    *,
    sizes: Sequence[int | float] | None = None,
    how: Literal["greedy", "threshold"] = "greedy",
    absolute: bool = True,
    ablation: Ablation = "corrupt",
    random: int = 0,
    seed: int = 0,
    metric: Metrics | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Faithfulness:
    """Run a circuit's best edges alone, at several sizes, and see what of the answer is left.

    Every other edge brings what its writer writes in the corrupted run.

    Args:
        circuit: with scores.
        model: the one that it was found in.
        pairs: as in ``find_circuit``; others than those that it was found on say more.
        corrupt: as in ``find_circuit``.
        sizes: counts of edges, or as floats shares of all possible ones; by default the published shares up to its own
            size.
        how: how the best edges are chosen; see ``Circuit.top``.
        absolute: whether scores are compared without their sign.
        ablation: what the other edges bring: ``"corrupt"``, the ``"mean"`` of that over pairs of one length, or
            ``"zero"``; the last two at every position.
        random: how many circuits of random edges to run beside, at every size.
        seed: of these.
        metric: as in ``find_circuit``; by default the pairs' own.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        LocateError: a circuit of another model, sizes that it does not have, or a metric without a gap between the
            model and no edge at all.
        FactError: as ``find_circuit`` does.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> curve = faithfulness(circuit, model, pairs, sizes=[20, 1.0], random=2, progress=False)
    >>> curve.curve.sizes["size"], curve.random.sizes["sample"]
    (2, 2)
    """
    if random < 0:
        raise LocateError(f"random: give 0 or more circuits, found {random}.")
    possible = possible_edges(circuit.writers, circuit.readers)
    found = counts(sizes, int(possible.sum()), circuit.n_edges)
    chosen = [circuit.top(size, how, absolute=absolute).kept.values for size in found]
    by_chance = rearrange(random_edges(possible, found, random, seed), "sample size ... -> (sample size) ...")
    masks = np.concatenate([np.stack(chosen), by_chance])
    measured = run(
        circuit, model, masks, pairs, corrupt, ablation=ablation, metric=metric, budget=budget, progress=progress
    )
    own, other = measured.values[: len(found)], measured.values[len(found) :]
    data: dict[str, Any] = {
        "values": (("size", "pair"), own), "whole": ("pair", measured.whole), "empty": ("pair", measured.empty)
    }  # fmt: skip
    if random:
        other = rearrange(other, "(sample size) pair -> sample size pair", size=len(found))
        data["random"] = (("sample", "size", "pair"), other)
    info = {
        "n_possible": int(possible.sum()), "how": how, "absolute": absolute, "ablation": ablation, "seed": seed,
        **{name: circuit.info.get(name) for name in ("model", "method")},
        "metric": measured.metric, "pairs": len(measured.whole),
    }  # fmt: skip
    return Faithfulness(data=xr.Dataset(data, coords={"size": found}), info=info)


@torch.inference_mode(False)
def completeness(
    circuit: Scored,
    model: TransformerBridge,
    pairs: Pairs,
    corrupt: Corrupt = None,
    *,
    samples: int = 10,
    seed: int = 0,
    ablation: Ablation = "corrupt",
    metric: Metrics | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> pd.DataFrame:
    """Take the same random parts out of a circuit and out of the model, and see whether both lose as much.

    A circuit that misses nothing behaves as the model does, whatever is taken out of both (Wang et al. 2023,
    arXiv:2211.00593). Parts are sets K of the circuit's heads and MLPs, each in with probability ½; of a
    component that is taken out all edges are cut by which it writes.

    Args:
        circuit: as it is kept.
        model: the one that it was found in.
        pairs: as in ``faithfulness``.
        corrupt: as in ``faithfulness``.
        samples: how many sets to try, beside the empty one.
        seed: of these.
        ablation: as in ``faithfulness``.
        metric: as in ``faithfulness``.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        One row for each set: ``removed`` (names), ``circuit`` and ``model`` (faithfulness of C ∖ K and of M ∖ K), and
        ``gap``, the distance of the two.

    >>> table = completeness(circuit.top(30), model, locate.tasks.ioi(model, 4), samples=2, progress=False)
    >>> table.columns.tolist(), len(table)
    (['removed', 'circuit', 'model', 'gap'], 3)
    """
    if samples < 1:
        raise LocateError(f"samples: give 1 or more sets, found {samples}.")
    possible, fed = possible_edges(circuit.writers, circuit.readers), feeding(circuit.writers, circuit.readers)
    inner = np.flatnonzero(takes_part(circuit.kept.values, fed) & np.array([one.order > 0 for one in circuit.writers]))
    if not len(inner):
        raise LocateError("No head and no MLP takes part in this circuit, so there is nothing to take out of it.")
    generator = np.random.default_rng(seed)
    sets = [inner[:0], *(inner[generator.random(len(inner)) < 0.5] for _ in range(samples))]
    masks = [_without(base, some) for base in (circuit.kept.values, possible) for some in sets]
    measured = run(
        circuit, model, np.stack(masks), pairs, corrupt, ablation=ablation, metric=metric, budget=budget,
        progress=progress,
    )  # fmt: skip
    own, whole = rearrange(measured.faithfulness(), "(base set) -> base set", base=2)
    names = [[circuit.writers[index].name for index in some] for some in sets]
    return pd.DataFrame({"removed": names, "circuit": own, "model": whole, "gap": np.abs(own - whole)})


@torch.inference_mode(False)
def minimality(
    circuit: Scored,
    model: TransformerBridge,
    pairs: Pairs,
    corrupt: Corrupt = None,
    *,
    by: Literal["node", "edge"] = "node",
    ablation: Ablation = "corrupt",
    metric: Metrics | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> pd.DataFrame:
    """Take each part out of a circuit by itself, and see what it loses: what loses nothing need not be there.

    Args:
        circuit: as it is kept.
        model: the one that it was found in.
        pairs: as in ``faithfulness``.
        corrupt: as in ``faithfulness``.
        by: whether to take out components, with all edges by which they write, or single edges.
        ablation: as in ``faithfulness``.
        metric: as in ``faithfulness``.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        One row for each part, what matters most first: its name (or ``writer`` and ``reader``), ``faithfulness``
        without it, and ``lost``, with the bounds ``low`` and ``high`` of a bootstrap over pairs.

    >>> table = minimality(circuit.top(30), model, locate.tasks.ioi(model, 4), progress=False)
    >>> table.columns.tolist()
    ['node', 'faithfulness', 'lost', 'low', 'high']
    """
    kept, fed = circuit.kept.values, feeding(circuit.writers, circuit.readers)
    if by == "node":
        inner = np.flatnonzero(takes_part(kept, fed) & np.array([one.order > 0 for one in circuit.writers]))
        masks = [_without(kept, [index]) for index in inner]
        parts = {"node": [circuit.writers[index].name for index in inner]}
    elif by == "edge":
        places = np.argwhere(kept)
        masks = [_cut(kept, place) for place in places]
        parts = {
            "writer": [circuit.writers[at].name for at, _ in places],
            "reader": [circuit.readers[to].name for _, to in places],
        }
    else:
        raise LocateError(f"by: give node or edge, found {by!r}.")
    if not masks:
        raise LocateError("There is nothing in this circuit to take out of it.")
    measured = run(
        circuit, model, np.stack([kept, *masks]), pairs, corrupt, ablation=ablation, metric=metric, budget=budget,
        progress=progress,
    )  # fmt: skip
    found = measured.faithfulness()
    resampled = measured.resampled()
    low, high = np.percentile(resampled[:, :1] - resampled[:, 1:], [2.5, 97.5], axis=0)
    table = pd.DataFrame({**parts, "faithfulness": found[1:], "lost": found[0] - found[1:], "low": low, "high": high})
    return table.sort_values("lost", key=abs, ascending=False, ignore_index=True)


def run(
    circuit: Scored,
    model: TransformerBridge,
    masks: Masks,
    pairs: Pairs,
    corrupt: Corrupt,
    *,
    ablation: Ablation,
    metric: Metrics | None,
    budget: int,
    progress: bool,
) -> Measured:
    """What a model's circuits of these edges are measured as.

    Raises:
        LocateError: the circuit is of another model.
    """
    if ablation not in get_args(Ablation):
        raise LocateError(f"There is no ablation {ablation!r}. {suggest(ablation, get_args(Ablation))}")
    graph = check_model(circuit, model)
    gathered = Gathered(model, pairs, corrupt, metric=metric, budget=budget)
    if ablation == "mean" and len(gathered.lengths) > 1:
        raise LocateError(
            f"The mean over pairs needs prompts of one length, found {gathered.lengths} tokens. Take the pairs of one "
            "length, as PairedPrompts.by_length gives them, or another ablation."
        )
    with tqdm(total=gathered.n_rows * (len(masks) + 1), desc="running circuits", disable=not progress, delay=1) as bar:
        return evaluate(gathered, graph, masks, ablation=ablation, progress=bar.update)


def check_model(circuit: Scored, model: TransformerBridge) -> Graph:
    """The graph of the model that a circuit was found in.

    Raises:
        LocateError: the model is another one.

    >>> check_model(circuit, model).writers[1].name
    'a0.h0'
    """
    graph = tellable(model)
    own, its = ([one.name for one in side] for side in (graph.writers, circuit.writers))
    if own != its or model_fingerprint(model) != circuit.info.get("model_print"):
        raise LocateError(
            f"The circuit is of another model: it was found in {circuit.info.get('model')} with {len(its)} writers, "
            f"and this is {model.cfg.model_name} with {len(own)}, or with other weights. Give the model that it was "
            "found in, or find it anew."
        )
    return graph


def _without(kept: Bool[np.ndarray, "writer reader"], writers: Any) -> Bool[np.ndarray, "writer reader"]:
    """Without the edges by which these components write."""
    found = kept.copy()
    found[writers] = False
    return found


def _cut(kept: Bool[np.ndarray, "writer reader"], place: Any) -> Bool[np.ndarray, "writer reader"]:
    found = kept.copy()
    found[tuple(place)] = False
    return found
