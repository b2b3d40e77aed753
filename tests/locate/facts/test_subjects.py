"""Subjects in prompts that are written out: as Unicode means them, as whole words, with the right tokens."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import locate
from locate.facts.subjects import AbsentSubject, find_subject, same_text
from tests import tiny

NFC, NFD = (unicodedata.normalize(form, "Kraków") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("text", "subject", "found"),
    [
        ("Iranian oil comes from Iran in", "Iran", "Iran in"),
        ("Iran's neighbour", "Iran", "Iran's neighbour"),
        ("The Iran-Iraq war", "Iraq", "Iraq war"),
        ("Iran and Iranians", "Iran", "Iran and Iranians"),
        ("(Rome)", "Rome", "Rome)"),
        ("中国的首都是", "中国", "中国的首都是"),
        ("新中国的首都是", "中国", "中国的首都是"),
        ("เมืองหลวงของฝรั่งเศสคือ", "ฝรั่งเศส", "ฝรั่งเศสคือ"),
        ("프랑스의 수도는", "프랑스", "프랑스의 수도는"),
        ("عاصمة وفرنسا هي", "فرنسا", "فرنسا هي"),
        ("В Москве стоит", "Москве", "Москве стоит"),
        (f"Near {NFD} is", NFC, f"{NFD} is"),
        (f"Near {NFC} is", NFD, f"{NFC} is"),
        ("ba\u0323\u0307 is", "ba\u0307\u0323", "ba\u0323\u0307 is"),  # marks in another order
        (unicodedata.normalize("NFD", "한국의 수도"), "한국", unicodedata.normalize("NFD", "한국의 수도")),
    ],
)
def test_the_last_whole_word_is_found_however_it_is_encoded(text, subject, found):
    start, end = find_subject(text, subject)
    assert text[start:] == found
    assert same_text(text[start:end], subject)


@pytest.mark.parametrize(
    ("text", "subject", "inside"),
    [
        ("Iranian oil is", "Iran", "Iranian"),
        ("Teheran is", "eran", "Teheran"),
        ("It is 1985 in", "98", "1985"),
        ("Cafe\u0301 de Flore", "Cafe", None),
        ("Café de Flore", "Cafe", None),
        ("The Louvre is", "", None),
        ("한국어는", "한구", None),
    ],
)
def test_a_part_of_a_word_or_of_a_character_is_no_subject(text, subject, inside):
    with pytest.raises(AbsentSubject, match="as a word of its own, only in" if inside else "does not occur") as caught:
        find_subject(text, subject)
    assert inside is None or repr(inside) in str(caught.value)


WORDS = st.lists(
    st.text(st.characters(categories=("Lu", "Ll"), max_codepoint=0x17F), min_size=1, max_size=6), max_size=4
)


@settings(max_examples=40)
@given(before=WORDS, subject=WORDS.filter(bool), after=WORDS, forms=st.tuples(*[st.sampled_from(["NFC", "NFD"])] * 2))
def test_a_subject_is_found_in_any_normal_form(before, subject, after, forms):
    text, name = " ".join([*before, *subject, *after]), " ".join(subject)
    text, name = (unicodedata.normalize(form, one) for form, one in zip(forms, (text, name), strict=True))
    start, end = find_subject(text, name)
    assert same_text(text[start:end], name)
    fact = locate.Fact.from_text(text, subject=name, target="x")
    assert fact.text == text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_span_is_of_the_texts_own_tokens(form):
    text = unicodedata.normalize(form, "The city of Kraków lies in")
    fact = locate.Fact.from_text(text, subject=NFC, target="Poland")
    model = tiny.bridge("llama")
    prompt = locate.encode_fact(model, fact)
    assert prompt.tokens.tolist() == tiny.tokenizer()(text)["input_ids"]
    own = model.tokenizer.decode(prompt.tokens[slice(*prompt.subject_span)])
    assert own.strip() == unicodedata.normalize(form, NFC)


def test_the_same_in_another_encoding_is_no_change_and_no_other_subject():
    with pytest.raises(locate.FactError, match="target_new: equals the target"):
        locate.Fact(prompt="{} is", subject="It", target=NFC, target_new=NFD)
    fact = locate.Fact(prompt="{} is in", subject=NFC, target="Poland")
    model = tiny.bridge("llama")
    prompt = locate.encode_fact(model, fact)
    with pytest.raises(locate.FactError, match="is the prompt's own subject"):
        locate.TokenSwap(NFD).corrupt(model, fact, prompt)
