"""What holds of any text: subjects by character offsets, targets with their space."""

from functools import cache

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from locate import Fact
from locate.facts.prompts import encode_fact, encode_target
from tests import tiny

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)
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
@given(target=TEXT)
def test_a_target_has_one_space_before_it_however_it_is_given(target):
    ids = encode_target(model(), "The tower is in", target)
    assert tiny.tokenizer().decode(ids) == f" {target}"
    assert encode_target(model(), "The tower is in", f" {target}").tolist() == ids.tolist()
