"""Which layers of a model have a kind of place: in hybrids, attention stands in some of them."""

from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

from locate.engine.hooking import hook_points
from locate.errors import SiteError
from locate.model.found import once
from locate.sites.table import Row, site_row


def layers_with(model: TransformerBridge, kind: str | Row) -> tuple[int, ...]:
    """The layers that have such a place.

    Raises:
        SiteError: there is no such kind; or no layer has one, with the nearest names that there are.

    >>> layers_with(model, "attn")[:3]
    (0, 1, 2)
    """
    row = site_row(kind) if isinstance(kind, str) else kind
    return once(model, f"layers with {row.hook}", lambda: _layers_with(model, row))


def hooks_of(model: TransformerBridge, kind: str, layers: Sequence[int] | None = None) -> list[str]:
    """The hook points of a kind of place in some layers, or in all, where there are any.

    >>> hooks_of(model, "mlp", [0, 1])
    ['blocks.0.hook_mlp_out', 'blocks.1.hook_mlp_out']
    """
    return [site_row(kind).at(layer) for layer in layers_with(model, kind) if layers is None or layer in layers]


def _layers_with(model: TransformerBridge, row: Row) -> tuple[int, ...]:
    found, missing = [], None
    for layer in range(model.cfg.n_layers):
        try:
            hook_points(model, [row.at(layer)])
        except SiteError as error:
            missing = error
        else:
            found.append(layer)
    if not found and missing is not None:
        raise missing
    return tuple(found)
