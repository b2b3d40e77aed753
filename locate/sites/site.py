"""Names for places in a model."""

from dataclasses import dataclass
from typing import Literal, get_args

from locate.errors import SiteError, suggest

Kind = Literal["resid", "mlp", "attn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRACED = (*KINDS, "attn_head")

_HOOKS: dict[str, str] = {
    "resid": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "attn_head": "attn.hook_z",
    "neuron": "mlp.hook_post",
}


@dataclass(frozen=True)
class Site:
    """A place in the model: what kind of state, in which layer, at which token position, of which head or neuron.

    ``resid`` is the residual stream after the block, ``mlp`` and ``attn`` what that module adds to it,
    ``attn_head`` one head's output before the output projection, ``neuron`` one activation of the MLP.

    >>> Site("mlp", layer=5, position=3).hook
    'blocks.5.hook_mlp_out'
    """

    kind: str
    layer: int
    position: int | None = None
    head: int | None = None
    neuron: int | None = None

    def __post_init__(self) -> None:
        _hook(self.kind)

    @property
    def hook(self) -> str:
        """The TransformerLens hook point."""
        return hook_name(self.kind, self.layer)


def hook_name(kind: str, layer: int) -> str:
    """The TransformerLens hook point of a kind of state in a layer.

    >>> hook_name("resid", 3)
    'blocks.3.hook_resid_post'
    """
    return f"blocks.{layer}.{_hook(kind)}"


def _hook(kind: str) -> str:
    if kind not in _HOOKS:
        raise SiteError(f"There is no kind of site {kind!r}. {suggest(kind, _HOOKS)}")
    return _HOOKS[kind]


def check_kind(kind: str) -> Kind:
    """The kind, if it is a state that a block adds to or passes on.

    Raises:
        SiteError: naming the kinds there are.
    """
    if kind not in KINDS:
        raise SiteError(f"There is no kind of site {kind!r}. {suggest(kind, KINDS)}")
    return kind  # type: ignore[return-value]


def check_traced(kind: str) -> str:
    """The kind, if causal tracing knows it.

    Raises:
        SiteError: naming the kinds there are.
    """
    if kind not in TRACED:
        raise SiteError(f"There is no kind of site {kind!r}. {suggest(kind, TRACED)}")
    return kind
