"""CounterFact (Meng et al. 2022): counterfactual statements, paraphrases, and neighbours with the same object."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from edit.datasets.records import Answer, Template, Text, as_templates, load_records
from edit.requests.requests import EditRequest, Unrelated
from locate.facts.facts import Fact


def load_counterfact(path: str | Path, *, limit: int | None = None) -> list[EditRequest]:
    """Read CounterFact, in its original form or flattened to one paraphrase and one neighbour a record.

    A paraphrase that names the subject becomes a template of the fact; another is kept as a text of the
    request. A flat record's locality prompt is a neighbour where its answer is the fact's own object, and
    otherwise unrelated. Space before answers and after prompts is taken off, because an answer follows
    its prompt after one space.

    Args:
        path: the JSON file.
        limit: read the first records only.

    Raises:
        DataError: the file is missing or not of that form, or a record is bad: the message names the
            file, the record's index and the field.

    >>> record = {"case_id": 7, "prompt": "Rome is in", "subject": "Rome", "ground_truth": "Italy",
    ...           "target_new": "France", "rephrase_prompt": "Where is Rome? In",
    ...           "locality_prompt": "Milan is in", "locality_ground_truth": "Italy"}
    >>> _ = Path("flat.json").write_text(str([record]).replace("'", '"'))
    >>> (request,) = load_counterfact("flat.json")
    >>> request.describe(), request.fact.id, request.fact.neighbours
    ('Rome is in: Italy → France', 'counterfact-7', ('Milan is in',))
    """
    return load_records(path, _parse, limit)


def fact_id(case_id: int) -> str:
    """The id that a record's fact gets.

    >>> fact_id(7)
    'counterfact-7'
    """
    return f"counterfact-{case_id}"


class _Object(BaseModel):
    text: Answer = Field(alias="str")


class Rewrite(BaseModel):
    """An edit as CounterFact and MQuAKE publish it."""

    prompt: Template
    subject: Text
    target_new: _Object
    target_true: _Object
    relation_id: str | None = None

    @model_validator(mode="after")
    def _changes(self) -> "Rewrite":
        _check_change(self.target_new.text, self.target_true.text, "target_true")
        return self


class _Original(BaseModel):
    case_id: int
    requested_rewrite: Rewrite
    paraphrase_prompts: list[Text] = []
    neighborhood_prompts: list[Text] = []
    attribute_prompts: list[Text] = []
    generation_prompts: list[Text] = []

    def request(self) -> EditRequest:
        """The record as a request."""
        rewrite = self.requested_rewrite
        templates, texts = as_templates(self.paraphrase_prompts, rewrite.subject)
        fact = Fact(
            prompt=rewrite.prompt, subject=rewrite.subject, target=rewrite.target_true.text,
            target_new=rewrite.target_new.text, id=fact_id(self.case_id), relation=rewrite.relation_id,
            paraphrases=templates, neighbours=tuple(self.neighborhood_prompts),
        )  # fmt: skip
        return EditRequest(
            fact, paraphrase_texts=texts, generation_prompts=tuple(self.generation_prompts),
            attribute_prompts=tuple(self.attribute_prompts),
        )  # fmt: skip


class _Flat(BaseModel):
    case_id: int
    prompt: Text
    subject: Text
    ground_truth: Answer
    target_new: Answer
    rephrase_prompt: Text
    locality_prompt: Text
    locality_ground_truth: Answer

    @model_validator(mode="after")
    def _changes(self) -> "_Flat":
        _check_change(self.target_new, self.ground_truth, "ground_truth")
        return self

    def request(self) -> EditRequest:
        """The record as a request."""
        templates, texts = as_templates([self.rephrase_prompt], self.subject)
        other = Unrelated(prompt=self.locality_prompt, target=self.locality_ground_truth)
        shared = other.target == self.ground_truth
        fact = Fact.from_text(
            self.prompt, subject=self.subject, target=self.ground_truth, target_new=self.target_new,
            id=fact_id(self.case_id), paraphrases=templates, neighbours=(other.prompt,) if shared else (),
        )  # fmt: skip
        return EditRequest(fact, paraphrase_texts=texts, unrelated=() if shared else (other,))


def _parse(_: int, record: Any) -> EditRequest:
    # The form is told by the record, so that a bad one is held against the form that it has.
    form = _Original if isinstance(record, dict) and "requested_rewrite" in record else _Flat
    return form.model_validate(record).request()


def _check_change(new: str, true: str, field: str) -> None:
    if new == true:
        raise ValueError(f"target_new: equals {field} ({true!r}), so there would be nothing to change")
