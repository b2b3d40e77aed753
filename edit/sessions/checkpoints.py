"""A session's batches on disk: which stand, and what they depend on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from edit.methods import EditingMethod
from edit.methods.where import Where
from edit.sessions.batches import Batch
from edit.sessions.files import load_chain, save_chain
from locate.errors import DataError
from locate.model.weights import model_fingerprint
from locate.store.folders import RunFolder

_STATE, _BATCHES = "standing", "batches"


class Checkpoints:
    """The folder of one session, held until it is closed. One line says what stands, so that a kill leaves all or none.

    Args:
        folder: where; it is made where there is none.
        described: what the session is.

    Raises:
        DataError: the folder belongs to another session, or is in use.

    >>> disk = Checkpoints("runs/some", {"command": "session"})
    >>> disk.load()
    ([], ())
    >>> disk.close()
    """

    def __init__(self, folder: str | Path, described: Mapping[str, Any]) -> None:
        self._run = RunFolder.open(folder, described)

    def load(self) -> tuple[list[Batch], tuple[str, ...]]:
        """The batches that stand, and the names of the edits that were replaced.

        Raises:
            DataError: something is missing or damaged.
        """
        if _STATE not in self._run.done:
            return [], ()
        state = self._run.done[_STATE].found
        if "last" not in state:
            raise DataError(f"{self._run.path} is damaged: it does not say which batches stand.")
        return load_chain(state["last"], self._run.path / _BATCHES), tuple(state.get("replaced", ()))

    def keep(self, batches: Sequence[Batch], replaced: Sequence[str]) -> list[Batch]:
        """Let these batches stand; gives them with their files."""
        chain = save_chain(batches, self._run.path / _BATCHES)
        self._run.record(_STATE, {"last": chain[-1].file if chain else None, "replaced": list(replaced)})
        return chain

    def close(self) -> None:
        """Let others open the folder."""
        self._run.close()


def description(model: TransformerBridge, method: EditingMethod, layer: Where | None) -> dict[str, Any]:
    """What a session's batches depend on, besides the requests; a folder with another is another session's."""
    known = {"fingerprint": model_fingerprint(model)}
    return {"command": "session", "model": known, **method.described(model, layer)}
