"""CounterFact's reference texts: what an encyclopedia says of things that have an object in a relation."""

from collections import defaultdict
from itertools import chain
from pathlib import Path

from pydantic import BaseModel

from edit.datasets.counterfact import fact_id
from edit.datasets.records import load_records
from edit.datasets.texts import ReferenceTexts
from locate.errors import DataError


def load_reference_texts(snippets: str | Path, counterfact: str | Path) -> ReferenceTexts:
    """Read CounterFact's ``attribute_snippets.json``, for the reference score of ``evaluate``.

    Args:
        snippets: the file of texts, by relation and the object's id.
        counterfact: CounterFact in its original form, which says what id each fact's new object has.

    Raises:
        DataError: a file is missing or not of that form, or a record is bad: the message names the file, the
            record's index and the field. Or no fact has a text.

    >>> text = '[{"relation_id": "P17", "target_id": "Q38", "samples": [{"text": "A river in Italy."}]}]'
    >>> fact = '[{"case_id": 7, "requested_rewrite": {"relation_id": "P17", "target_new": {"id": "Q38"}}}]'
    >>> _ = Path("snippets.json").write_text(text), Path("original.json").write_text(fact)
    >>> load_reference_texts("snippets.json", "original.json").texts
    {'counterfact-7': ('A river in Italy.',)}
    """
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for one in load_records(snippets, lambda _, record: _Snippets.model_validate(record)):
        found[one.relation_id, one.target_id] += [sample.text for sample in one.samples]
    about = {key: tuple(own) for key, own in found.items() if own}
    facts = load_records(counterfact, lambda _, record: _Record.model_validate(record))
    keys = {fact_id(one.case_id): one.requested_rewrite.key for one in facts}
    texts = {fact: about[key] for fact, key in keys.items() if key in about}
    if not texts:
        raise DataError(f"{snippets} has no text for any of the {len(facts)} facts in {counterfact}.")
    return ReferenceTexts(texts=texts, corpus=tuple(chain.from_iterable(about.values())))


class _Sample(BaseModel):
    text: str


class _Snippets(BaseModel):
    relation_id: str
    target_id: str
    samples: list[_Sample]


class _Object(BaseModel):
    id: str


class _Rewrite(BaseModel):
    relation_id: str
    target_new: _Object

    @property
    def key(self) -> tuple[str, str]:
        return self.relation_id, self.target_new.id


class _Record(BaseModel):
    case_id: int
    requested_rewrite: _Rewrite
