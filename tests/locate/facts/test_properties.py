"""What holds of any text: subjects by character offsets, targets with their space."""

from functools import cache

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from locate import Fact
from locate.facts.joining import continuation, needs_space
from locate.facts.prompts import encode_fact, encode_target
from tests import tiny

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)
WORD = st.text(st.characters(categories=("Lu", "Ll", "Nd"), max_codepoint=0x24F), min_size=1, max_size=12)
EASTERN = st.text(st.sampled_from("中国的首都是北京東のカナ、。「」"), min_size=1, max_size=6)
PROMPT = st.lists(st.one_of(TEXT, WORD, EASTERN, st.just("She read “Emma” for $")), max_size=4).map(" ".join)
quickly = settings(max_examples=40)


@cache
def model():
    return tiny.bridge("llama")


@quickly
@given(before=st.one_of(st.just(""), TEXT), subject=TEXT, after=TEXT)
def test_a_subjects_tokens_are_those_that_hold_its_characters(before, subject, after):
    assume("{" not in before + subject + after and "}" not in before + subject + after)
    start = f"{before} " if before else ""
    fact = Fact(prompt=f"{start}{{}} {after}", subject=subject, target="Paris")
    prompt = encode_fact(model(), fact)
    encoded = tiny.tokenizer()(fact.text, return_offsets_mapping=True)
    assert prompt.tokens.tolist() == encoded["input_ids"]
    low, high = len(start), len(start) + len(subject)
    holding = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < high and b > low]
    assert prompt.subject_span == (holding[0], holding[-1] + 1)


@quickly
@given(target=WORD)
def test_a_target_has_one_space_before_it_however_it_is_given(target):
    ids = encode_target(model(), "The tower is in", target)
    assert tiny.tokenizer().decode(ids) == f" {target}"
    assert encode_target(model(), "The tower is in", f" {target}").tolist() == ids.tolist()


@quickly
@given(prompt=PROMPT, target=st.one_of(TEXT, WORD, EASTERN))
def test_an_answer_is_taken_as_it_is_with_at_most_one_space(prompt, target):
    assume(target.strip())
    found = continuation(prompt, target)
    assert found in (target.strip(), f" {target.strip()}")
    assert continuation(prompt, target, joined=True) == target.rstrip()
    if prompt and not prompt[-1].isspace():
        assert continuation(prompt, f" {target.strip()}") == f" {target.strip()}"


@quickly
@given(prompt=st.lists(WORD, min_size=1).map(" ".join), target=WORD)
def test_words_have_a_space_between_them(prompt, target):
    assert continuation(prompt, target) == f" {target}"


@quickly
@given(before=TEXT, prompt=EASTERN, target=st.one_of(WORD, EASTERN))
def test_nothing_has_a_space_after_a_script_without_spaces(before, prompt, target):
    assert not needs_space(f"{before} {prompt}", target)


@quickly
@given(
    before=st.lists(WORD).map(" ".join), inside=WORD, after=WORD, marks=st.sampled_from(["“”", "«»", "()", "[]", "„“"])
)
def test_an_opening_mark_joins_and_its_closing_one_parts(before, inside, after, marks):
    assert not needs_space(f"{before} {marks[0]}", inside)
    assert needs_space(f"{before} {marks[0]}{inside}{marks[1]}", after)
    assert not needs_space(f"{before} {marks[0]}{inside}", marks[1])
