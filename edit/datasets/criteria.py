"""The criteria of KnowEdit and RippleEdits, as probes."""

from collections import Counter
from collections.abc import Sequence

from edit.requests.probes import CONSEQUENCES, Probe, Role
from edit.requests.requests import EditRequest
from locate.facts.subjects import same_text

_ROLES: dict[str, Role] = {
    "Subject_Aliasing": "alias", "Reasoning": "one-hop", "Compositionality_I": "one-hop",
    "Compositionality_II": "one-hop", "Logical_Generalization": "consequence",
    "Relation_Specificity": "same subject", "Forgetfulness": "same subject",
}  # fmt: skip


def criterion_probe(
    criterion: str, prompt: str, answers: Sequence[Sequence[str]], request: EditRequest, skipped: Counter[str]
) -> list[Probe]:
    """A benchmark's prompt as a probe; none where it cannot be asked, which is counted.

    An alias and another relation are measured by the edit's answers, and so is a step of reasoning that leads to
    the edited fact. A step that starts from it has its own new answer, and its old one is not published. Where the
    relation has several objects (Forgetfulness), the first that is to be kept stands for the old one.

    Args:
        criterion: by its published name.
        prompt: written out.
        answers: what is right after the edit, each with its other names.
        request: the edit.
        skipped: counts, by reason.

    >>> [probe] = criterion_probe("Reasoning", "Its country is", [["Italy"]], request, Counter())
    >>> probe.role, probe.new, probe.old
    ('one-hop', 'Italy', '')
    """
    if criterion not in _ROLES:
        skipped[f"probes of the unknown kind {criterion!r}"] += 1
        return []
    if not answers or not prompt.strip():
        skipped["probes without an answer"] += 1
        return []
    role, fact = _ROLES[criterion], request.fact
    new, old = request.target_new, fact.target
    others = [names for names in answers if not any(_is_new(request, name) for name in names)]
    if role in CONSEQUENCES:
        if others or role != "one-hop":
            new, old = answers[0][0], ""
    elif criterion == "Forgetfulness" and others:
        old = others[0][0]
    elif role == "same subject" and len(others) < len(answers):
        skipped["probes whose own answer is the new object"] += 1
        return []
    if same_text(new, old):
        skipped["probes whose answer the edit does not change"] += 1
        return []
    return [Probe(role=role, text=prompt.rstrip(), new=new, old=old, joined=fact.joined, chat=fact.chat)]


def _is_new(request: EditRequest, name: str) -> bool:
    return any(same_text(name, one) for one in (request.target_new, *request.aliases))
