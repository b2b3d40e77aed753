"""Many edits in a run folder: a session that a run which was stopped goes on with, and its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

import edit
from edit.cli.kit.jobs import describe_run
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import scores_table
from edit.evaluation.asking import check_questions
from edit.methods import EditingMethod
from edit.requests.conflicts import check_conflicts
from edit.values.contexts import already_answered, build_contexts
from locate.errors import DataError, FactError, NumericsError, counted, listed
from locate.store.files import save_json, to_plain
from locate.store.folders import RunFolder


@dataclass(frozen=True, kw_only=True, eq=False)
class ManyEdits:
    """Edits in batches, each with the earlier ones in place, evaluated on the final model.

    Attributes:
        model: a raw-mode bridge.
        method: an editing method.
        folder: of the run.
        export: a folder for the edited model, where one is wanted.
        batch_size: edits that are made, and kept, together; by default all.
        kept: the same for a method that makes edits one after the other in any case.
        console: for what is said on the way.
    """

    model: TransformerBridge
    method: EditingMethod
    folder: Path
    export: Path | None
    batch_size: int | None
    kept: int
    console: Voice

    def run(self, requests: list[edit.EditRequest], name: str, model: str, skip_answered: bool) -> Outcome:
        """Make the edits, going on where a run was stopped.

        Args:
            requests: what to change.
            name: of the method, as the option has it.
            model: its name.
            skip_answered: whether to leave out what the model answers already.

        Raises:
            LocateError: something cannot be edited; what stands until then is kept.
        """
        # Before any edit, which a mistake that is found later would make useless.
        left_out: list[edit.EditRequest] = []
        if skip_answered:
            requests, left_out = self._without_answered(requests)
        check_conflicts(requests)
        self.method.check(self.model, requests)
        check_questions(self.model, requests)
        size = self.batch_size or (self.kept if self.method.one_by_one else None)
        # The method's own options stand in the session's description. The facts do not: one that cannot be edited may
        # be left out of a run that it has stopped, and others may follow.
        description = describe_run("edit", model, self.model, {"method": name, "batch_size": size})
        with RunFolder.open(self.folder, description):
            self.console.kept = f"Batches that are finished are kept in {self.folder}, where the same command goes on."
            update = self._edit(requests, size)
            self.console.print(f"Evaluating {counted(len(requests), 'edit')} on the final model.", soft_wrap=True)
            evaluation = edit.evaluate(self.model, update, requests)
            evaluation.save(self.folder / "evaluation.csv")
            scores: Any = evaluation.summary().to_dict(orient="index")
            summary = to_plain({
                "method": update.method, "edits": len(requests), "batch_size": size or len(requests), **description,
                "left_out": [request.describe() for request in left_out],
                "parameters": update.parameters, "norm": {name: update.norm(name) for name in update.parameters},
                "evaluation": scores,
            })  # fmt: skip
            file = save_json(self.folder / "summary.json", summary)
            if self.export is not None:
                edit.export(self.model, update, self.export, overwrite=True)
        table = scores_table(scores, f"{counted(len(requests), 'edit')} by {update.method}, on the final model")
        return Outcome(value=summary, shown=[table], results=[file])

    def _edit(self, requests: Sequence[edit.EditRequest], batch_size: int | None) -> edit.WeightUpdate:
        file = self.folder / "update.safetensors"
        with edit.EditSession(self.model, self.method, folder=self.folder / "session") as session:
            self._check_asked(session, requests)
            if done := len(session.requests):
                self.console.print(
                    f"Going on in {self.folder}: {done} of {counted(len(requests), 'edit')} made.", soft_wrap=True
                )
            try:
                update = session.edit(requests, batch_size=batch_size)
            except NumericsError as error:
                if not session.requests:
                    raise
                session.update.save(file)
                stands = counted(len(session.requests), "edit")
                raise NumericsError(
                    f"{error} What stands before it ({stands}) is kept as {file}. Leave out what cannot be edited, "
                    "and the same command goes on there."
                ) from error
        update.save(file)
        return update

    def _without_answered(
        self, requests: list[edit.EditRequest]
    ) -> tuple[list[edit.EditRequest], list[edit.EditRequest]]:
        """What asks for something new, and what does not."""
        answered = already_answered(self.model, [build_contexts(self.model, request, [""]) for request in requests])
        pairs = list(zip(requests, answered, strict=True))
        kept, left_out = [one for one, known in pairs if not known], [one for one, known in pairs if known]
        if left_out:
            self.console.print(
                f"Left out {len(left_out)} of {counted(len(requests), 'fact')}, whose new targets the model answers "
                "already.",
                soft_wrap=True,
            )
        if not kept:
            raise FactError(
                "The model answers all facts with their new targets already, so there is nothing to change."
            )
        return kept, left_out

    def _check_asked(self, session: edit.EditSession, requests: Sequence[edit.EditRequest]) -> None:
        """Whether all edits of the folder are among the requests, whose prompts that are only asked do not count."""
        paraphrases = self.method.uses_paraphrases
        asked = {request.change(paraphrases=paraphrases) for request in requests}
        if others := [one for one in session.requests if one.change(paraphrases=paraphrases) not in asked]:
            raise DataError(
                f"{self.folder} holds {counted(len(others), 'edit')} of other facts than these {len(requests)}. Give "
                f"another folder, or these facts as well:\n{listed([one.describe() for one in others])}"
            )
