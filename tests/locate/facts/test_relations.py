"""Relations in their published form."""

import json

import pytest

import locate
from locate import DataError, FactError
from locate.facts.relations import facts_of

WHOLE = {
    "name": "capitals", "prompt_templates": ["The capital of {} is", "{}'s capital is"],
    "prompt_templates_zs": ["What is the capital of {}? It is"],
    "samples": [{"subject": "Brazil ", "object": "Bras\\u00edlia"}, {"subject": "Italy", "object": "Rome"}],
    "properties": {"relation_type": "factual", "symmetric": False},
}  # fmt: skip


def written(folder, **changed):
    path = folder / "relation.json"
    path.write_text(json.dumps({**WHOLE, **changed}))
    return path


def test_a_relation_has_its_facts_and_templates(tmp_path):
    relation = locate.load_relation(written(tmp_path))
    brazil, italy = relation.facts
    assert (brazil.text, brazil.target, italy.target) == ("The capital of Brazil is", "Brasília", "Rome")
    assert italy.paraphrases == ("{}'s capital is", "What is the capital of {}? It is")
    assert {fact.relation for fact in relation.facts} == {"capitals"}
    assert relation.properties == WHOLE["properties"]
    other = relation.asked("{}'s capital is")[1]
    assert (other.text, other.paraphrases[0]) == ("Italy's capital is", "The capital of {} is")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samples": []}, "samples is empty"),
        ({"samples": [{"subject": "Italy"}]}, "record 1, object: Field required"),
        ({"samples": [{"subject": "Italy", "object": " "}]}, "record 1, target: is empty"),
        ({"prompt_templates": ["The capital is"]}, "exactly one {}"),
        ({"name": None}, "name: Input should be a valid string"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, changed, said):
    with pytest.raises(DataError, match=f"(?s)relation.json.*{said}"):
        locate.load_relation(written(tmp_path, **changed))


def test_files_that_are_none(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        locate.load_relation(tmp_path / "broken.json")
    with pytest.raises(DataError, match="There is no relation file"):
        locate.load_relation(tmp_path / "absent.json")


def test_facts_of_one_relation_are_asked_for():
    facts = [locate.Fact(prompt="{} is in", subject="Rome", target="Italy", relation=name) for name in ("a", "b")]
    with pytest.raises(FactError, match="of 2 relations: 'a', 'b'"):
        facts_of(facts)
    with pytest.raises(FactError, match="no facts"):
        facts_of([])


def test_the_published_files_can_be_read(shared_data):
    relations = [locate.load_relation(path) for path in sorted((shared_data / "lre").glob("*.json"))]
    assert len(relations) == 47
    for relation in relations:
        assert len(relation.facts) >= 19
        assert not any("\\u" in fact.target or fact.subject != fact.subject.strip() for fact in relation.facts)
