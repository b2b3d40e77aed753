"""Text before a question that invites the old answer back, made of the fact's own words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edit.requests.requests import EditRequest
from locate.errors import FactError
from locate.facts.joining import continuation

BARE, ELSEWHERE = "bare", "same subject"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What stands before a question.

    Attributes:
        kind: what it says.
        prefix: the text, up to the question.
        invites: whether it names the old answer.
    """

    kind: str
    prefix: str
    invites: bool = True


def inviting_contexts(request: EditRequest, most: int = 3) -> list[Context]:
    """Contexts that name the old answer, and for comparison none and one that says something else of the subject.

    They have no words but the fact's own, so that they are of its language, and each stands on a line of its own: the
    question with the old answer (``stated``), its paraphrases with it (``paraphrase``), questions about other subjects
    that share it (``neighbour``), the answer's words alone (``alone``); and without it, nothing (``bare``) and other
    questions about the subject with their answers (``same subject``).

    Args:
        request: of the edit.
        most: how many of each kind.

    >>> [one.kind for one in inviting_contexts(request, most=1)]
    ['bare', 'same subject', 'stated', 'paraphrase', 'neighbour', 'alone']
    >>> inviting_contexts(request)[-1].prefix
    'Paris\\n'
    """
    fact, old = request.fact, request.fact.target

    def said(text: str, answer: str = old) -> str:
        return f"{text}{continuation(text, answer, joined=fact.joined)}\n"

    others = [said(fact.fill(one.prompt), one.target) for one in fact.other_relations]
    inviting: dict[str, Sequence[str]] = {
        "stated": [said(fact.text)], "paraphrase": [said(text) for text in request.paraphrases],
        "neighbour": [said(text) for text in fact.neighbours], "alone": [f"{old.strip()}\n"],
    }  # fmt: skip
    return [
        Context(kind=BARE, prefix="", invites=False),
        *(Context(kind=ELSEWHERE, prefix=text, invites=False) for text in others[:most]),
        *(Context(kind=kind, prefix=text) for kind, texts in inviting.items() for text in texts[:most]),
    ]


def own_contexts(given: Mapping[str, str]) -> list[Context]:
    """Contexts of a user's own, by what they are called, with none before them.

    Raises:
        FactError: one is empty.

    >>> [one.kind for one in own_contexts({"denied": "It is not in Rome. "})]
    ['bare', 'denied']
    """
    if empty := [kind for kind, text in given.items() if not text]:
        raise FactError(f"contexts: {empty[0]!r} is empty; the bare question is always asked.")
    return [
        Context(kind=BARE, prefix="", invites=False),
        *(Context(kind=kind, prefix=text) for kind, text in given.items()),
    ]
