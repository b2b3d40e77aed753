"""Where attention and MLPs already say the answer."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.bootstrap import mean_interval
from locate.engine import freeze
from locate.errors import FactError
from locate.facts.answers import encode_question
from locate.facts.facts import Fact
from locate.facts.prompts import encode_target
from locate.sites.places import layers_with
from locate.sites.table import hook_name


def attribute_extraction_rate(
    model: TransformerBridge,
    facts: Sequence[Fact],
    *,
    top: int = 1,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """How often each layer's attention or MLP output at the last token already says the answer.

    Geva et al. 2023 (arXiv:2304.14767), section 6: the update is projected on the vocabulary, and it extracts the
    attribute where the answer's first token is among the projection's ``top`` tokens.

    Args:
        model: a raw-mode bridge.
        facts: what to ask.
        top: how many of the projection's first tokens count.
        confidence: of the intervals, percentile bootstraps over facts (missing for a single one).
        seed: of the bootstrap.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        ``rate``, ``low`` and ``high``, dims ``kind`` (``attn``, ``mlp``) and ``layer``, NaN in layers without one;
        ``any`` (dim ``kind``): the share of facts whose attribute is extracted in at least one layer.

    Raises:
        FactError: there are no facts.

    >>> rates = locate.attribute_extraction_rate(model, facts[:8])
    >>> rates["rate"].dims
    ('kind', 'layer')
    """
    if not facts:
        raise FactError("There are no facts; give at least one.")
    n_layers, kinds = model.cfg.n_layers, ("attn", "mlp")
    places = [(kind, layer) for kind in kinds for layer in layers_with(model, kind)]
    names = [hook_name(*place) for place in places]
    said = []
    for fact in tqdm(facts, "attribute extraction", disable=not progress, delay=1):
        prompt = encode_question(model, fact)
        run = freeze(model, prompt.tokens[None], keep=names)
        answer = int(encode_target(model, prompt, fact.target)[0])
        updates = torch.stack([run.kept[name][0, -1] for name in names])
        with torch.no_grad():
            projected = model.unembed(updates[:, None])[:, 0].float()
        first = (projected > projected[:, answer, None]).sum(-1) < top
        said.append(first.cpu().numpy())
    hits = np.full((len(facts), len(kinds), n_layers), np.nan)
    hits[:, [kinds.index(kind) for kind, _ in places], [layer for _, layer in places]] = np.stack(said)
    rate, low, high = mean_interval(hits, confidence=confidence, seed=seed)
    dims = ("kind", "layer")
    return xr.Dataset(
        {"rate": (dims, rate), "low": (dims, low), "high": (dims, high), "any": ("kind", np.nanmax(hits, -1).mean(0))},
        coords={"kind": list(kinds), "layer": np.arange(n_layers)},
        attrs={"facts": len(hits), "top": top, "model": str(model.cfg.model_name)},
    )
