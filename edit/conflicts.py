"""Requests that contradict or repeat each other."""

from collections.abc import Sequence

from edit.requests import EditRequest
from locate.errors import FactError, listed


def find_conflicts(
    requests: Sequence[EditRequest], earlier: Sequence[EditRequest] = ()
) -> list[tuple[EditRequest, EditRequest]]:
    """Pairs of requests about the same subject and relation, the earlier one first.

    Two requests ask about the same relation if their prompts do, or if both name it. They conflict whether or not
    their new targets agree: a repeated request counts twice in every solve.

    Args:
        requests: to be looked at, against each other and against earlier ones.
        earlier: requests that are in the model already.

    >>> find_conflicts([request, edit.EditRequest(request.fact, "London")])[0][1].target_new
    'London'
    """
    seen: dict[tuple[str, str], EditRequest] = {}
    found = []
    for index, request in enumerate([*earlier, *requests]):
        keys = _keys(request)
        other = next((seen[key] for key in keys if key in seen), None)
        if other is not None and index >= len(earlier):
            found.append((other, request))
        for key in keys:
            seen.setdefault(key, request)
    return found


def check_conflicts(requests: Sequence[EditRequest], earlier: Sequence[EditRequest] = ()) -> None:
    """Whether all requests can be edited together, and after the earlier ones.

    Raises:
        FactError: some contradict or repeat each other; the message names them.

    >>> check_conflicts([request])
    """
    conflicts = find_conflicts(requests, earlier)
    if not conflicts:
        return
    pairs = [
        f"{old.describe()}  {'and again' if old.target_new == new.target_new else '≠'}  {new.describe()}"
        for old, new in conflicts
    ]
    raise FactError(
        f"{len(conflicts)} request(s) are about the same subject and relation as another one. Nothing was changed. "
        f"Keep one of each, or remove the earlier edit first:\n{listed(pairs)}"
    )


def _keys(request: EditRequest) -> list[tuple[str, str]]:
    fact = request.fact
    subject = " ".join(fact.subject.casefold().split()).removeprefix("the ")
    prompt = " ".join(fact.prompt.casefold().split())
    named = [(subject, f"relation {fact.relation}")] if fact.relation else []
    return [(subject, prompt), *named]
