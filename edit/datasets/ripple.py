"""RippleEdits (Cohen et al. 2023): edits with the ripples that they should and should not make."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from pydantic import AliasChoices, BaseModel, Field

from edit.datasets.criteria import criterion_probe
from edit.datasets.reading import ProbedEdit, Reading
from edit.datasets.records import Text
from edit.requests.probes import probes_for
from edit.requests.requests import EditRequest
from locate.facts.facts import Fact

# Words with which the published statements lead to their objects.
_LEADING = ("is", "are", "follows", "by")
# Words of statements in which a subject neither begins nor ends.
_GLUE = {
    "the", "of", "in", "by", "which", "is", "are", "has", "won", "that", "follows", "followed", "plays", "associated",
    "with",
}  # fmt: skip


class _Answer(BaseModel):
    value: str
    aliases: list[str] = []

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in (self.value, *self.aliases) if name.strip()]


class _Query(BaseModel):
    prompt: str
    answers: list[_Answer] = []
    subject_id: str | None = None
    query_type: str = "regular"
    target_ids: list[Any] = []
    second_hop_target_ids: list[Any] = []
    phrase: str | None = None

    @property
    def ids(self) -> list[Any]:
        """Of the answers."""
        return self.second_hop_target_ids if self.query_type == "two_hop" else self.target_ids


class _Test(BaseModel):
    test_queries: list[_Query]
    condition_queries: list[_Query] = []


class _Stated(BaseModel):
    prompt: Text
    subject_id: str
    target_id: str
    relation: str | None = None


class _Edit(_Stated):
    original_fact: _Stated | None = Field(None, validation_alias=AliasChoices("original_fact", "previous_fact"))


class _Record(BaseModel):
    edit: _Edit
    Relation_Specificity: list[_Test] = Field(
        [], validation_alias=AliasChoices("Relation_Specificity", "Relation_Specifity")
    )
    Logical_Generalization: list[_Test] = []
    Subject_Aliasing: list[_Test] = []
    Compositionality_I: list[_Test] = []
    Compositionality_II: list[_Test] = []
    Forgetfulness: list[_Test] = []

    def tests(self) -> Iterator[tuple[str, _Test]]:
        """Each with its criterion."""
        for name in type(self).model_fields:
            for test in getattr(self, name) if name != "edit" else ():
                yield name, test

    def names(self) -> dict[str, list[str]]:
        """What the queries call the things that have ids."""
        queries = [one for _, test in self.tests() for one in (*test.test_queries, *test.condition_queries)]
        return {
            str(key): answer.names
            for query in queries
            if len(query.ids) == len(query.answers)
            for key, answer in zip(query.ids, query.answers, strict=True)
            if answer.names
        }


def read_ripple(index: int, record: Any, reading: Reading) -> ProbedEdit | None:
    """A record of its recent, random or popular edits; None where it cannot be asked.

    Edits are published as statements, and subjects as ids. Where a statement's object begins is told by the objects'
    names in the record's queries, or by where it parts from the original statement; the subject by its name there, or
    by what all queries about it have in common.

    >>> answer = {"value": "Remus", "aliases": []}
    >>> test = {"test_queries": [{"prompt": "The brother of Romulus is", "answers": [answer], "subject_id": "Q1"}]}
    >>> edited = {"prompt": "The home of Romulus is Spain.", "subject_id": "Q1", "target_id": "Q3",
    ...           "original_fact": {"prompt": "The home of Romulus is Italy.", "subject_id": "Q1", "target_id": "Q2"}}
    >>> read = read_ripple(0, {"edit": edited, "Relation_Specifity": [test]}, Reading())
    >>> read.requests[0].fact.prompt, [(probe.role, probe.new, probe.old) for probe in read.probes]
    ('The home of {} is', [('edit', 'Spain', 'Italy'), ('same subject', 'Spain', 'Italy')])
    """
    read = _Record.model_validate(record)
    edit, names = read.edit, read.names()
    stated = _parted(edit, names)
    if stated is None:
        reading.skipped["edits of which the record does not tell where the object begins"] += 1
        return None
    about = [
        query.prompt
        for _, test in read.tests()
        for query in (*test.test_queries, *test.condition_queries)
        if query.subject_id == edit.subject_id and query.phrase is None
    ]
    known = [name for name in names.get(edit.subject_id, []) if name in stated.prompt][:1]
    subject = known[0] if known else common_subject(stated.prompt, about)
    if subject is None:
        reading.skipped["edits of which the record does not tell the subject's name"] += 1
        return None
    if (old := reading.present(stated.prompt, stated.new, [stated.old] if stated.old else [])) is None:
        return None
    fact = Fact.from_text(
        stated.prompt, subject=subject, target=old, target_new=stated.new, id=f"ripple-{index}", relation=edit.relation
    )
    original = names.get(edit.original_fact.target_id, []) if edit.original_fact else []
    request = EditRequest(
        fact, aliases=tuple(names.get(edit.target_id, [])[1:]), aliases_before=tuple(original[1:]) if stated.old else ()
    )
    probes = probes_for(request)
    for criterion, test in read.tests():
        for query in test.test_queries:
            answers = [answer.names for answer in query.answers if answer.names]
            probes += criterion_probe(criterion, query.prompt, answers, request, reading.skipped)
    return ProbedEdit((request,), probes)


class _Parted(NamedTuple):
    """A statement without its object, the object, and the original one."""

    prompt: str
    new: str
    old: str


def _parted(edit: _Edit, names: dict[str, list[str]]) -> _Parted | None:
    said = _bare(edit.prompt)
    before = _bare(edit.original_fact.prompt) if edit.original_fact else ""
    for whole, key in ((said, edit.target_id), (before, edit.original_fact.target_id if edit.original_fact else "")):
        label = names.get(key, [""])[0]
        prompt = whole.removesuffix(f" {label}")
        if label and prompt != whole and said.startswith(f"{prompt} ") and (not before or before.startswith(prompt)):
            return _Parted(prompt, said[len(prompt) :].strip(), before[len(prompt) :].strip())
    pairs = zip(said.split(), before.split(), strict=False)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    while shared and shared[-1] not in _LEADING:
        shared.pop()
    prompt = " ".join(shared)
    if not prompt or not said.startswith(f"{prompt} ") or not before.startswith(f"{prompt} "):
        return None
    return _Parted(prompt, said[len(prompt) :].strip(), before[len(prompt) :].strip())


def _bare(statement: str) -> str:
    return " ".join(statement.split()).removesuffix(".")


def common_subject(statement: str, others: Sequence[str]) -> str | None:
    """The name that a statement and others about the same thing have in common; None where there is none.

    Of the runs of words that all of them have, it is the longest that neither begins nor ends with a word that holds
    statements together; one with a capital letter or a digit goes before one without.

    >>> common_subject("The name of the home of Romulus Major is", ["The brother of Romulus Major is"])
    'Romulus Major'
    """
    others = [f" {' '.join(other.split())} " for other in others]
    words = statement.split()
    runs = [
        (any(word[0].isupper() or word[0].isdigit() for word in words[max(start, 1) : end]), end - start, start)
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if not {words[start], words[end - 1]} & _GLUE
        and all(f" {' '.join(words[start:end])} " in other for other in others)
    ]
    if not runs or not others:
        return None
    _, length, start = max(runs)
    return " ".join(words[start : start + length])
