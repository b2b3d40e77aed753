"""Where each fact of a study is edited: at its own traced layer, at one for all, or at those that controls name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from edit.methods.where import Where, layers_at
from locate.errors import SiteError, suggest
from locate.model.anatomy import down_module
from locate.sites.site import Site
from locate.tracing.average import average_traces
from locate.tracing.trace import Trace

# Of a fact's own trace, of the average, another fact's, and any layer.
Chosen = Literal["traced", "average", "shuffled", "random"]
At = Chosen | str | Where | None
CHOSEN: tuple[Chosen, ...] = get_args(Chosen)
# Those that need traces.
TRACED = CHOSEN[:3]


def name_of(model: TransformerBridge, at: At) -> str:
    """What a choice is called.

    Raises:
        SiteError: there is no such choice, or no such layer.

    >>> [name_of(model, at) for at in ("traced", None, 4, (3, 4))]
    ['traced', 'default', 'layer 4', 'layers 3, 4']
    """
    if at is None:
        return "default"
    if isinstance(at, str):
        if at not in CHOSEN:
            raise SiteError(f"layer: there is no choice {at!r}. {suggest(at, CHOSEN)}")
        return at
    layers = layers_at(model, at)
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def best_of(trace: Trace) -> Site:
    """Where a trace would edit: of its first kind of state, the best site on the subject."""
    return trace.best(str(trace.info["kinds"][0]))


def average_layer(traces: Sequence[Trace]) -> int:
    """The layer that the average of traces names.

    >>> average_layer(traces) in range(model.cfg.n_layers)
    True
    """
    return average_traces(traces).best(str(traces[0].info["kinds"][0])).layer


def places_of(
    model: TransformerBridge, at: At, keys: Sequence[str], traces: Mapping[str, Trace], seed: int
) -> dict[str, Any]:
    """By fact, where it is edited; without those that have no trace where one is needed.

    Args:
        model: a raw-mode bridge.
        at: the choice.
        keys: of all facts.
        traces: by fact.
        seed: of the controls.

    >>> places_of(model, "shuffled", ["a", "b"], dict(zip("ab", traces)), 0)["a"].layer == best_of(traces[1]).layer
    True
    """
    if at not in CHOSEN:
        return dict.fromkeys(keys, at)
    draw, own = np.random.default_rng(seed), {key: best_of(traces[key]).layer for key in keys if key in traces}
    if at == "average":
        layer = average_layer([traces[key] for key in own]) if own else 0
        own = dict.fromkeys(keys if own else (), layer)
    elif at == "shuffled":
        # In a circle, so that no fact keeps its own trace.
        order = [list(own)[index] for index in draw.permutation(len(own))]
        own = {key: own[order[place - 1]] for place, key in enumerate(order)}
    elif at == "random":
        having = [layer for layer, block in enumerate(model.blocks) if down_module(block) is not None]
        own = {key: int(draw.choice(having)) for key in keys}
    return {key: Site("mlp", layer=layer) for key, layer in own.items()}
