"""What readers of benchmarks share: an edit with its probes, what was left out, and the model that knows the rest."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from transformer_lens.model_bridge import TransformerBridge

from edit.requests.answers import answered, own_answer
from edit.requests.probes import Probe
from edit.requests.requests import EditRequest
from locate.errors import FactError
from locate.facts.answers import tell_apart
from locate.facts.subjects import same_text


class ProbedEdit(NamedTuple):
    """What a benchmark's record asks for, and the probes by which it is judged.

    Attributes:
        requests: nearly always one; a chain of facts may need several at once, before what follows from all holds.
        probes: of all of them.

    >>> requests, probes = edit.ProbedEdit((request,), edit.probes_for(request))
    >>> requests[0].target_new, probes[0].role
    ('Rome', 'edit')
    """

    requests: tuple[EditRequest, ...]
    probes: list[Probe]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How records are read.

    Attributes:
        model: asked for what a record does not say; None where nobody is.
        skipped: how many edits and probes were left out, by reason.

    >>> Reading().present("Rome is in", "Spain", ["Italy"])
    'Italy'
    """

    model: TransformerBridge | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def present(self, prompt: str, new: str, known: list[str]) -> str | None:
        """The present answer: the first that is known, or else the model's own. None, and counted, without one."""
        if known:
            if any(same_text(new, one) for one in known):
                self.skipped["edits whose new object is the present one"] += 1
                return None
            return known[0]
        if self.model is None:
            self.skipped["edits whose present object is not in the record (model=… asks a model for it)"] += 1
            return None
        own = own_answer(self.model, prompt)
        try:
            tell_apart(self.model, prompt, new, own)
        except FactError:
            self.skipped["edits whose new object the model answers already"] += 1
            return None
        return own

    def complete(self, probed: ProbedEdit) -> ProbedEdit:
        """With the model's own answers where old ones are not known, if there is a model."""
        if self.model is None:
            return probed
        probes, problems = answered(self.model, probed.probes)
        if problems:
            self.skipped["probes whose new answer the model gives already"] += len(problems)
        return probed._replace(probes=probes)
