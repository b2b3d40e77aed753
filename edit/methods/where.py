"""From what ``locate`` found to the layers that are edited."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from transformer_lens.model_bridge import TransformerBridge

from locate.errors import SiteError
from locate.model.anatomy import check_layer
from locate.sites.site import Site


@runtime_checkable
class Located(Protocol):
    """A result that knows its best site, as all that ``locate`` finds do: traces, patches, knockouts, neurons."""

    def best(self) -> Site:
        """The site of the largest effect."""
        ...


Where = int | Site | Located | Sequence[int]
# Where to edit each of several requests: at one place, or at one of its own each.
Each = Where | Sequence[Site | Located | Sequence[int]]


def each_of(where: Each | None, requests: int) -> list[Any]:
    """Where to edit each of several requests by itself.

    Args:
        where: for all of them, as ``layers_at`` takes it; or one place for each: sites, results of ``locate`` such as
            traces, or lists of layers. (Plain numbers are the layers of all.)
        requests: how many there are.

    Raises:
        SiteError: there are more or fewer places than requests.

    >>> each_of(4, 2), each_of([[4], [5]], 2), each_of([3, 4], 2)
    ([4, 4], [[4], [5]], [[3, 4], [3, 4]])
    """
    if not isinstance(where, Sequence) or isinstance(where, str) or all(isinstance(one, Integral) for one in where):
        return [where] * requests
    if len(where) != requests:
        raise SiteError(f"layer: {len(where)} places for {requests} requests; give one for each, or one for all.")
    return list(where)


def layers_at(model: TransformerBridge, where: Where, span: int = 1) -> tuple[int, ...]:
    """The layers to edit: those given, or as many as a method spreads over, ending at the place found.

    Args:
        model: a raw-mode bridge.
        where: a layer, several layers in ascending order, a ``Site``, or a result of ``locate`` whose best site on
            the subject counts, such as a ``Trace``.
        span: how many layers the method spreads a change over.

    Raises:
        SiteError: no such layer, layers out of order, or something that names no layer.

    >>> layers_at(model, locate.Site("mlp", layer=6), span=3), layers_at(model, 1, span=3)
    ((4, 5, 6), (0, 1))
    """
    if isinstance(where, Sequence) and not isinstance(where, str):
        layers = tuple(check_layer(model, _whole(layer)) for layer in where)
        if not layers or list(layers) != sorted(set(layers)):
            raise SiteError(f"layers: give one or more layers in ascending order, each once; found {tuple(where)}.")
        return layers
    last = check_layer(model, _layer_of(where))
    return tuple(range(max(0, last - span + 1), last + 1))


def _layer_of(where: Any) -> int:
    if isinstance(where, Site):
        return where.layer
    if isinstance(where, Located):
        try:
            return where.best().layer
        except TypeError as error:  # a best() that has to be told what to look for
            raise SiteError(
                f"layer: a {type(where).__name__} has no one best site; give one of them, such as where.best(…)."
            ) from error
    return _whole(where)


def _whole(layer: Any) -> int:
    if isinstance(layer, bool) or not isinstance(layer, Integral):
        raise SiteError(
            f"layer: expected a layer's index, a Site, or a result of locate with a best site (such as a Trace); found "
            f"{type(layer).__name__}."
        )
    return int(layer)
