"""Editing one batch after the other, with what earlier edits wrote kept in mind, on disk, and undoable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.exporting import export
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import whole
from edit.methods import EarlierEdits, EditingMethod, Job
from edit.methods.where import Where
from edit.requests.conflicts import check_conflicts, find_conflicts
from edit.requests.requests import Cases, EditRequest, Identity, as_requests
from edit.sessions.batches import Batch, Memory, left_out
from edit.sessions.checkpoints import Checkpoints, description
from edit.sessions.replacements import Replacements
from locate.errors import FactError, UpdateError, counted
from locate.model.weights import fingerprint, hf_parameters


class EditSession:
    """A model that is edited in batches, each with the earlier ones in place.

    The session keeps the keys of earlier edits for the methods that preserve them, checks new requests against old
    ones, and can take edits back. The model carries the edits while the session is open; ``close`` (or the end of
    a ``with`` block) puts its weights back bit for bit. With a folder every finished batch is on disk, and a
    session that was killed goes on from there.

    Args:
        model: a raw-mode bridge.
        method: an editing method, with its stabilisers.
        folder: where batches are kept; by default nowhere.
        layer: where to edit instead of the method's own layers, as ``fit`` takes it.

    Raises:
        DataError: the folder belongs to another session, or is damaged.
        UpdateError: the method changes no weights.

    >>> with edit.EditSession(model, edit.MEMIT(layers=(3, 4))) as session:
    ...     done = session.edit([request])
    ...     len(session.requests), session.update.method
    (1, 'MEMIT')
    """

    def __init__(
        self,
        model: TransformerBridge,
        method: EditingMethod[WeightUpdate],
        *,
        folder: str | Path | None = None,
        layer: Where | None = None,
    ) -> None:
        if not method.changes_weights:
            raise UpdateError(
                f"{method.name} leaves no change of weights, and a session adds those up. Fit all requests together: "
                "method.fit(model, requests)."
            )
        self.model = model
        self.method = method
        self._layer = layer
        # With what it takes from the unedited model, once that is known, and what is to be noted of it.
        self._fitting = method
        self._noted: dict[str, Any] = {}
        self._batches: list[Batch] = []
        self._replaced = Replacements(paraphrases=method.uses_paraphrases)
        self._closed = self._put_back = False
        self._update: WeightUpdate | None = None
        self._memory = Memory()
        # Of the unedited model: what every later state is measured from.
        self._before = {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}
        self._disk = None if folder is None else Checkpoints(folder, description(model, method, layer))
        if self._disk is not None:
            try:
                batches, replaced = self._disk.load()
                self._replaced = Replacements(replaced, paraphrases=method.uses_paraphrases)
                self._put(batches)
            except BaseException:
                self._disk.close()
                raise

    def __enter__(self) -> "EditSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put the model's weights back as they were, bit for bit, and release the folder. The edits stay on disk."""
        self._closed = True
        try:
            if not self._put_back and self._update is not None and self._update.is_applied(self.model):
                self._update.revert(self.model)
            self._put_back = True
        finally:
            if self._disk is not None:
                self._disk.close()

    @property
    def requests(self) -> list[EditRequest]:
        """The edits that are in the model, in the order in which they were made."""
        return [request for batch in self._batches for request in batch.requests]

    @property
    def update(self) -> WeightUpdate:
        """All edits as one update of the unedited model.

        Raises:
            UpdateError: nothing was edited yet.
        """
        if self._update is None:
            raise UpdateError("This session has no edits: there is no update.")
        return self._update

    @property
    def log(self) -> list[dict[str, Any]]:
        """What each standing batch did: its size, and per parameter the norm of its change."""
        return [
            {
                "batch": index,
                "edits": len(batch.requests),
                "norms": {name: float(delta.dense().norm()) for name, delta in batch.deltas.items()},
                "info": batch.info,
            }
            for index, batch in enumerate(self._batches)
        ]

    def edit(
        self,
        requests: Cases,
        *,
        batch_size: int | None = None,
        on_conflict: str = "error",
        progress: bool = True,
    ) -> WeightUpdate:
        """Edit the requests, in batches; with a folder, edits that it holds already are not made again.

        So a script of such calls that was stopped can be run again from its beginning: what a later call of it has
        replaced is left out once, with a warning.

        Args:
            requests: what to change; a fact stands for its own counterfactual.
            batch_size: how many to edit together; by default all.
            on_conflict: ``"error"`` refuses requests about a subject and relation that was edited before;
                ``"replace"`` takes the earlier edits back as the batch is made, or not at all where that fails.
            progress: whether to show bars.

        Returns:
            All edits so far as one update, as ``update`` gives it.

        Raises:
            FactError: requests that conflict, or ask an unedited model for what it answers already; nothing is changed.
            NumericsError: a batch could not be fitted; the batches before it stay.
            UpdateError: the session is closed, or an earlier edit cannot be taken back.
        """
        self._check_open()
        requests = as_requests(requests)
        if on_conflict not in ("error", "replace"):
            raise FactError(f"on_conflict: must be 'error' or 'replace', found {on_conflict!r}.")
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size, least=1)
        check_conflicts(requests)
        requests = self._not_done(requests)
        # All at once, before anything changes and of the unedited model: what earlier edits have made true is written.
        if requests:
            with self._unedited():
                self.method.check(self.model, requests)
        if on_conflict == "error":
            check_conflicts(requests, self.requests)
        size = batch_size or max(1, len(requests))
        starts = range(0, len(requests), size)
        for start in tqdm(starts, "batches", disable=not progress or len(starts) < 2, delay=1):
            self._edit_batch(requests[start : start + size], progress and len(starts) < 2)
        return self.update

    def undo(self, n: int = 1) -> list[EditRequest]:
        """Take back the last ``n`` edits, and give them back.

        Whole batches go exactly as they came. A batch that goes in part is solved again for what stays.

        Raises:
            UpdateError: there are not so many edits, or the method cannot solve a batch again.
        """
        self._check_open()
        if not 1 <= n <= len(self.requests):
            raise UpdateError(f"This session has {counted(len(self.requests), 'edit')}; {n} cannot be undone.")
        gone = self.requests[-n:]
        batches, left = list(self._batches), n
        while left and len(batches[-1].requests) <= left:
            left -= len(batches.pop().requests)
        if left:
            size = len(batches[-1].requests)
            batches = left_out(batches, len(batches) - 1, set(range(size - left, size)), self._written_again)
        self._stand(batches)
        return gone

    def remove(self, request: EditRequest | str) -> EditRequest:
        """Take back one edit, by its request or its fact's id, and solve again what came after it.

        Keys and wanted values of the other edits stay as they were, so that the result is what the same sequence
        without this edit gives at fixed values.

        Raises:
            UpdateError: there is no such edit, or the method cannot solve again.
        """
        self._check_open()
        index, place = self._find(request)
        own = self._batches[index].requests[place]
        self._stand(left_out(self._batches, index, {place}, self._written_again))
        return own

    def export(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the edited model to a folder that plain ``transformers`` loads."""
        self._check_open()
        return export(self.model, self.update, folder, overwrite=overwrite)

    def earlier(self) -> EarlierEdits:
        """What the standing edits wrote, as ``fit`` takes it."""
        return self._memory.of(self._batches)

    def _check_open(self) -> None:
        if self._closed:
            raise UpdateError("This session is closed, and the model as it was. Open it again to go on.")

    def _find(self, request: EditRequest | str) -> tuple[int, int]:
        """The batch that has an edit, and its place there."""
        name = request if isinstance(request, str) else request.describe()
        found = [
            (index, place)
            for index, batch in enumerate(self._batches)
            for place, own in enumerate(batch.requests)
            if (
                request in (own.fact.id, own.describe())
                if isinstance(request, str)
                else self._change(own) == self._change(request)
            )
        ]
        if len(found) > 1:
            raise UpdateError(f"{len(found)} edits of this session go by {name!r}. Give the request itself.")
        if found:
            return found[0]
        raise UpdateError(f"There is no edit {name!r} in this session. Its edits are listed in session.requests.")

    def _change(self, request: EditRequest) -> Identity:
        return request.change(paraphrases=self.method.uses_paraphrases)

    def _edit_batch(self, requests: list[EditRequest], progress: bool) -> None:
        before, replaced = self._batches, self._replaced.names
        try:
            while conflicts := find_conflicts(requests, self.requests):
                old = conflicts[0][0]
                # From the model only: on disk it stands until its replacement does.
                index, place = self._find(old)
                self._put(left_out(self._batches, index, {place}, self._written_again))
                self._replaced.add(old)
            self._know_the_unedited(progress)
            fitted = self._fitting.fit_with(replace(self._job(progress), requests=requests, earlier=self.earlier()))
            batch = Batch(
                requests=tuple(requests), deltas=dict(fitted.update.deltas), written=dict(fitted.written),
                anchors=dict(fitted.anchors), info={**fitted.update.info, **self._noted},
            )  # fmt: skip
            self._stand([*self._batches, batch])
        except BaseException:
            self._replaced.names = replaced
            if self._batches is not before:
                self._put(before)
            raise

    def _know_the_unedited(self, progress: bool) -> None:
        """Let the method take what it needs from the unedited model, once: an edited one gives other things."""
        if self._fitting is self.method:
            first = self._batches[0].info if self._batches else {}
            with self._unedited():
                self._fitting, self._noted = self.method.on_unedited(self._job(progress), first)

    def _job(self, progress: bool) -> Job:
        return Job(model=self.model, requests=(), layer=self._layer, progress=progress)

    @contextmanager
    def _unedited(self) -> Iterator[None]:
        """While active, the model is as it was before the session."""
        if self._update is not None:
            self._update.revert(self.model)
        try:
            yield
        finally:
            if self._update is not None:
                self._update.apply(self.model)

    def _put(self, batches: list[Batch]) -> None:
        """Give the model the edits of these batches, and no others; as it was if that fails."""
        old = self._update
        new = self._total(batches)
        if old is not None:
            old.revert(self.model)
        try:
            if new is not None:
                new.apply(self.model)
        except BaseException:
            if old is not None:
                old.apply(self.model)
            raise
        self._update, self._batches = new, batches

    def _total(self, batches: Sequence[Batch]) -> WeightUpdate | None:
        if not batches:
            return None
        changes = self._memory.of(batches).changes
        info = {"batches": [batch.info for batch in batches]}
        before = {name: self._before[name] for name in changes}
        return WeightUpdate(deltas=changes, before=before, method=self.method.name, info=info)

    def _stand(self, batches: list[Batch]) -> None:
        """Let these be the session's batches: in the model, and on disk by one line that names the last one's file."""
        before = self._batches
        self._put(batches)
        if self._disk is None:
            return
        try:
            self._batches = self._disk.keep(batches, self._replaced.names)
        except BaseException:
            self._put(before)  # as the disk has it
            raise

    def _not_done(self, requests: list[EditRequest]) -> list[EditRequest]:
        """What is left of the requests if the session was stopped and the same call is made again."""
        if self._disk is None:
            return requests
        done = {self._change(request) for request in self.requests}
        left = [request for request in requests if self._change(request) not in done]
        return self._replaced.without(left, self.requests)

    def _written_again(self, batch: Batch, before: Sequence[Batch]) -> Batch:
        if not self.method.writes_again:
            if batch.deltas and self.method.adds_up:
                return batch
            raise UpdateError(
                f"{self.method.name} in this form cannot solve a batch again on other edits than it was made on: undo "
                "whole batches, the last ones first."
            )
        self._know_the_unedited(progress=False)
        earlier = self._memory.of(before)
        with self._unedited():
            deltas = self._fitting.write_again(self.model, batch.written, earlier)
        return replace(batch, deltas=deltas, file=None)
