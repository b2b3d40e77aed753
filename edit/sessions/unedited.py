"""What a session takes from the unedited model: key statistics and prefixes, the same for all of its batches."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from edit.methods import KN, LocateThenEdit
from edit.methods.where import Where

# How far sums over the same text may differ between machines.
_ROUNDING = 1e-5


def prepared(
    method: LocateThenEdit | KN, model: TransformerBridge, layer: Where | None, first: Mapping[str, Any], progress: bool
) -> tuple[LocateThenEdit | KN, dict[str, float]]:
    """The method with statistics and prefixes of a model, and by layer the mean energy of keys that were collected.

    Args:
        method: of a session.
        model: without the session's edits.
        layer: where to edit instead of the method's own layers.
        first: the record of the session's first batch, where there is one. Its prefixes are taken, because another
            device may sample others; of statistics that differ from its own a warning tells.
        progress: whether to show bars.

    >>> method, energies = prepared(edit.ROME(layer=4), model, None, {}, False)
    >>> len(method.prefixes), list(energies)
    (20, ['4'])
    """
    prefixes = tuple(first.get("prefixes") or method.texts_before(model)[1:])
    if isinstance(method, KN) or method.statistics is not None:
        return replace(method, prefixes=prefixes), {}
    known = method.statistics_for(model, layer, progress=progress)
    energies = {str(at): one.mean_energy for at, one in known.items()}
    before = first.get("key_energies", {})
    other = [at for at in energies if at in before and abs(energies[at] / before[at] - 1) > _ROUNDING]
    if other:
        warnings.warn(
            f"The key statistics of layer(s) {', '.join(other)} are not those that this session began with: the text "
            "has changed, or was sampled anew on another device. Later batches are made with these. Give "
            "statistics=… to be sure of them.",
            stacklevel=5,
        )
    return replace(method, statistics=known, prefixes=prefixes), energies
