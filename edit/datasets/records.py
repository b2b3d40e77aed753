"""What the published formats share: texts to tidy, and one way to read and report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

from locate.errors import DataError
from locate.facts.records import parse_records, read_records
from locate.facts.subjects import AbsentSubject, find_subject

T = TypeVar("T")


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _template(text: str) -> str:
    if (count := text.count("{}")) != 1:
        raise ValueError(f"needs exactly one {{}} where the subject goes, found {count} in {text!r}")
    return text


# Some copies have a space before an answer or after a prompt. The answer follows its prompt after one space.
Answer = Annotated[str, AfterValidator(_filled), AfterValidator(str.strip)]
Text = Annotated[str, AfterValidator(_filled), AfterValidator(str.rstrip)]
Template = Annotated[Text, AfterValidator(_template)]


def load_records(path: str | Path, parse: Callable[[int, Any], T], limit: int | None = None) -> list[T]:
    """The first ``limit`` records of a file, each by ``parse(index, record)``; none is left out.

    Raises:
        DataError: the limit is below 1, the file cannot be read, or a record is bad.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit: must be 1 or more, found {limit}. Leave it out to read all records.")
    return parse_records(Path(path), read_records(Path(path))[:limit], parse)


def as_templates(texts: Sequence[str], subject: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Written-out prompts as templates about the subject, and those that cannot be one because they do not name it.

    Where the subject occurs several times, its last occurrence as a whole word becomes the ``{}``.

    >>> as_templates(["Where is Rome?", "Where is the Eternal City?"], "Rome")
    (('Where is {}?',), ('Where is the Eternal City?',))
    """
    templates, rest = [], []
    for text in texts:
        try:
            start, end = find_subject(text, subject)
        except AbsentSubject:
            rest.append(text)
            continue
        template = f"{text[:start]}{{}}{text[end:]}"
        # A template is filled with the subject as the fact has it.
        usable = template.count("{}") == 1 and text[start:end] == subject
        (templates if usable else rest).append(template if usable else text)
    return tuple(templates), tuple(rest)
