"""Probes that users write themselves: plain dictionaries, or a file of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from edit.requests.probes import CONSEQUENCES, Probe
from edit.requests.requests import Case, EditRequest, as_request
from locate.errors import FactError
from locate.facts.records import parse_records, read_records


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: str
    text: str
    new: str = ""
    old: str = ""
    joined: bool | None = None
    chat: bool | None = None


def load_probes(source: str | Path | Sequence[Mapping[str, Any]], request: Case | None = None) -> list[Probe]:
    """Probes from plain dictionaries, or from a JSON, JSONL or CSV file of them.

    Each says its ``role`` and ``text``, and where it needs them ``new``, ``old``, ``joined`` and ``chat``. With a
    request, ``{}`` in a text stands for its subject, and what is left out is the edit's: both answers, except that a
    consequence must say its own new answer and that neither its old one nor that of an unrelated text is the edit's.

    Args:
        source: the file, or the dictionaries.
        request: the edit that the probes are about.

    Raises:
        DataError: the file is missing or not of that form, or a probe is bad: the message names the file, the
            probe's index and the field.

    >>> [probe] = edit.load_probes([{"role": "paraphrase", "text": "To visit {}, fly to"}], request)
    >>> probe.text, probe.new, probe.old
    ('To visit The Eiffel Tower, fly to', 'Rome', 'Paris')
    """
    if isinstance(source, str | Path):
        path, records = Path(source), read_records(Path(source), "probes")
    else:
        path, records = Path("probes"), source
    about = None if request is None else as_request(request)
    return parse_records(path, records, lambda _, record: _probe(record, about))


def _probe(record: Any, request: EditRequest | None) -> Probe:
    given = _Given.model_validate(record)
    text, new, old = given.text, given.new, given.old
    joined, chat = given.joined, given.chat
    if request is not None:
        fact, own = request.fact, given.role in (*CONSEQUENCES, "unrelated")
        text = fact.fill(text)
        new = new or ("" if given.role in CONSEQUENCES else request.target_new)
        old = old or ("" if own else fact.target)
        joined = fact.joined if joined is None else joined
        chat = fact.chat if chat is None else chat
    if not new.strip():
        raise FactError(f"new: a probe of role {given.role!r} must say its new answer; found none.")
    return Probe(role=given.role, text=text, new=new, old=old, joined=bool(joined), chat=bool(chat))
