"""MQuAKE (Zhong et al. 2023): questions over chains of facts, some of which are edited."""

from typing import Any

from pydantic import BaseModel

from edit.datasets.counterfact import Rewrite
from edit.datasets.reading import ProbedEdit, Reading
from edit.datasets.records import Answer, Text, as_templates
from edit.requests.probes import Probe, probes_for, role_of_hops
from edit.requests.requests import EditRequest
from locate.facts.facts import Fact
from locate.facts.subjects import same_text


class _Rewrite(Rewrite):
    question: str = ""


class _Hop(BaseModel):
    question: str = ""
    cloze: Text
    answer: Answer
    answer_alias: list[str] = []


class _Record(BaseModel):
    case_id: int
    requested_rewrite: list[_Rewrite]
    questions: list[Text]
    answer: Answer
    new_answer: Answer
    single_hops: list[_Hop] = []
    new_single_hops: list[_Hop]


def read_mquake(_: int, record: Any, reading: Reading) -> ProbedEdit | None:
    """A record's edits, its questions over the whole chain, and the links of both chains that are not edited.

    A question over n facts is n − 1 steps beyond the edited one. Links that are not edited are unrelated: they keep
    their answers.

    >>> place = lambda text: {"str": text, "id": "Q"}
    >>> link = lambda cloze, answer: {"question": "", "cloze": cloze, "answer": answer, "answer_alias": []}
    >>> edited = {"prompt": "{} is in", "subject": "Rome", "target_new": place("Spain"), "target_true": place("Italy")}
    >>> record = {"case_id": 1, "requested_rewrite": [edited], "questions": ["Who rules the country of Rome?"],
    ...           "answer": "Sergio", "new_answer": "Felipe",
    ...           "single_hops": [link("Rome is in", "Italy"), link("Italy is ruled by", "Sergio")],
    ...           "new_single_hops": [link("Rome is in", "Spain"), link("Spain is ruled by", "Felipe")]}
    >>> [(probe.role, probe.new, probe.old) for probe in read_mquake(0, record, Reading()).probes][:2]
    [('edit', 'Spain', 'Italy'), ('one-hop', 'Felipe', 'Sergio')]
    """
    read = _Record.model_validate(record)
    links = {hop.cloze: hop for hop in read.new_single_hops}
    requests = []
    for place, one in enumerate(read.requested_rewrite):
        templates, texts = as_templates([one.question] if one.question.strip() else [], one.subject)
        fact = Fact(
            prompt=one.prompt, subject=one.subject, target=one.target_true.text, target_new=one.target_new.text,
            id=f"mquake-{read.case_id}" + (f"-{place}" if place else ""), relation=one.relation_id,
            paraphrases=templates,
        )  # fmt: skip
        names = links[fact.text].answer_alias if fact.text in links else []
        aliases = tuple(name.strip() for name in names if name.strip())
        requests.append(EditRequest(fact, aliases=aliases, paraphrase_texts=texts))
    probes = [probe for request in requests for probe in probes_for(request)]
    if same_text(read.answer, read.new_answer):
        reading.skipped["probes whose answer the edit does not change"] += len(read.questions)
    else:
        role = role_of_hops(max(1, len(read.new_single_hops) - 1))
        probes += [Probe(role=role, text=text, new=read.new_answer, old=read.answer) for text in read.questions]
    new, edited = requests[0].target_new, {request.fact.text for request in requests}
    for hop in {hop.cloze: hop for hop in (*read.single_hops, *read.new_single_hops)}.values():
        if hop.cloze in edited:
            continue
        if any(same_text(new, name) for name in (hop.answer, *hop.answer_alias)):
            reading.skipped["probes whose own answer is the new object"] += 1
        else:
            probes.append(Probe(role="unrelated", text=hop.cloze, new=new, old=hop.answer))
    return ProbedEdit(tuple(requests), probes)
