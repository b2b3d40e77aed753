"""Query neurons: which shallower neurons say what value heads take up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET, FrozenRun, freeze
from locate.engine.rows import Budget
from locate.errors import FactError, LocateError
from locate.facts.facts import Fact
from locate.facts.prompts import token_strings
from locate.model.norms import NormShape
from locate.model.weights import check_down_projections, written_by
from locate.neurons.asking import AskedFact, ask
from locate.neurons.scores import NeuronScores
from locate.neurons.states import State, state_of
from locate.neurons.writing import head_hooks, layers_of_heads
from locate.sites.contributions import neuron_contributions, passage
from locate.sites.inputs import attention_input, check_inputs, projection
from locate.sites.table import hook_name


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryNeurons(NeuronScores):
    """How much each neuron says of what the top value attention neurons take up, in nats of the answer's gain.

    Attributes:
        data: ``scores`` (dims ``fact, layer, neuron``), summed over the prompt's positions; ``strongest``, the
            position where most of a neuron's score is.
        info: how it was made; ``attention_neurons``, of each fact.

    >>> queries = locate.query_neurons(model, fact, heads=3, neurons=5, progress=False)
    >>> queries.attention_neurons().columns.tolist()
    ['layer', 'head', 'position', 'dim', 'gain', 'coefficient', 'token']
    """

    stored_as = "query_neurons"

    def attention_neurons(self, fact: int = 0) -> pd.DataFrame:
        """The value attention neurons of a fact: entries of heads' values at positions, the largest gains first.

        Raises:
            SiteError: there is no such fact.
        """
        self._check(fact)
        table = pd.DataFrame(self.info["attention_neurons"][fact])
        return table.assign(token=[self.info["tokens"][fact][position] for position in table["position"]])


def load_query_neurons(path: str | Path) -> QueryNeurons:
    """Read query neurons that were saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> queries = locate.query_neurons(model, fact, heads=3, neurons=5, progress=False)
    >>> locate.load_query_neurons(queries.save("queries.nc")).best() == queries.best()
    True
    """
    return QueryNeurons.load(path)


def query_neurons(
    model: TransformerBridge,
    facts: Sequence[Fact] | Fact,
    *,
    heads: int = 10,
    neurons: int = 30,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> QueryNeurons:
    """Which neurons of shallower layers activate the value attention neurons (Yu & Ananiadou 2024, arXiv:2312.12141).

    A value attention neuron is one entry of a head's value at one position; it adds its coefficient times its row of
    the output projection. Those of the largest log-probability gains are taken, among the heads and positions of the
    largest gains. A query neuron's part in a coefficient is the inner product of what it writes at that position with
    the entry's key, the column of the value projection, with norms between at the scales that they have. Its score sums
    these parts over the value neurons, each worth its gain divided by its coefficient.

    Args:
        model: a raw-mode bridge.
        facts: one or several, each asked by its prompt.
        heads: how many heads and positions are looked into.
        neurons: how many value attention neurons are taken.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: there are no facts, or a prompt cannot be used.
        LocateError: no heads or no neurons were asked for.
        ModelError: as ``neuron_logprob_gain`` does; or attention does not read the stream through one norm at most.

    >>> locate.query_neurons(model, fact, heads=3, neurons=5, progress=False).best().kind
    'neuron'
    """
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    if not facts:
        raise FactError("There are no facts to attribute; give at least one.")
    if heads < 1 or neurons < 1:
        raise LocateError(f"heads and neurons must be 1 or more, found {heads} and {neurons}.")
    check_down_projections(model)
    check_inputs(model)
    questions = [ask(model, fact, own=True) for fact in facts]
    at_once = Budget.of(model, budget).distributions
    scores, places, found = [], [], []
    for one in tqdm(questions, "query neurons", unit="fact", disable=not progress, delay=1):
        by_position, values = _of_fact(model, one, heads, neurons, at_once, budget)
        scores.append(by_position.sum(1))
        places.append(by_position.abs().argmax(1))
        found.append(values)
    dims = ("fact", "layer", "neuron")
    data = {
        name: (dims, torch.stack(table).cpu().numpy()) for name, table in (("scores", scores), ("strongest", places))
    }
    info = {
        "model": str(model.cfg.model_name), "method": "query neurons", "measure": "the value neurons' gain",
        "prompts": [[one.prompts[0].text] for one in questions],
        "tokens": [token_strings(model, one.prompts[0].tokens) for one in questions],
        "answer_tokens": [one.spelled for one in questions], "attention_neurons": found,
    }  # fmt: skip
    coords = {"fact": [fact.text for fact in facts], "layer": range(model.cfg.n_layers)}
    return QueryNeurons(data=xr.Dataset(data, coords=coords), info=info)


@torch.no_grad()
def _of_fact(
    model: TransformerBridge, one: AskedFact, heads: int, neurons: int, at_once: int, budget: int
) -> tuple[Float[Tensor, "layer position neuron"], list[dict[str, Any]]]:
    n, having = model.cfg.n_layers, layers_of_heads(model)
    kinds = ("neuron", "down_out")
    names = [*head_hooks(model, having), *(hook_name(kind, layer) for layer in range(n) for kind in kinds)]
    run = freeze(model, one.prompts[0].tokens[None], keep=names, budget=budget)
    state = state_of(run, one, [], having)
    values = _value_neurons(run, state, heads, neurons, at_once)
    wanted = torch.zeros(
        n, run.tokens.shape[1], model.cfg.d_model, dtype=torch.float32, device=state.readout.gain.device
    )
    for value in values:
        layer, position = value["layer"], value["position"]
        key = _key(run, layer, value["head"], value["dim"], position)
        # Whatever was written to the stream before that layer's attention read it.
        wanted[:layer, position] += (value["gain"] / value["coefficient"] * key).to(wanted)
    each = []
    for layer in range(n):
        own, projected = (run.kept[hook_name(kind, layer)] for kind in kinds)
        along, _ = neuron_contributions(model, layer, own, projected, wanted[layer][None].to(own.device))
        each.append(along[0].float().cpu())
    return torch.stack(each), values


def _value_neurons(run: FrozenRun, state: State, heads: int, neurons: int, at_once: int) -> list[dict[str, Any]]:
    """The value attention neurons of the largest gains, in the heads and positions of the largest gains."""
    gains = {layer: state.gains(own.stream, own.vectors.flatten(0, 1), at_once) for layer, own in state.heads.items()}
    length = run.tokens.shape[1]
    places = [
        (float(gain), layer, index // length, index % length)
        for layer, own in gains.items() for index, gain in enumerate(own.tolist())
    ]  # fmt: skip
    found: list[dict[str, Any]] = []
    for _, layer, head, position in sorted(places, reverse=True)[:heads]:
        coefficients, vectors = _entries(run, layer, head, position)
        own = state.gains(state.heads[layer].stream, vectors, at_once)
        found += [
            {"layer": layer, "head": head, "position": position, "dim": dim, "gain": gain, "coefficient": coefficient}
            for dim, (gain, coefficient) in enumerate(zip(own.tolist(), coefficients.tolist(), strict=True))
            if coefficient
        ]  # fmt: skip
    return sorted(found, key=lambda value: value["gain"], reverse=True)[:neurons]


def _entries(
    run: FrozenRun, layer: int, head: int, position: int
) -> tuple[Float[Tensor, "d_head"], Float[Tensor, "d_head d_model"]]:
    """The entries of a head's value at a position, and what each adds to the last position's stream."""
    model = run.model
    values, pattern, z, projected = (
        run.kept[hook_name(kind, layer)]
        for kind in ("attn_head_v", "attn_head_pattern", "attn_head_z", "attn_proj_out")
    )
    n_heads = z.shape[-2]
    coefficients = values[0, position, _kv_head(head, n_heads, values.shape[2])]
    weight = written_by(model.blocks[layer].attn.o.original_component, model.cfg.d_model).detach()
    rows = rearrange(weight, "(head d_head) d_model -> head d_head d_model", head=n_heads)[head]
    written = pattern[0, head, -1, position] * coefficients[:, None] * rows.to(coefficients)
    return coefficients.float(), passage(model, layer, projected[:, -1:])(written[None, None])[0, 0].float()


def _key(run: FrozenRun, layer: int, head: int, dim: int, position: int) -> Float[Tensor, "d_model"]:
    """The direction in the stream along which an entry of a head's value is read, the norm's scale held."""
    model, read = run.model, attention_input(run.model, layer)
    weights = projection(model, layer, "v")
    n_heads = run.kept[hook_name("attn_head_z", layer)].shape[-2]
    key = weights[_kv_head(head, n_heads, len(weights)), dim].float()
    if read.norm is None:
        return key
    stream = run.residuals[layer][:, position : position + 1]
    shape = NormShape.of(read.norm, stream)
    key = key * shape.scaled(stream, read.norm(stream)).flatten()
    return key - key.mean() if shape.centred else key


def _kv_head(head: int, n_heads: int, n_kv_heads: int) -> int:
    """The key-value head that serves a head."""
    return head * n_kv_heads // n_heads
