"""What to change: a fact and its new object, and what else a benchmark asks about it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from locate.errors import FactError
from locate.facts.facts import Fact, as_tuple
from locate.facts.subjects import same_text


@dataclass(frozen=True, kw_only=True)
class Unrelated:
    """A prompt about something else, with its own answer, which an edit should leave alone.

    Args:
        prompt: the prompt, written out.
        target: its answer, given as a fact's target is.
        aliases: other names of the answer.

    Raises:
        FactError: the prompt or an answer is empty, or an answer has space after it.

    >>> Unrelated(prompt="nq question: who wrote the iliad?", target="Homer").target
    'Homer'
    """

    prompt: str
    target: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", as_tuple("aliases", self.aliases))
        _check_prompts("prompt", [self.prompt])
        _check_answers("target", [self.target])
        _check_answers("aliases", self.aliases)


@dataclass(frozen=True, repr=False)
class EditRequest:
    """Make the model answer ``fact`` with ``target_new``.

    Args:
        fact: the fact to change.
        target_new: the new object, given as a fact's target is; by default the fact's own counterfactual.
        aliases: other names of the new object; a generation may give any.
        aliases_before: other names of the fact's present object.
        paraphrase_texts: paraphrases written out, for those that do not name the subject as the fact does
            (``fact.paraphrases`` are templates).
        unrelated: prompts about something else, each with its own answer.
        generation_prompts: prompts about the subject that the model continues at length, to see whether it is
            still fluent.
        attribute_prompts: prompts about other subjects that have the new object. No measure here asks them;
            they are kept for those who do.

    Raises:
        FactError: there is no new target, it equals the old one, or a text is empty.

    >>> request = EditRequest(fact, target_new="Rome")
    >>> request.describe()
    'The Eiffel Tower is located in the city of: Paris → Rome'
    """

    fact: Fact
    target_new: str = ""
    _: KW_ONLY
    aliases: tuple[str, ...] = ()
    aliases_before: tuple[str, ...] = ()
    paraphrase_texts: tuple[str, ...] = ()
    unrelated: tuple[Unrelated, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        new = self.target_new or self.fact.target_new or ""
        if not new.strip():
            raise FactError(
                f"target_new: the request for {self.fact.text!r} has no new target. "
                "Give target_new=…, or a fact that carries one."
            )
        _check_answers("target_new", [new])
        if same_text(new, self.fact.target):
            raise FactError(f"target_new: {new!r} is the present answer, so there is nothing to change.")
        object.__setattr__(self, "target_new", new)
        object.__setattr__(self, "unrelated", tuple(self.unrelated))
        for name in ("aliases", "aliases_before"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
            _check_answers(name, getattr(self, name))
        for name in ("paraphrase_texts", "generation_prompts", "attribute_prompts"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
            _check_prompts(name, getattr(self, name))

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """Every paraphrase, written out."""
        return (*(self.fact.fill(template) for template in self.fact.paraphrases), *self.paraphrase_texts)

    def describe(self) -> str:
        """One line that says what changes."""
        return f"{self.fact.text}: {self.fact.target} → {self.target_new}"

    def __repr__(self) -> str:
        counts = {
            "paraphrases": len(self.paraphrases), "neighbours": len(self.fact.neighbours),
            "unrelated": len(self.unrelated),
        }  # fmt: skip
        asked = [f"{n} {name}" for name, n in counts.items() if n]
        return f"EditRequest({', '.join([repr(self.describe()), *asked])})"

    def change(self, *, paraphrases: bool = False) -> "Identity":
        """What the edit itself depends on, and not what is only asked about it afterwards.

        Args:
            paraphrases: whether the edit depends on those of its fact, as KN's does.

        >>> other = edit.EditRequest(request.fact, request.target_new, aliases=("Roma",))
        >>> other == request, other.change() == request.change()
        (False, True)
        """
        return Identity(
            prompt=self.fact.prompt, subject=self.fact.subject, target=self.fact.target, target_new=self.target_new,
            joined=self.fact.joined, chat=self.fact.chat, id=self.fact.id, relation=self.fact.relation,
            paraphrases=self.fact.paraphrases if paraphrases else (),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What an edit depends on, and what it goes by.

    >>> request.change().target_new
    'Rome'
    """

    prompt: str
    subject: str
    target: str
    target_new: str
    joined: bool = False
    chat: bool = False
    id: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()


Case = EditRequest | Fact
Cases = Sequence[Case] | Case


def as_request(case: Case) -> EditRequest:
    """A case as a request; a fact stands for its own counterfactual.

    Raises:
        FactError: it has no new target, or is neither a fact nor a request.

    >>> as_request(fact) == request
    True
    """
    if isinstance(case, Fact):
        return EditRequest(case)
    if not isinstance(case, EditRequest):
        raise FactError(f"Give an EditRequest, or a fact with a new target; found {type(case).__name__}.")
    return case


def as_requests(cases: Cases) -> list[EditRequest]:
    """Cases as requests; a fact stands for its own counterfactual.

    Raises:
        FactError: there are none, one has no new target, or one is neither a fact nor a request.

    >>> as_requests(request) == [request]
    True
    """
    cases = [cases] if isinstance(cases, EditRequest | Fact) else list(cases)
    if not cases:
        raise FactError("There is nothing to edit; give at least one EditRequest, or a fact with a new target.")
    return [as_request(case) for case in cases]


def _check_answers(name: str, answers: "list[str] | tuple[str, ...]") -> None:
    for answer in answers:
        if not answer.strip():
            raise FactError(f"{name}: is empty; give the answer's text, such as 'Rome'.")
        if answer != answer.rstrip():
            raise FactError(f"{name}: {answer!r} has space after it; give it bare.")


def _check_prompts(name: str, prompts: "list[str] | tuple[str, ...]") -> None:
    for prompt in prompts:
        if not prompt.strip():
            raise FactError(f"{name}: a prompt is empty; give its text, or leave it out.")
