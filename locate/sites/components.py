"""The parts of a model that write to the residual stream or read from it, and how they are named.

Importing this costs nothing.
"""

import re
from dataclasses import dataclass

from locate.errors import SiteError
from locate.sites.site import Site
from locate.sites.table import hook_name, site_row

_FORM = re.compile(r"(?:a(?P<layer>\d+)\.h(?P<head>\d+)(?:\.(?P<input>[qkv]))?|m(?P<mlp>\d+)|(?P<end>logits|embed))\Z")


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part of the model, as one that writes to the residual stream or as one that reads from it.

    Attributes:
        name: ``a3.h1`` for a head, ``a3.h1.q`` for its query, ``a3.h0.k`` and ``a3.h0.v`` for the key and value of a
            key-value head, ``m5`` for an MLP, ``embed``, ``logits``.
        site: of the table: of a writer where its output is read, of a reader what it makes of the stream, where a
            gradient is taken.
        layer: 0 for the embedding, and the number of layers for the logits.
        head: of the site's heads, if it has any.
        input: ``q``, ``k`` or ``v`` of a head that reads.
        order: when it writes or reads; a writer reaches the readers of a higher order.
    """

    name: str
    site: str
    layer: int
    head: int | None = None
    input: str | None = None
    order: int

    @property
    def hook(self) -> str:
        """The hook point of its site."""
        return hook_name(self.site, self.layer if site_row(self.site).layered else None)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the name of a component says, whichever model has it."""

    end: str | None = None
    layer: int = 0
    head: int | None = None
    input: str | None = None


def parse(name: str) -> Parts:
    """The parts of a component's name.

    Raises:
        SiteError: it is not of one of the forms.

    >>> parse("a3.h1.q")
    Parts(end=None, layer=3, head=1, input='q')
    """
    found = _FORM.match(name)
    if found is None:
        raise SiteError(
            f"There is no component {name!r}. Write heads as a3.h1 (receivers as a3.h1.q, .k or .v), MLPs as m5, "
            "the output as logits, and the input as embed."
        )
    if found["end"]:
        return Parts(end=found["end"])
    head = None if found["head"] is None else int(found["head"])
    return Parts(layer=int(found["layer"] or found["mlp"] or 0), head=head, input=found["input"])


def site_written(name: str) -> Site:
    """The site where a component writes to the stream.

    Raises:
        SiteError: there is no such component, or it writes nothing.

    >>> site_written("a3.h1")
    Site(kind='attn_head', layer=3, position=None, head=1, neuron=None)
    """
    parts = parse(name)
    if parts.end == "logits":
        raise SiteError("The logits are read from the stream, and write nothing to it.")
    if parts.end == "embed":
        return Site("resid_pre", layer=0)
    return Site("mlp" if parts.head is None else "attn_head", layer=parts.layer, head=parts.head)
