"""CounterFact's reference texts: what an encyclopedia says of things that have an object in a relation."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edit.benchmarks.counterfact import fact_id
from edit.evaluation.references import ReferenceTexts
from locate.errors import DataError
from locate.facts import parse_records, read_records


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
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for one in _parsed(snippets, _Snippets):
        key = one.relation_id, one.target_id
        found[key] = (*found.get(key, ()), *(sample.text for sample in one.samples))
    facts = _parsed(counterfact, _Record)
    keys = {fact_id(one.case_id): one.requested_rewrite.key for one in facts}
    texts = {fact: found[key] for fact, key in keys.items() if found.get(key)}
    if not texts:
        raise DataError(f"{snippets} has no text for any of the {len(facts)} facts in {counterfact}.")
    return ReferenceTexts(texts=texts, corpus=tuple(text for own in found.values() for text in own))


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


def _parsed(path: str | Path, form: type[BaseModel]) -> list[Any]:
    return parse_records(Path(path), read_records(Path(path)), lambda _, record: form.model_validate(record))
