"""Neurons in the vocabulary: the tokens that one speaks for when it is active, and those that make it so."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.embedding import entering_blocks
from locate.engine.rows import WHOLE_BUDGET
from locate.errors import LocateError, ModelError, SiteError
from locate.facts.prompts import token_strings
from locate.model.anatomy import check_layer, norm_after
from locate.model.norms import NormShape
from locate.model.running import running
from locate.model.weights import read_by
from locate.sites.contributions import down_weight
from locate.sites.inputs import mlp_input
from locate.sites.site import Site
from locate.sites.table import site_row

# By the name of a bridge's projection, of MLPs with a gate and without.
_READERS = {"gate": "reads (gate)", "in": "reads (up)"}
_ALONE = "reads"


@torch.no_grad()
def neuron_vocabulary(model: TransformerBridge, neurons: Sequence[Site] | Site, *, k: int = 10) -> pd.DataFrame:
    """The tokens that neurons write for and against most, and those that they read most and least.

    What a neuron writes is its row of the down-projection, with the gains of the norm behind the MLP, where there is
    one, and of the final norm, and their centring, through the unembedding: the logits that a unit of activation adds
    where both norms scale by 1. What it reads is its column of the up-projection, and of the gate where there is one,
    with the gain and centring of the norm before the MLP, against what each token alone brings to the first block:
    what the token would add to the projection if it were all of the stream, at a scale of 1.

    Args:
        model: a raw-mode bridge.
        neurons: sites of kind ``neuron``, such as ``locate.knowledge_neurons(…).top(5)`` gives.
        k: how many tokens at either end.

    Returns:
        One row for each neuron, ``part`` (``writes``; ``reads``, or ``reads (gate)`` and ``reads (up)``), ``end``
        (``top``, ``bottom``) and ``rank``, with ``token``, ``token_id`` and ``score``.

    Raises:
        SiteError: no neurons, or sites that are none that the model has.
        ModelError: a layer has no single MLP, or one that reads the stream in another way.
        LocateError: k is not 1 or more.

    >>> table = locate.neuron_vocabulary(model, locate.Site("neuron", layer=3, neuron=5), k=2)
    >>> list(table["part"].unique())
    ['writes', 'reads (gate)', 'reads (up)']
    """
    asked = [neurons] if isinstance(neurons, Site) else list(neurons)
    if not asked:
        raise SiteError("There are no neurons; give at least one.")
    if not 1 <= k <= model.cfg.d_vocab:
        raise LocateError(f"k must be from 1 to the {model.cfg.d_vocab} tokens that there are, found {k}.")
    places = [_checked(model, site) for site in asked]
    with running(model):
        written, read = _written(model, places), [_read(model, *place) for place in places]
        columns = iter(_brought(model, torch.stack([column for own in read for _, column in own])))
        tables = [
            _table(model, *place, {"writes": row, **{name: next(columns) for name, _ in own}}, k)
            for place, row, own in zip(places, written, read, strict=True)
        ]
    return pd.concat(tables, ignore_index=True)


def _checked(model: TransformerBridge, site: Site) -> tuple[int, int]:
    """The layer and the neuron."""
    if site_row(site.kind).unit != "neuron" or site.neuron is None:
        raise SiteError(f"A neuron is a Site('neuron', layer=…, neuron=…), found {site}.")
    layer = check_layer(model, site.layer)
    n = len(down_weight(model, layer))
    if not 0 <= site.neuron < n:
        raise SiteError(f"Neuron {site.neuron} is out of range: layer {layer} has {n} neurons, 0 to {n - 1}.")
    return layer, site.neuron


def _written(model: TransformerBridge, places: Sequence[tuple[int, int]]) -> Float[Tensor, "neuron vocab"]:
    """The logits of a unit of each neuron's activation, where norms scale by 1."""
    vectors = []
    for layer, neuron in places:
        vector, after = down_weight(model, layer)[neuron], norm_after(model.blocks[layer], "mlp")
        for norm in (model.ln_final,) if after is None else (after, model.ln_final):
            vector = NormShape.of(norm, vector[None, None]).unscaled(vector)
        vectors.append(vector)
    given = torch.stack(vectors)
    logits = model.unembed(torch.cat([given, torch.zeros_like(given[:1])])[None])[0]
    return logits[:-1] - logits[-1]  # the unembedding's bias is no neuron's


def _read(model: TransformerBridge, layer: int, neuron: int) -> list[tuple[str, Float[Tensor, "d_model"]]]:
    """What each projection that a neuron has reads of the stream, where the norm before scales by 1."""
    mlp, width = model.blocks[layer].mlp, len(down_weight(model, layer))
    found, norm = [], mlp_input(model, layer).norm
    for name, title in _READERS.items():
        module = getattr(getattr(mlp, name, None), "original_component", None)
        if module is None:
            continue
        weight = read_by(module, model.cfg.d_model)
        if weight.shape[1] != width:
            raise ModelError(
                f"Layer {layer} of {type(model.original_model).__name__} has {width} neurons, and its projection "
                f"{name!r} another number, {weight.shape[1]}: what each of them reads cannot be told."
            )
        column = weight[:, neuron]
        if norm is not None:
            shape = NormShape.of(norm, column[None, None])
            column = column * shape.gain.flatten().to(column)
            column = column - column.mean() if shape.centred else column
        found.append((title, column))
    if not found:
        raise ModelError(
            f"TransformerLens does not show the projection that the MLP of layer {layer} of "
            f"{type(model.original_model).__name__} reads by (mlp.in), so what its neurons read cannot be told."
        )
    return found if len(found) > 1 else [(_ALONE, found[0][1])]


def _brought(model: TransformerBridge, columns: Float[Tensor, "column d_model"]) -> Float[Tensor, "column vocab"]:
    """What each token alone brings to the first block, along some directions."""
    tokens: Int[Tensor, "vocab"] = torch.arange(model.cfg.d_vocab)
    parts = [
        einsum(columns, entering_blocks(model, part[:, None])[:, 0].to(columns), "column d, token d -> column token")
        for part in tokens.split(WHOLE_BUDGET)
    ]
    return torch.cat(parts, dim=1)


def _table(
    model: TransformerBridge, layer: int, neuron: int, parts: Mapping[str, Float[Tensor, "vocab"]], k: int
) -> pd.DataFrame:
    ends = []
    for name, scores in parts.items():
        for end, largest in (("top", True), ("bottom", False)):
            best = scores.float().topk(k, largest=largest)
            ends.append(pd.DataFrame({
                "layer": layer, "neuron": neuron, "part": name, "end": end, "rank": range(1, k + 1),
                "token": token_strings(model, best.indices), "token_id": best.indices.tolist(),
                "score": best.values.tolist(),
            }))  # fmt: skip
    return pd.concat(ends, ignore_index=True)
