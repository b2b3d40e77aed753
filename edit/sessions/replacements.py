"""Edits of a session that later ones replaced, so that the script that did it can be run again."""

from collections.abc import Sequence

from edit.requests.conflicts import find_conflicts
from edit.requests.requests import EditRequest
from locate.errors import counted, listed, tell
from locate.store.hashes import fingerprint


class Replacements:
    """What was replaced, by content, and which of it a script that is run again has not yet asked.

    Args:
        names: as ``names`` gave them when the session was last open.
        paraphrases: whether edits depend on those.

    >>> replaced = Replacements()
    >>> replaced.add(request)
    >>> newer = edit.EditRequest(request.fact, "London")
    >>> Replacements(replaced.names).without([request, newer], standing=[newer]) == [newer]
    True
    """

    def __init__(self, names: Sequence[str] = (), *, paraphrases: bool = False) -> None:
        self.names = tuple(names)
        self._paraphrases = paraphrases
        self._unasked = list(names)

    def add(self, request: EditRequest) -> None:
        """Note that an edit was replaced."""
        self.names = (*self.names, self._name(request))

    def without(self, requests: Sequence[EditRequest], standing: Sequence[EditRequest]) -> list[EditRequest]:
        """The requests without those that were replaced and whose replacement stands, with a warning.

        Each is left out as often as it was replaced before the session was opened: what is asked more often is to
        come back.
        """
        gone: list[EditRequest] = []
        for request in requests:
            if (name := self._name(request)) in self._unasked and find_conflicts([request], standing):
                self._unasked.remove(name)
                gone.append(request)
        if gone:
            tell(
                f"Left out {counted(len(gone), 'request')}, as in a script that is run again, because later edits "
                "of this session replaced what was asked. Ask again for what is to come back:\n"
                f"{listed([r.describe() for r in gone])}"
            )
        return [request for request in requests if request not in gone]

    def _name(self, request: EditRequest) -> str:
        return fingerprint([request.change(paraphrases=self._paraphrases)])
