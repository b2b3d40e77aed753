"""Questions by which to see how far an edit reaches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edit.requests.requests import Case, EditRequest, as_request
from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.subjects import same_text

Role = Literal[
    "edit", "paraphrase", "alias", "one-hop", "two-hop", "consequence", "same subject", "neighbour", "unrelated"
]
ROLES: tuple[Role, ...] = get_args(Role)
# One step of reasoning beyond the edited fact, two, and more or an unknown number of them.
CONSEQUENCES: tuple[Role, ...] = ("one-hop", "two-hop", "consequence")
# Where the edit should change the answer; everywhere else it should not.
REACHED: tuple[Role, ...] = ("edit", "paraphrase", "alias", *CONSEQUENCES)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A prompt with the answer that the edit should bring (or must not bring), and the one before it.

    ====================================  ============================  ==========================
    role                                  ``new``                       ``old``
    ====================================  ============================  ==========================
    edit, paraphrase, alias               the new object o*             the old object o
    one-hop, two-hop, consequence         what then follows             what follows now
    same subject, neighbour               o*, by mistake                o
    unrelated                             o*, by mistake                the prompt's own answer
    ====================================  ============================  ==========================

    Args:
        role: how the prompt relates to the edit.
        text: the prompt.
        new: the answer whose gain is measured.
        old: the answer that it is measured against. Empty where it is not known: ``with_model_answers`` puts the
            unedited model's own answer there, and ``propagate`` does so by itself.
        joined: whether answers follow the prompt exactly as they are given.
        chat: whether the prompt is what a user says in a chat.

    Raises:
        FactError: there is no such role, or the prompt or the new answer is empty.

    >>> Probe(role="paraphrase", text="To visit The Eiffel Tower, fly to", new="Rome", old="Paris").role
    'paraphrase'
    """

    # Checked below and not by type alone, so that a wrong word gets a sentence.
    role: Role | str
    text: str
    new: str
    old: str = ""
    joined: bool = False
    chat: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise FactError(f"role: must be one of {', '.join(ROLES)}, found {self.role!r}.")
        for name in ("text", "new"):
            if not getattr(self, name).strip():
                raise FactError(f"{name}: is empty in a probe of role {self.role!r}.")


def role_of_hops(hops: int | None) -> Role:
    """The role of a consequence that is some steps of reasoning beyond the edited fact.

    >>> role_of_hops(1), role_of_hops(2), role_of_hops(3), role_of_hops(None)
    ('one-hop', 'two-hop', 'consequence', 'consequence')
    """
    return CONSEQUENCES[{1: 0, 2: 1}.get(hops or 0, 2)]


def named_roles(names: Iterable[str] | str, option: str = "roles") -> tuple[Role, ...]:
    """Roles by name; ``"consequence"`` names consequences of any number of hops.

    Raises:
        FactError: there is no such role; the message begins with ``option``.

    >>> named_roles(["edit", "consequence"])
    ('edit', 'one-hop', 'two-hop', 'consequence')
    """
    wanted = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(wanted - set(ROLES)):
        raise FactError(f"{option}: there are no probes of role {unknown[0]!r}; roles are {', '.join(ROLES)}.")
    if CONSEQUENCES[2] in wanted:
        wanted |= set(CONSEQUENCES)
    return tuple(role for role in ROLES if role in wanted)


# What to ask: probes one by one, or an edit, whose fact provides them.
Probed = Sequence[Probe | Case] | Case


def as_probed(given: Probed) -> Sequence[Probe] | EditRequest:
    """What users give as what to ask: probes as they are, an edit or a fact that stands for one as a request.

    Raises:
        FactError: there is nothing, several edits, or something else.

    >>> as_probed(fact) == request, as_probed([request]) == request
    (True, True)
    """
    if isinstance(given, EditRequest | Fact):
        return as_request(given)
    several = list(given)
    probes = [one for one in several if isinstance(one, Probe)]
    edits = [one for one in several if not isinstance(one, Probe)]
    if not edits:
        return probes
    if len(several) == 1:
        return as_request(edits[0])
    kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in several))
    raise FactError(f"probes: give several Probes, or one EditRequest or fact with a new target; found {kinds}.")


def probes_for(request: Case) -> list[Probe]:
    """All probes that a request and its fact provide; a fact stands for its own counterfactual.

    Consequences are measured by their own answers, and by those of the fact's own counterfactual alone: they
    say nothing about another one. What is unrelated is measured by the new object against its own answer,
    and left out where that is the new object. All others are measured by the edit's answers: a neighbour or
    another relation that gains o* over o has been hit by mistake.

    >>> [probe.role for probe in probes_for(request)][:2]
    ['edit', 'paraphrase']
    """
    request = as_request(request)
    fact, new = request.fact, request.target_new
    follows = fact.consequences if new == fact.target_new else ()
    own: list[tuple[Role, Sequence[str]]] = [
        ("edit", [fact.text]),
        ("paraphrase", request.paraphrases),
        ("alias", [fact.prompt.replace("{}", alias) for alias in fact.subject_aliases]),
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

    consequences = [
        Probe(
            role=role_of_hops(one.hops),
            text=fact.fill(one.prompt),
            new=one.target,
            old=one.target_before,
            joined=fact.joined,
            chat=fact.chat,
        )
        for one in follows
    ]
    unrelated = [
        Probe(role="unrelated", text=one.prompt, new=new, old=one.target, chat=fact.chat)
        for one in request.unrelated
        if not any(same_text(new, answer) for answer in (one.target, *one.aliases))
    ]
    return [*made(own), *consequences, *made(rest), *unrelated]
