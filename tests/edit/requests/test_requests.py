"""What may be asked for."""

import dataclasses
import json
import unicodedata
from dataclasses import asdict

import jaxtyping
import pytest
from pydantic import TypeAdapter

import edit
import locate
from edit.requests.conflicts import find_conflicts
from edit.requests.requests import Unrelated
from locate.facts.facts import as_tuple

FACT = locate.Fact(
    prompt="{} is in", subject="The Louvre", target="Paris", target_new="Rome", paraphrases=("Where is {}? In",)
)


def test_the_facts_own_counterfactual_is_the_default():
    assert edit.EditRequest(FACT).target_new == "Rome"
    assert edit.EditRequest(FACT, target_new="Oslo").describe() == "The Louvre is in: Paris → Oslo"


@pytest.mark.parametrize(
    ("target_new", "message"),
    [
        ("Paris", "is the present answer"),
        ("Rome ", "has space after it"),
        (" Paris", "is the present answer"),
        ("  ", "has no new target"),
    ],
)
def test_unusable_targets_are_refused(target_new, message):
    with pytest.raises(locate.FactError, match=message):
        edit.EditRequest(FACT, target_new=target_new)


def test_a_fact_without_counterfactual_needs_a_target():
    with pytest.raises(locate.FactError, match="has no new target"):
        edit.EditRequest(locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris"))


def test_paraphrases_are_templates_and_texts():
    request = edit.EditRequest(FACT, paraphrase_texts=("The museum is in",))
    assert request.paraphrases == ("Where is The Louvre? In", "The museum is in")


def test_one_text_in_place_of_several_is_refused():
    with pytest.raises(locate.FactError, match=r"aliases: takes several texts; give one as \['Roma'\]"):
        as_tuple("aliases", "Roma")
    # Where the types are checked as well, they say so first.
    for make in (
        lambda: edit.EditRequest(FACT, aliases="Roma"),
        lambda: locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris", neighbours="Big Ben is in"),
        lambda: Unrelated(prompt="The tower is in", target="Paris", aliases="Paname"),
    ):
        errors = (locate.FactError, jaxtyping.TypeCheckError)
        with pytest.raises(errors, match=r"takes several texts|tuple\[str, \.\.\.\]"):
            make()


def test_a_change_is_what_the_edit_depends_on():
    request = edit.EditRequest(FACT)
    same = edit.EditRequest(FACT, "Rome", aliases=("Roma",), paraphrase_texts=("The museum is in",))
    assert request.change() == same.change()
    assert request.change(paraphrases=True) == same.change(paraphrases=True)
    other = edit.EditRequest(dataclasses.replace(FACT, paraphrases=("{} lies in",)))
    assert request.change() == other.change()
    assert request.change(paraphrases=True) != other.change(paraphrases=True)
    assert request.change() != edit.EditRequest(FACT, "Oslo").change()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aliases": ("Roma", " ")}, "aliases: is empty"),
        ({"aliases_before": ("Paname ",)}, "aliases_before: 'Paname ' has space after it"),
        ({"paraphrase_texts": ("",)}, "paraphrase_texts: a prompt is empty"),
        ({"generation_prompts": (" ",)}, "generation_prompts: a prompt is empty"),
        ({"attribute_prompts": ("",)}, "attribute_prompts: a prompt is empty"),
    ],
)
def test_empty_texts_are_refused(fields, message):
    with pytest.raises(locate.FactError, match=message):
        edit.EditRequest(FACT, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " "}, "prompt: a prompt is empty"),
        ({"target": ""}, "target: is empty"),
        ({"target": "Homer "}, "target: 'Homer ' has space after it"),
        ({"aliases": ("",)}, "aliases: is empty"),
    ],
)
def test_unusable_unrelated_prompts_are_refused(fields, message):
    with pytest.raises(locate.FactError, match=message):
        Unrelated(**{"prompt": "Who wrote the Iliad?", "target": "Homer", **fields})


def test_hashes_by_content_and_returns_from_plain_data():
    def make():
        return edit.EditRequest(
            FACT, "Oslo", aliases=("Christiania",), aliases_before=("Lutetia",), paraphrase_texts=("The museum is in",),
            unrelated=(Unrelated(prompt="Who wrote the Iliad?", target="Homer", aliases=("Homeros",)),),
            generation_prompts=("The Louvre is",), attribute_prompts=("Munch lived in",),
        )  # fmt: skip

    assert len({make(), make(), edit.EditRequest(FACT, "Oslo")}) == 2
    plain = json.loads(json.dumps(asdict(make())))
    assert TypeAdapter(edit.EditRequest).validate_python(plain) == make()


def test_accents_in_another_encoding_are_no_change_and_a_conflict():
    one, other = (unicodedata.normalize(form, "Kraków") for form in ("NFC", "NFD"))
    facts = [locate.Fact(prompt="{} is in", subject=name, target="Poland", target_new="Peru") for name in (one, other)]
    assert find_conflicts([edit.EditRequest(fact) for fact in facts])
    with pytest.raises(locate.FactError, match="is the present answer"):
        edit.EditRequest(locate.Fact(prompt="It is {}", subject="here", target=one), other)
