"""Which facts are traced together."""

from functools import cache

from locate import Fact, FactError
from locate.facts.prompts import encode_fact
from locate.tracing import batches
from locate.tracing.batches import group_facts, group_prompts
from tests import tiny


@cache
def model():
    return tiny.bridge("llama")


def facts():
    texts = ("{} is in", "In the city of {}", "The {} is located in the city of", "{} is in", "Of {} the city is")
    return [Fact(prompt=text, subject="Big Ben", target="London") for text in texts]


def test_groups_are_of_one_length_and_neighbours_begin_alike():
    prompts = [encode_fact(model(), fact) for fact in facts()]
    groups = group_prompts(prompts, samples=1)
    assert sorted(index for group in groups for index in group) == list(range(5))
    assert [0, 3] in groups
    for group in groups:
        assert len({len(prompts[index].tokens) for index in group}) == 1
        spans = [prompts[index].subject_span for index in group]
        assert spans == sorted(spans)
    lengths = [len(prompts[group[0]].tokens) for group in groups]
    assert len(set(lengths)) == len(lengths)


def test_samples_bound_a_group():
    prompts = [encode_fact(model(), facts()[0])] * 5
    assert group_prompts(prompts, samples=8) == [[0, 1], [2, 3], [4]]
    assert group_prompts(prompts, samples=99) == [[0], [1], [2], [3], [4]]


def test_a_fact_without_a_prompt_stands_by_itself(monkeypatch):
    own, bad = facts(), Fact(prompt="{} is in", subject="The Louvre", target="Paris")
    expected = group_prompts([encode_fact(model(), fact) for fact in own], samples=1)
    assert group_facts(model(), own, samples=1) == expected

    def refusing(bridge, fact):
        if fact is bad:
            raise FactError("no token")
        return encode_fact(bridge, fact)

    monkeypatch.setattr(batches, "encode_fact", refusing)
    groups = group_facts(model(), [bad, *own, bad], samples=1)
    assert groups == [[index + 1 for index in group] for group in expected] + [[0], [6]]
