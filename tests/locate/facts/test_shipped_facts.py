"""The facts that ship with the project."""

import random
from collections import Counter

import pytest
import torch

from locate import bundled_facts, encode_fact
from locate.facts.prompts import encode_target, rank_of
from locate.model.bundled import DEFAULT_MODEL


@pytest.fixture(scope="module")
def facts():
    return bundled_facts()


def test_there_are_enough_of_them(facts):
    assert len(facts) >= 200
    assert len({fact.relation for fact in facts}) >= 12
    assert sum(bool(fact.consequences) for fact in facts) >= 60


def test_every_fact_can_be_edited_and_evaluated(facts):
    needed = ("id", "relation", "target_new", "paraphrases", "neighbours")
    assert [(fact.id, name) for fact in facts for name in needed if not getattr(fact, name)] == []


def test_ids_and_statements_are_unique(facts):
    assert [i for i, count in Counter(fact.id for fact in facts).items() if count > 1] == []
    assert [text for text, count in Counter(fact.text for fact in facts).items() if count > 1] == []


def test_every_fact_has_its_rank(facts):
    assert [fact.id for fact in facts if fact.ranks.get(DEFAULT_MODEL, 0) < 1] == []


def test_relation_and_model_select(facts):
    relation = facts[0].relation
    assert bundled_facts(relation) == [fact for fact in facts if fact.relation == relation]
    known = bundled_facts(known_to=DEFAULT_MODEL)
    assert known == [fact for fact in facts if fact.ranks[DEFAULT_MODEL] == 1]
    assert known[0].subject == "The Eiffel Tower"


@pytest.mark.real_model
def test_the_ranks_are_the_models(facts, smollm):
    found = {}
    chosen = random.Random(0).sample(facts, 20)
    for fact in chosen:
        prompt = encode_fact(smollm, fact)
        with torch.no_grad():
            logits = smollm(prompt.tokens[None])[0, -1]
        found[fact.id] = rank_of(logits, int(encode_target(smollm, prompt.text, fact.target)[0]))
    assert found == {fact.id: fact.ranks[DEFAULT_MODEL] for fact in chosen}
