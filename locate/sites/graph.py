"""Who writes to the residual stream and who reads from it, in the order in which a model computes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
from jaxtyping import Bool
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import ModelError, SiteError
from locate.model.anatomy import Anatomy, anatomy
from locate.model.found import once
from locate.sites.components import Component, parse


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What writes to a model's residual stream, what reads from it, and who reaches whom.

    The embedding writes all that enters the first block, positions included. A head writes its z through the output
    projection, then, where the architecture has them, through the norm after attention and times the residual
    multiplier; an MLP writes what is added to the stream (see ``locate.sites.contributions``). The biases of
    attention's output are the same whatever is read: they belong to their layer and are no writers.

    Attributes:
        anatomy: of the model.
        writers: in order of computation.
        readers: the same.
    """

    anatomy: Anatomy
    writers: tuple[Component, ...]
    readers: tuple[Component, ...]

    def edges(self) -> Bool[np.ndarray, "writer reader"]:
        """Which writer reaches which reader: it is added to the stream before the reader reads it.

        >>> edges = graph(model).edges()
        >>> bool(edges[0].all()), bool(edges[:, -1].all()), int(edges[1:, 0].sum())
        (True, True, 0)
        """
        written, read = (np.array([one.order for one in side]) for side in (self.writers, self.readers))
        return written[:, None] < read[None]

    def writer(self, name: str) -> Component:
        """A writer by its name.

        Raises:
            SiteError: the model has no such component, or it does not write.

        >>> graph(model).writer("a3.h1").hook
        'blocks.3.attn.hook_z'
        """
        return self._written.get(name) or self._refuse(name, reads=False)

    def reader(self, name: str) -> Component:
        """A reader by its name.

        Raises:
            SiteError: the model has no such component, or it does not read.

        >>> graph(model).reader("a3.h1.q").hook, graph(model).reader("logits").hook
        ('blocks.3.attn.hook_q', 'ln_final.hook_in')
        """
        return self._read.get(name) or self._refuse(name, reads=True)

    def kv_head(self, layer: int, head: int) -> int:
        """The key-value head that a head reads through.

        >>> [graph(model).kv_head(0, head) for head in (0, 2, 3, 8)]
        [0, 0, 1, 2]
        """
        own = self.anatomy.layers[layer]
        return head * own.n_kv_heads // own.n_heads

    @cached_property
    def _written(self) -> dict[str, Component]:
        return {one.name: one for one in self.writers}

    @cached_property
    def _read(self) -> dict[str, Component]:
        return {one.name: one for one in self.readers}

    def _refuse(self, name: str, *, reads: bool) -> NoReturn:
        """Say why the model has no such writer or reader."""
        parts, n_layers = parse(name), self.anatomy.n_layers
        if parts.end is not None:
            raise SiteError(
                "The embedding sends; it receives nothing. Leave it out of the receivers." if reads
                else "The logits receive; they send nothing. Leave them out of the senders."
            )  # fmt: skip
        if parts.layer >= n_layers:
            raise SiteError(f"{name}: layer {parts.layer} is out of range: the model has {n_layers} layers.")
        if parts.head is None:
            raise SiteError(f"{name}: layer {parts.layer} has no MLP.")
        if reads and parts.input is None:
            raise SiteError(
                f"{name}: a head receives by its query, key or value; write {name}.q, {name}.k or {name}.v."
            )
        if not reads and parts.input:
            raise SiteError(f"{name}: a head sends one output; write it without .{parts.input}.")
        own = self.anatomy.layers[parts.layer]
        shared = parts.input in ("k", "v") and own.n_kv_heads != own.n_heads
        n, what = (own.n_kv_heads, "key-value heads") if shared else (own.n_heads, "heads")
        raise SiteError(f"{name}: head {parts.head} is out of range: a layer of the model has {n} {what}.")


def graph(model: TransformerBridge) -> Graph:
    """The writers and readers of a model, found once.

    >>> found = graph(model)
    >>> [one.name for one in found.writers[:3]], found.readers[-1].name
    (['embed', 'a0.h0', 'a0.h1'], 'logits')
    """
    return once(model, "graph", lambda: _find(anatomy(model)))


# When things happen in a block: attention reads and writes, then the MLP, unless it reads when attention does.
_STEPS = 4
_INPUTS = ("q", "k", "v")


def summed_graph(model: TransformerBridge, instead: str) -> Graph:
    """The graph of a model whose stream is the sum of what its writers write.

    Args:
        model: a raw-mode bridge.
        instead: what to do with another one.

    Raises:
        ModelError: something else is added there as well.

    >>> summed_graph(model, "Patch sites instead.").writers[0].name
    'embed'
    """
    found = graph(model)
    if others := [str(layer) for layer, one in enumerate(found.anatomy.layers) if not one.adds_up]:
        raise ModelError(
            f"{type(model.original_model).__name__} adds to the residual stream what is neither attention nor an MLP, "
            f"in layers {', '.join(others)}: edges cannot be told apart there. {instead}"
        )
    return found


def _find(found: Anatomy) -> Graph:
    last = _STEPS * found.n_layers + 1
    embed = Component(name="embed", site="resid_pre", layer=0, order=0)
    logits = Component(name="logits", site="final_in", layer=found.n_layers, order=last)
    return Graph(anatomy=found, writers=(embed, *_writers(found)), readers=(*_readers(found), logits))


def _writers(found: Anatomy) -> Iterator[Component]:
    for layer, own in enumerate(found.layers):
        start = _STEPS * layer + 1
        for head in range(own.n_heads):
            yield Component(name=f"a{layer}.h{head}", site="attn_head_z", layer=layer, head=head, order=start + 1)
        if own.has_mlp:
            yield Component(name=f"m{layer}", site="mlp_out", layer=layer, order=start + 3)


def _readers(found: Anatomy) -> Iterator[Component]:
    for layer, own in enumerate(found.layers):
        start = _STEPS * layer + 1
        for one in _INPUTS:
            for head in range(own.n_heads if one == "q" else own.n_kv_heads):
                yield Component(
                    name=f"a{layer}.h{head}.{one}", site=f"attn_head_{one}", layer=layer, head=head, input=one,
                    order=start,
                )  # fmt: skip
        if own.has_mlp:
            yield Component(name=f"m{layer}", site="mlp_in", layer=layer, order=start if own.parallel else start + 2)
