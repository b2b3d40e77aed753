"""Questions by which to see how far an edit reaches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edit.requests.requests import EditRequest
from locate.errors import FactError

Role = Literal["edit", "paraphrase", "consequence", "same subject", "neighbour"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A prompt with the answer that the edit should bring (or must not bring), and the one before it.

    Args:
        role: how the prompt relates to the edit.
        text: the prompt.
        new: the answer o* whose gain is measured.
        old: the answer o that it is measured against.
        joined: whether answers follow the prompt exactly as they are given.
        chat: whether the prompt is what a user says in a chat.

    >>> Probe(role="paraphrase", text="To visit The Eiffel Tower, fly to", new="Rome", old="Paris").role
    'paraphrase'
    """

    # Checked below and not by type alone, so that a wrong word gets a sentence.
    role: Role | str
    text: str
    new: str
    old: str
    joined: bool = False
    chat: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise FactError(f"role: must be one of {', '.join(ROLES)}, found {self.role!r}.")
        for name in ("text", "new", "old"):
            if not getattr(self, name).strip():
                raise FactError(f"{name}: is empty in a probe of role {self.role!r}.")


def probes_for(request: EditRequest) -> list[Probe]:
    """All probes that a request and its fact provide.

    Consequences are measured by their own answers. All others are measured by the edit's: a
    neighbour or another relation that gains o* over o has been hit by mistake.

    >>> [probe.role for probe in probes_for(request)][:2]
    ['edit', 'paraphrase']
    """
    fact, new = request.fact, request.target_new
    own: list[tuple[Role, Sequence[str]]] = [
        ("edit", [fact.text]),
        ("paraphrase", request.paraphrases),
    ]
    rest: list[tuple[Role, Sequence[str]]] = [
        ("same subject", [fact.fill(other.prompt) for other in fact.other_relations]),
        ("neighbour", fact.neighbours),
    ]

    def made(groups: list[tuple[Role, Sequence[str]]]) -> list[Probe]:
        return [
            Probe(role=role, text=text, new=new, old=fact.target, joined=fact.joined, chat=fact.chat)
            for role, texts in groups
            for text in texts
        ]

    # A consequence was written for the fact's own counterfactual and says nothing about another one.
    follows = fact.consequences if new == fact.target_new else ()
    consequences = [
        Probe(
            role="consequence",
            text=fact.fill(one.prompt),
            new=one.target,
            old=one.target_before,
            joined=fact.joined,
            chat=fact.chat,
        )
        for one in follows
    ]
    return [*made(own), *consequences, *made(rest)]
