"""Pairs of one's own: made, grouped, saved."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import locate
from locate import DataError, FactError
from locate.facts.prompts import encode_fact
from locate.tasks import PairedPrompts
from tests import tiny

ASK = "The capital of {} is"
FRANCE, ITALY = (
    locate.Fact(prompt=ASK, subject=subject, target=target, id=subject)
    for subject, target in (("France", "Paris"), ("Italy", "Rome"))
)
LONGER = [replace(fact, prompt="The capital of the country of {} is") for fact in (FRANCE, ITALY)]


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


@pytest.fixture
def pairs():
    return PairedPrompts.of([LONGER[0], FRANCE, ITALY], [LONGER[1], ITALY, FRANCE], name="capitals")


def test_pairs_are_a_sequence(pairs):
    assert (len(pairs), pairs[1], pairs[-1]) == (3, (FRANCE, ITALY), (ITALY, FRANCE))
    assert [clean for clean, _ in pairs] == [*pairs.clean]
    assert pairs[1:] == PairedPrompts.of([FRANCE, ITALY], [ITALY, FRANCE], name="capitals")
    assert list(pairs.to_dataframe().iloc[1]) == [FRANCE.text, "Paris", ITALY.text, "Rome"]
    assert "The capital of France is" in pairs._repr_html_()


def test_groups_are_of_one_length_and_say_where_they_stood(model, pairs):
    short, long = pairs.by_length(model)
    assert (short.indices, long.indices) == ((1, 2), (0,))
    assert (short.pairs, long.pairs) == (pairs[1:], pairs[:1])
    found = locate.patch(model, short.pairs.clean, short.pairs.corrupt, layers=[1], progress=False)
    assert found.metric == "logit_diff"


def test_what_both_answers_begin_with_counts_to_the_length(model):
    alike = [replace(fact, target=f"in {fact.target}") for fact in (FRANCE, ITALY)]
    pairs = PairedPrompts.of([FRANCE, alike[0]], [ITALY, alike[1]])
    assert [group.indices for group in pairs.by_length(model)] == [(0,), (1,)]
    assert [group.indices for group in replace(pairs, metric="probability").by_length(model)] != [(0, 1)]


def test_pairs_that_do_not_line_up_are_refused_by_their_index(model):
    other = replace(ITALY, subject="the whole of Italy")
    with pytest.raises(FactError, match="capitals, pair 1: Clean and corrupt prompt need the same number of tokens"):
        PairedPrompts.of([FRANCE, FRANCE], [ITALY, other], name="capitals").by_length(model)
    with pytest.raises(FactError, match="pairs, pair 0: The clean and the corrupted prompt are the same"):
        PairedPrompts.of([FRANCE], [FRANCE]).by_length(model)
    with pytest.raises(FactError, match="found 2 clean prompts, 1 corrupted ones"):
        PairedPrompts.of([FRANCE, FRANCE], [ITALY])
    with pytest.raises(FactError, match="at least one, found 0 and 0"):
        PairedPrompts.of([], [])
    with pytest.raises(FactError, match="clean: takes several texts"):
        PairedPrompts.of(FRANCE.text, ITALY.text)


words = st.lists(st.sampled_from(["the", "old", "city", "of", "Rome"]), max_size=4)
others = st.lists(st.sampled_from(["Paris", "London"]), min_size=1, max_size=2)


@given(words, others, others, words)
def test_of_two_texts_the_words_that_differ_are_the_subject(before, one, other, after):
    if one == other:
        return
    clean, corrupt = (" ".join([*before, *middle, *after]) for middle in (one, other))
    try:
        pairs = PairedPrompts.of([clean], [corrupt], answers=[("x", "y")])
    except FactError:  # one is the other with words added
        assert len(one) != len(other)
        return
    (first, second) = pairs[0]
    assert (first.text, second.text, first.prompt) == (clean, corrupt, second.prompt)
    assert first.subject.split()[0] != second.subject.split()[0]
    assert (first.target, first.target_new, second.target, second.target_new) == ("x", "y", "y", "x")


def test_texts_need_answers_and_words_that_differ():
    with pytest.raises(FactError, match="'a b' says no answer"):
        PairedPrompts.of(["a b"], ["a c"])
    with pytest.raises(FactError, match="are the same: 'a b'"):
        PairedPrompts.of(["a b"], ["a b"], answers=[("x", "y")])
    with pytest.raises(FactError, match="must have other words in place of some of 'a b'"):
        PairedPrompts.of(["a b"], ["a new b"], answers=[("x", "y")])
    with pytest.raises(FactError, match="found one of each kind"):
        PairedPrompts.of([FRANCE], ["a b"])


def test_pairs_come_back_as_they_were_saved(pairs, tmp_path):
    pairs = replace(pairs, metric="prob_greater")
    assert PairedPrompts.load(pairs.save(tmp_path / "new" / "pairs.json")) == pairs
    with pytest.raises(DataError, match="only the name of a metric can be saved, found LogitDifference"):
        replace(pairs, metric=locate.logit_diff()).save(tmp_path / "pairs.json")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pairs": []}, r"record 1, pairs: .*at least 1 item"),
        ({"kind": "patches"}, "holds 'patches' of format 1, not 'paired prompts' of 1"),
        ({"extra": 1}, "record 1, extra"),
        ({"pairs": [{"clean": {}, "corrupt": {}}]}, r"record 1, clean\.prompt: Field required"),
        ({"pairs": [{"clean": {"prompt": "x", "subject": "y", "target": "z"}}]}, "1, clean: prompt: needs exactly"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_pair_and_field(pairs, tmp_path, change, problem):
    path = pairs.save(tmp_path / "pairs.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=problem):
        PairedPrompts.load(path)


def test_encoded_pairs_differ_in_their_subjects_alone(model, pairs):
    for clean, corrupt in pairs:
        one, other = encode_fact(model, clean), encode_fact(model, corrupt)
        assert one.subject_span == other.subject_span
