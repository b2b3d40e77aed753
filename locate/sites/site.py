"""Names for places in a model."""

from dataclasses import dataclass
from typing import Literal, get_args

from locate.errors import SiteError, suggest
from locate.sites.table import hook_name, site_row

Kind = Literal["resid", "mlp", "attn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRACED = (*KINDS, "attn_head")


@dataclass(frozen=True)
class Site:
    """A place in the model: what kind of state, in which layer, at which token position, of which head or neuron.

    ``resid`` is the residual stream after the block, ``mlp`` and ``attn`` what that module adds to it,
    ``attn_head`` one head's output before the output projection, ``neuron`` one activation of the MLP; and every
    other place in a layer that ``locate.sites.table`` has.

    >>> Site("mlp", layer=5, position=3).hook
    'blocks.5.hook_mlp_out'
    """

    kind: str
    layer: int
    position: int | None = None
    head: int | None = None
    neuron: int | None = None

    def __post_init__(self) -> None:
        site_row(self.kind).at(self.layer)

    @property
    def hook(self) -> str:
        """The TransformerLens hook point."""
        return hook_name(self.kind, self.layer)


def check_kind(kind: str) -> Kind:
    """The kind, by any of its names, if it is a state that a block adds to or passes on.

    Raises:
        SiteError: naming the kinds there are.

    >>> check_kind("mlp_out")
    'mlp'
    """
    return _one_of(kind, KINDS)  # type: ignore[return-value]


def check_traced(kind: str) -> str:
    """The kind, by any of its names, if causal tracing knows it.

    Raises:
        SiteError: naming the kinds there are.

    >>> check_traced("attn_head_z")
    'attn_head'
    """
    return _one_of(kind, TRACED)


def _one_of(name: str, kinds: tuple[str, ...]) -> str:
    for kind in kinds:
        if name in site_row(kind).names:
            return kind
    raise SiteError(f"There is no kind of site {name!r}. {suggest(name, kinds)}")
