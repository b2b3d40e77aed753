"""Names for places in a model."""

from dataclasses import dataclass
from typing import Literal, get_args

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import SiteError, suggest

Kind = Literal["resid", "mlp", "attn"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_HOOKS: dict[str, str] = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}


@dataclass(frozen=True)
class Site:
    """A place in the model: what kind of state, in which layer, at which token position.

    ``resid`` is the residual stream after the block, ``mlp`` and ``attn`` what that module adds to it.

    >>> Site("mlp", layer=5, position=3).hook
    'blocks.5.hook_mlp_out'
    """

    kind: Kind
    layer: int
    position: int | None = None

    @property
    def hook(self) -> str:
        """The TransformerLens hook point."""
        return hook_name(self.kind, self.layer)


def hook_name(kind: str, layer: int) -> str:
    """The TransformerLens hook point of a kind of state in a layer.

    >>> hook_name("resid", 3)
    'blocks.3.hook_resid_post'
    """
    return f"blocks.{layer}.{_HOOKS[check_kind(kind)]}"


def check_kind(kind: str) -> Kind:
    """The kind, if there is one of that name.

    Raises:
        SiteError: naming the kinds there are.
    """
    if kind not in _HOOKS:
        raise SiteError(f"There is no kind of site {kind!r}. {suggest(kind, _HOOKS)}")
    return kind  # type: ignore[return-value]


def check_layer(model: TransformerBridge, layer: int) -> int:
    """The layer as a non-negative index.

    Raises:
        SiteError: the model has no such layer.
    """
    n = model.cfg.n_layers
    if not -n <= layer < n:
        raise SiteError(f"Layer {layer} is out of range: the model has {n} layers, 0 to {n - 1}.")
    return layer % n
