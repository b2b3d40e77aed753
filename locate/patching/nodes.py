"""Components by name: what sends and receives along paths."""

import re
from dataclasses import dataclass

from locate.errors import SiteError
from locate.sites.site import Site

_NODE = re.compile(r"(?:a(?P<layer>\d+)\.h(?P<head>\d+)(?:\.(?P<input>[qkv]))?|m(?P<mlp>\d+)|(?P<logits>logits))\Z")


@dataclass(frozen=True)
class Node:
    """A component: a head (with its query, key or value input, as a receiver), an MLP, or the logits.

    Written ``a3.h1``, ``a3.h1.q``, ``m5``, ``logits``.

    >>> Node.parse("a3.h1.q")
    Node(layer=3, head=1, input='q')
    """

    layer: int
    head: int | None = None
    input: str | None = None

    @classmethod
    def parse(cls, name: str) -> "Node":
        """A node from its name.

        Raises:
            SiteError: it is not of one of the forms.
        """
        found = _NODE.match(name)
        if found is None:
            raise SiteError(
                f"There is no component {name!r}. Write heads as a3.h1 (receivers as a3.h1.q, .k or .v), MLPs as m5, "
                "and the output as logits."
            )
        if found["logits"]:
            return cls(layer=-1)
        if found["mlp"]:
            return cls(layer=int(found["mlp"]))
        return cls(layer=int(found["layer"]), head=int(found["head"]), input=found["input"])

    @property
    def site(self) -> Site:
        """What it writes to the stream.

        Raises:
            SiteError: the logits write nothing.

        >>> Node.parse("a3.h1").site
        Site(kind='attn_head', layer=3, position=None, head=1, neuron=None)
        """
        if self.is_logits:
            raise SiteError("The logits are read from the stream, and write nothing to it.")
        return Site("mlp" if self.head is None else "attn_head", layer=self.layer, head=self.head)

    @property
    def is_logits(self) -> bool:
        """Whether this is the output."""
        return self.layer < 0
