"""Requests that contradict or repeat each other."""

import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edit.requests.requests import Case, EditRequest, as_request
from locate.errors import FactError, counted, listed, tell
from locate.facts.subjects import same_text

# The cosine of two keys above which rounding alone tells them apart.
_SAME_KEY = 1 - 1e-5


def find_conflicts(requests: Sequence[Case], earlier: Sequence[Case] = ()) -> list[tuple[EditRequest, EditRequest]]:
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
    for index, request in enumerate(map(as_request, [*earlier, *requests])):
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
        f"{old.describe()}  {'and again' if same_text(old.target_new, new.target_new) else '≠'}  {new.describe()}"
        for old, new in conflicts
    ]
    raise FactError(
        f"Found {counted(len(conflicts), 'request')} about the same subject and relation as another one. Nothing was "
        f"changed. Keep one of each, or remove the earlier edit first:\n{listed(pairs)}"
    )


def warn_of_shared_keys(
    requests: Sequence[EditRequest], keys: Float[Tensor, "edit d_mlp"], earlier: Float[Tensor, "before d_mlp"]
) -> None:
    """Say so where several edits are to write at one key, as where they ask about one subject after the same words.

    A down-projection gives one value at a key: what is written last wins, or a mixture is written.

    Args:
        requests: what is being edited.
        keys: theirs.
        earlier: those of edits that are in the model already.
    """
    unit = F.normalize(torch.cat([earlier, keys]).double(), dim=1)
    alike = (unit[len(earlier) :] @ unit.T > _SAME_KEY).tril(len(earlier) - 1)
    if not alike.any():
        return
    pairs = [
        f"{requests[int(new)].describe()}  and  "
        + (requests[int(old) - len(earlier)].describe() if old >= len(earlier) else f"edit {int(old)} of those before")
        for new, old in alike.nonzero()
    ]
    tell(
        f"Found {counted(len(pairs), 'pair')} of edits at one key, where they cannot both have their own value: their "
        "prompts are the same up to the end of the subject. Of such edits the model may keep one, or none whole. Put "
        f"the subject after other words, or edit one of them:\n{listed(pairs)}"
    )


def _keys(request: EditRequest) -> list[tuple[str, str]]:
    fact = request.fact
    subject, prompt = (
        " ".join(unicodedata.normalize("NFC", text).casefold().split()) for text in (fact.subject, fact.prompt)
    )
    subject = subject.removeprefix("the ")
    named = [(subject, f"relation {fact.relation}")] if fact.relation else []
    return [(subject, prompt), *named]
