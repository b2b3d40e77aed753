"""zsRE (Levy et al. 2017) in MEND's form: questions, a rephrasing of each, and an unrelated question."""

import warnings
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from edit.datasets.records import Answer, Text, as_templates, load_records
from edit.requests.requests import EditRequest, Unrelated
from locate.errors import DataError, FactError
from locate.facts.facts import Fact

Taught = Literal["alt", "answers"]


def load_zsre(path: str | Path, *, limit: int | None = None, target_new: Taught | str = "alt") -> list[EditRequest]:
    """Read zsRE's questions. The prompt is the question itself, and the answer follows it after a space.

    Two edits are published for these records. ``"alt"`` teaches the record's alternative answer, against
    the first of its ``answers`` that differs from it, or else against ``pred``, what an earlier model said.
    ``"answers"`` (Meng et al. 2023) teaches the first right answer, against ``pred`` or, where that is right,
    against ``alt``. Further right answers are aliases. The unrelated question gets its question mark. Some copies have
    records without an alternative answer: ``"alt"`` leaves them out, with a warning that counts them.

    Args:
        path: the JSON file.
        limit: read the first records only.
        target_new: ``"alt"`` or ``"answers"``.

    Raises:
        DataError: the file is missing or not of that form, or a record is bad: the message names the
            file, the record's index and the field.

    >>> record = {"subject": "Rome", "src": "Where is Rome?", "rephrase": "Rome is where?", "pred": "Spain",
    ...           "alt": "France", "answers": ["Italy"], "loc": "nq question: who wrote the iliad",
    ...           "loc_ans": "Homer"}
    >>> _ = Path("zsre.json").write_text(str([record]).replace("'", '"'))
    >>> [load_zsre("zsre.json", target_new=kind)[0].describe() for kind in ("alt", "answers")]
    ['Where is Rome?: Italy → France', 'Where is Rome?: Spain → Italy']
    """
    if target_new not in get_args(Taught):
        raise DataError(f"target_new: must be one of {', '.join(get_args(Taught))}, found {target_new!r}.")
    found = load_records(path, lambda index, record: _parse(index, record, target_new), limit)
    requests = [request for request in found if request is not None]
    if found and not requests:
        raise DataError(
            f"{path}: no record has an alternative answer (alt). Teach the right ones: target_new='answers'."
        )
    if without := len(found) - len(requests):
        warnings.warn(f"{path}: left out {without} records that have no alternative answer (alt).", stacklevel=2)
    return requests


class _Record(BaseModel):
    subject: Text
    src: Text
    rephrase: Text
    alt: str = ""
    answers: list[str]
    pred: str = ""
    loc: Text
    loc_ans: Answer


def _parse(index: int, record: Any, target_new: str) -> EditRequest | None:
    read = _Record.model_validate(record)
    answers = [answer.strip() for answer in read.answers if answer.strip()]
    said, alternative = ([text.strip()] if text.strip() else [] for text in (read.pred, read.alt))
    if target_new == "alt":
        if not alternative:
            return None
        new, others, names = alternative[0], [*answers, *said], []
    elif answers:
        new, others, names = answers[0], [*said, *alternative], answers[1:]
    else:
        raise FactError("answers: is empty, so there is no right answer to teach.")
    olds = [old for old in dict.fromkeys(others) if old not in (new, *names)]
    if not olds:
        raise FactError(f"{target_new}: {new!r} is the only answer of the record, so there would be nothing to change.")
    templates, texts = as_templates([read.rephrase], read.subject)
    question = read.loc if read.loc.endswith("?") else f"{read.loc}?"
    fact = Fact.from_text(
        read.src, subject=read.subject, target=olds[0], target_new=new, id=f"zsre-{index}", paraphrases=templates
    )
    return EditRequest(
        fact, aliases=tuple(names), paraphrase_texts=texts,
        aliases_before=tuple(old for old in olds[1:] if target_new == "alt" and old in answers),
        unrelated=(Unrelated(prompt=question, target=read.loc_ans),),
    )  # fmt: skip
