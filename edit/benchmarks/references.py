"""CounterFact's reference texts: what an encyclopedia says of things that have an object in a relation."""

from pathlib import Path

from pydantic import BaseModel

from edit.evaluation.references import ReferenceTexts
from locate.errors import DataError
from locate.facts import parse_records, read_records


def load_reference_texts(path: str | Path) -> ReferenceTexts:
    """Read CounterFact's ``attribute_snippets.json``, for the reference score of ``evaluate``.

    Raises:
        DataError: the file is missing or not of that form, or a record is bad: the message names the
            file, the record's index and the field.

    >>> snippets = '[{"relation_id": "P17", "target_id": "Q38", "samples": [{"name": "Arno", "text": "A river."}]}]'
    >>> _ = Path("snippets.json").write_text(snippets)
    >>> load_reference_texts("snippets.json").texts
    {('P17', 'Q38'): ('A river.',)}
    """
    texts: dict[tuple[str, str], tuple[str, ...]] = {}
    records = parse_records(Path(path), read_records(Path(path)), lambda _, record: _Snippets.model_validate(record))
    for record in records:
        key = record.relation_id, record.target_id
        texts[key] = (*texts.get(key, ()), *(sample.text for sample in record.samples))
    if not any(texts.values()):
        raise DataError(f"{path}: none of its {len(records)} records has a text.")
    return ReferenceTexts(texts=texts)


class _Sample(BaseModel):
    text: str


class _Snippets(BaseModel):
    relation_id: str
    target_id: str
    samples: list[_Sample]
