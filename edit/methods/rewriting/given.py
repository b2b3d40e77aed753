"""Key statistics that a method was given: of the right layers and keys, and of this model."""

from collections.abc import Mapping

from transformer_lens.model_bridge import TransformerBridge

from edit.statistics import KeyStatistics
from locate.errors import DataError, tell
from locate.model.weights import down_projection, model_fingerprint

# How far sums over the same text may differ between machines.
_ROUNDING = 1e-5


def checked_statistics(
    given: KeyStatistics | Mapping[int, KeyStatistics], model: TransformerBridge, layers: tuple[int, ...], *,
    edited: bool,
) -> dict[int, KeyStatistics]:  # fmt: skip
    """Statistics of each layer among those given, checked; a warning says where they are of another model.

    Args:
        given: of one layer, or of several by layer.
        model: that is edited.
        layers: that are edited.
        edited: whether the model has earlier edits: then those of the unedited one are the right ones.

    Raises:
        DataError: they are of other layers, or of keys of another size.
        NumericsError: they are of too few keys.

    >>> statistics = edit.key_statistics(model, layer=4)
    >>> list(checked_statistics(statistics, model, (4,), edited=False))
    [4]
    """
    known = dict.fromkeys(layers, given) if isinstance(given, KeyStatistics) else given
    for layer in layers:
        if layer not in known or known[layer].layer != layer:
            of = known[layer].layer if layer in known else ", ".join(map(str, known)) or "none"
            raise DataError(
                f"The statistics are of layer {of}, the edit is in layer {layer}. "
                f"Collect them with edit.key_statistics(model, {layer})."
            )
        known[layer].check_rank()
        found, size = len(known[layer].second_moment), down_projection(model, layer).key_size
        if found != size:
            raise DataError(
                f"The statistics are of keys of dimension {found}, layer {layer} of this model has keys "
                f"of dimension {size}. Collect them with edit.key_statistics(model, {layer})."
            )
    fingerprint = None if edited else model_fingerprint(model)
    if fingerprint and any(known[layer].fingerprint != fingerprint for layer in layers):
        tell(
            "The key statistics were collected on another model, or on this one before its weights changed. The "
            f"edit is only as good as they fit. Collect them with edit.key_statistics(model, {layers[0]})."
        )
    return {layer: known[layer] for layer in layers}


def warn_of_others(energies: Mapping[str, float], before: Mapping[str, float]) -> None:
    """Say so where statistics are not those that a session began with.

    Args:
        energies: by layer, the mean energy of the keys of these.
        before: of those.

    >>> warn_of_others({"4": 0.5}, {"4": 0.5})
    """
    other = [at for at in energies if at in before and abs(energies[at] / before[at] - 1) > _ROUNDING]
    if other:
        layers = f"layer{'s' if len(other) > 1 else ''} {', '.join(other)}"
        tell(
            f"The key statistics of {layers} are not those that this session began with: the text has changed, or was "
            "sampled anew on another device. Later batches are made with these. Give statistics=… to be sure of them."
        )
