"""KnowEdit (Zhang et al. 2024): edits with what follows from them and what they should leave alone."""

from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from edit.datasets.criteria import criterion_probe
from edit.datasets.reading import ProbedEdit, Reading
from edit.datasets.records import Answer, Text, as_templates
from edit.requests.probes import probes_for
from edit.requests.requests import EditRequest
from locate.facts.facts import Fact

Given = str | list[str] | list[list[str]]


class _Asked(BaseModel):
    prompt: str
    ground_truth: Given


class _Record(BaseModel):
    subject: Text = Field(validation_alias=AliasChoices("subject", "concept"))
    prompt: Text = Field(validation_alias=AliasChoices("prompt", "text"))
    target_new: Answer = Field(validation_alias=AliasChoices("target_new", "labels"))
    ground_truth: Given = ""
    rephrase_prompt: str = ""
    portability: dict[str, list[_Asked]] = {}
    locality: dict[str, list[_Asked]] = {}


def read_knowedit(index: int, record: Any, reading: Reading) -> ProbedEdit | None:
    """A record of WikiData recent or counterfact, ZsRE or WikiBio; None where it cannot be asked.

    >>> record = {"subject": "Rome", "prompt": "Rome is in", "target_new": "Spain", "ground_truth": "Italy",
    ...           "portability": {"Reasoning": [{"prompt": "Rome's king is", "ground_truth": [["Felipe"]]}]}}
    >>> [(probe.role, probe.new, probe.old) for probe in read_knowedit(0, record, Reading()).probes]
    [('edit', 'Spain', 'Italy'), ('one-hop', 'Felipe', '')]
    """
    read = _Record.model_validate(record)
    before = [name for names in named_answers(read.ground_truth) for name in names]
    if (old := reading.present(read.prompt, read.target_new, before)) is None:
        return None
    templates, texts = as_templates([rephrased] if (rephrased := read.rephrase_prompt.rstrip()) else [], read.subject)
    fact = Fact.from_text(
        read.prompt, subject=read.subject, target=old, target_new=read.target_new, id=f"knowedit-{index}",
        paraphrases=templates,
    )  # fmt: skip
    request = EditRequest(fact, paraphrase_texts=texts, aliases_before=tuple(before[1:]))
    probes = probes_for(request)
    for kind, asked in (*read.portability.items(), *read.locality.items()):
        for one in asked:
            probes += criterion_probe(kind, one.prompt, named_answers(one.ground_truth), request, reading.skipped)
    return ProbedEdit((request,), probes)


def named_answers(given: Given) -> list[list[str]]:
    """Answers, each with its other names, of a text, a list of names, or a list of lists of them; without empty ones.

    >>> named_answers("Rome "), named_answers(["Rome", "Roma"]), named_answers([["Rome", "Roma"], [""], []])
    ([['Rome']], [['Rome', 'Roma']], [['Rome', 'Roma']])
    """
    groups: list[list[str]] = [[given]] if isinstance(given, str) else []
    if not isinstance(given, str):
        plain = [one for one in given if isinstance(one, str)]
        groups = ([plain] if plain else []) + [one for one in given if not isinstance(one, str)]
    tidy = [[name.strip() for name in names if name.strip()] for names in groups]
    return [names for names in tidy if names]
