"""The batches of a session: what each did, what they are together, and what is left where some edits go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edit.changes.lowrank import LowRank
from edit.methods import EarlierEdits, Written
from edit.requests.requests import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one batch of a session did.

    Attributes:
        requests: that were edited together.
        deltas: by parameter, what was added; nothing where the batch has to be written again.
        written: by layer, keys and wanted values.
        anchors: by the layer at which its values were optimised, their mean norm.
        info: how it was made.
        file: the name of the file that holds it, where there is one.
        before: the name of the file of the batch before it, where there is one.
    """

    requests: tuple[EditRequest, ...]
    deltas: Mapping[str, LowRank]
    written: Mapping[int, Written]
    anchors: Mapping[int, float]
    info: Mapping[str, Any]
    file: str | None = None
    before: str | None = None

    def without(self, places: set[int]) -> "Batch":
        """The batch without some of its edits, to be written again."""
        kept = [place for place in range(len(self.requests)) if place not in places]
        edits = self.info.get("edits")
        return replace(
            self, requests=tuple(self.requests[place] for place in kept), deltas={}, file=None,
            written={layer: one.only(kept) for layer, one in self.written.items()},
            info={**self.info, **({"edits": [edits[place] for place in kept]} if edits else {})},
        )  # fmt: skip


def left_out(
    batches: Sequence[Batch], index: int, places: set[int], write_again: Callable[[Batch, Sequence[Batch]], Batch]
) -> list[Batch]:
    """The batches without some edits of one of them: what is left of it, and all later ones, are written again.

    Args:
        batches: that stand.
        index: of the batch.
        places: of the edits in it.
        write_again: writes a batch after others.

    >>> left_out([batch, later], 0, {0}, lambda batch, before: batch)               # doctest: +SKIP
    """
    standing = list(batches[:index])
    rest = batches[index].without(places)
    for batch in (*([rest] if rest.requests else []), *batches[index + 1 :]):
        standing.append(write_again(batch, standing))
    return standing


class Memory:
    """What batches wrote together. It goes on from those it was asked of last, where they are the beginning.

    >>> Memory().of([])
    EarlierEdits(written={}, changes={}, anchors={})
    """

    def __init__(self) -> None:
        self._known: tuple[tuple[Batch, ...], EarlierEdits] = ((), EarlierEdits())

    def of(self, batches: Sequence[Batch]) -> EarlierEdits:
        """As ``fit`` takes it."""
        before, memory = self._known
        if len(before) > len(batches) or any(a.deltas is not b.deltas for a, b in zip(before, batches, strict=False)):
            before, memory = (), EarlierEdits()
        for batch in batches[len(before) :]:
            memory = _joined(memory, batch)
        self._known = tuple(batches), memory
        return memory


def _joined(memory: EarlierEdits, batch: Batch) -> EarlierEdits:
    """What earlier edits wrote, with a batch more."""
    written, changes = dict(memory.written), dict(memory.changes)
    for layer, one in batch.written.items():
        written[layer] = written[layer].joined(one) if layer in written else one
    for name, delta in batch.deltas.items():
        changes[name] = changes[name].joined(delta) if name in changes else delta
    # Only the first batch is fitted on the unedited model.
    return EarlierEdits(written=written, changes=changes, anchors=memory.anchors or batch.anchors)
