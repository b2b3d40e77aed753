"""The tasks that ship: tokens line up on any tokenizer, or it is said why not."""

import re
from collections import Counter
from dataclasses import replace
from itertools import chain, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import locate
from locate import FactError, LocateError
from locate.contrast.sides import GreaterNumbers
from locate.facts.prompts import encode_fact, encode_target, rank_of
from locate.tasks.collecting import of_one_length
from locate.tasks.words import MEN, WOMEN
from tests import tiny

TASKS = ("ioi", "greater_than", "gender_pronoun", "subject_verb_agreement", "factual_recall")


def made(name, model, n=6, seed=0, **options):
    options = {"known": False, **options} if name == "factual_recall" else options
    return getattr(locate.tasks, name)(model, n=n, seed=seed, **options)


@pytest.fixture(scope="module")
def bytewise():
    """A model whose tokenizer knows hardly a word."""
    return tiny.bridge("llama")


@pytest.fixture(scope="module")
def small(stand_in):
    """A small model with tokens of the default one."""
    return locate.load_model(str(stand_in))


def check(model, pairs):
    for clean, corrupt in pairs:
        one, other = encode_fact(model, clean), encode_fact(model, corrupt)
        assert (one.subject_span, len(one.tokens)) == (other.subject_span, len(other.tokens))
        differ = (one.tokens != other.tokens).nonzero()[:, 0].tolist()
        assert set() < set(differ) <= set(range(*one.subject_span))
        assert (clean.prompt, clean.target_new, corrupt.target_new) == (corrupt.prompt, corrupt.target, clean.target)
        assert encode_target(model, one, clean.target)[0] != encode_target(model, one, corrupt.target)[0]
    texts = [(clean.text, corrupt.text) for clean, corrupt in pairs]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=5)
@given(seed=st.integers(0, 99), n=st.integers(1, 9))
def test_tokens_line_up_and_seeds_decide(small, name, seed, n):
    pairs = made(name, small, n, seed)
    assert (len(pairs), pairs.name) == (n, name)
    check(small, pairs)
    assert made(name, small, n, seed) == pairs
    groups = pairs.by_length(small)
    assert sorted(chain(*(group.indices for group in groups))) == list(range(n))
    assert made(name, small, 9, seed) != made(name, small, 9, seed + 1)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "gender_pronoun"])
def test_words_of_several_tokens_do_as_well(bytewise, name):
    check(bytewise, made(name, bytewise))


def test_what_a_tokenizer_cannot_be_asked_is_refused_with_the_reason(bytewise, small):
    """He and she begin with a space of its own there."""
    with pytest.raises(
        FactError, match=r"(?s)found 0 of the 6 pairs.*names are \d tokens.*that begin with the same token"
    ):
        made("gender_pronoun", bytewise)
    with pytest.raises(LocateError, match="ioi: n must be 1 or more, found 0"):
        locate.tasks.ioi(small, 0)


def test_names_stand_in_both_orders_and_one_of_them_twice(small):
    pairs = locate.tasks.ioi(small, 20)
    _, (names,) = of_one_length(small, [*WOMEN, *MEN])
    orders = Counter()
    for clean, corrupt in pairs:
        assert {clean.subject, clean.target} <= set(names)
        assert (clean.subject, clean.target) == (corrupt.target, corrupt.subject)
        first, second = re.findall("|".join(rf"\b{one}\b" for one in names), clean.prompt)
        assert {first, second} == {clean.subject, clean.target}
        orders[first == clean.subject] += 1
    assert orders == {True: 10, False: 10}
    assert len({clean.prompt.replace(clean.subject, "").replace(clean.target, "")[:12] for clean, _ in pairs}) >= 8


def test_the_largest_group_of_words_is_taken(bytewise):
    counts = [
        len(bytewise.tokenizer(f"The {name}")["input_ids"]) - len(bytewise.tokenizer("The")["input_ids"])
        for name in WOMEN
    ]
    tokens, (women,) = of_one_length(bytewise, WOMEN)
    most = max(sorted(set(counts)), key=counts.count)
    assert (tokens, women) == (f"{most} tokens", [name for name, own in zip(WOMEN, counts, strict=True) if own == most])


@pytest.mark.parametrize(
    ("name", "one"), [("gender_pronoun", {"she"}), ("subject_verb_agreement", {"is", "was", "has"})]
)
def test_both_answers_are_clean_ones_equally_often(small, name, one):
    assert sum(fact.target in one for fact in made(name, small, 12).clean) == 6


def numbered(pattern, numbers):
    """A tokenizer that has these numbers as tokens, and cuts digits by the pattern."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        numbers * 9, trainers.BpeTrainer(vocab_size=2000, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|end|>")


CENTURIES = [f" {century}" for century in range(10, 20)]
LAST_TWO = [f"{last:02d}" for last in range(100)]


@pytest.mark.parametrize(
    ("pattern", "numbers", "said", "begins"),
    [
        pytest.param(r" ?\p{L}+| \d\d|\d\d", CENTURIES + LAST_TWO, 2, 100, id="two digits"),
        pytest.param(r" ?\p{L}+|\d{1,3}", [f"{one}" for one in range(100, 200)] + LAST_TWO, 0, 10, id="three digits"),
        pytest.param(r" ?\p{L}+|\d", [], 2, 10, id="one digit"),
        pytest.param(r" ?\p{L}+| \d{4}", [f" {one}" for one in range(1100, 1900)], 0, 100, id="years"),
    ],
)
def test_years_are_asked_as_the_tokenizer_writes_them(pattern, numbers, said, begins):
    model = locate.load_model(tiny.hf_model("gpt2"), numbered(pattern, numbers))
    pairs = locate.tasks.greater_than(model, 8)
    check(model, pairs)
    for clean, corrupt in pairs:
        century, start = clean.subject[:2], int(clean.subject[2:])
        assert re.search(r"\d*$", clean.prompt)[0] == century[:said]
        answer, low = (int((clean.prompt[-2:] + one)[-2:]) for one in (clean.target, corrupt.target))
        assert low <= start < answer
        greater, others = GreaterNumbers().sides(model, encode_fact(model, clean))
        # Literally: which of the years that have a token are above the start, and which tokens are of both.
        prompt = model.tokenizer(clean.text)["input_ids"]
        years = [
            f"{clean.text}{f' {century}{last:02d}'[said + 1 :] if said else f'{century}{last:02d}'}"
            for last in range(100)
        ]
        if not said and not clean.text.endswith(" "):
            years = [f"{clean.text} {century}{last:02d}" for last in range(100)]
        first = [model.tokenizer(year)["input_ids"][len(prompt)] for year in years]
        assert len(set(first)) == begins
        above, below = set(first[start + 1 :]), set(first[: start + 1])
        assert (set(greater), set(others)) == (above - below, below - above)


def test_a_tokenizer_that_tells_no_years_apart_is_refused():
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "The": 1, "war": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<unk>", pad_token="<unk>")
    model = locate.load_model(tiny.hf_model("gpt2"), words)
    with pytest.raises(FactError, match="0 of 8 centuries in which this tokenizer tells years apart"):
        locate.tasks.greater_than(model, 2)


def lands(n, prompt="{} is in", answers="ABCDEFGH", **fields):
    return [
        locate.Fact(prompt=prompt, subject=f"Town{one}", target=f"{answer} land", joined=True, **fields)
        for one, answer in zip("ABCDEFGH"[:n], answers, strict=False)
    ]


def test_facts_are_asked_in_the_words_of_the_clean_one(bytewise):
    given = [*lands(2, relation="country"), *lands(4, "Where is {}? In", relation="country")[2:]]
    pairs = locate.tasks.factual_recall(bytewise, 12, facts=given, known=False)
    check(bytewise, pairs)
    assert {(clean.subject, corrupt.subject) for clean, corrupt in pairs} == set(
        permutations([fact.subject for fact in given], 2)
    )
    own = {fact.subject: fact.prompt for fact in given}
    assert all(clean.prompt == own[clean.subject] for clean in pairs.clean)


def test_facts_without_a_relation_are_paired_by_their_prompt(bytewise):
    given = [*lands(2), *lands(4, "Where is {}? In")[2:]]
    pairs = locate.tasks.factual_recall(bytewise, 4, facts=given, known=False)
    found = {(clean.subject[-1], corrupt.subject[-1]) for clean, corrupt in pairs}
    assert found == {("A", "B"), ("B", "A"), ("C", "D"), ("D", "C")}


def test_too_few_facts_are_refused_with_what_is_wrong_with_the_others(bytewise):
    longer = locate.Fact(prompt="{} is in", subject="Another Town", target="Q land", joined=True)
    given = [*lands(3, answers="ABB"), longer]
    with pytest.raises(FactError) as caught:
        locate.tasks.factual_recall(bytewise, 9, facts=given, known=False)
    message = str(caught.value)
    assert "found 4 of the 9 pairs asked for. Of 4 facts 1 have no other of their relation" in message
    assert "2 have one answer ('Town" in message
    assert message.endswith("Ask for n=4.")
    assert len(locate.tasks.factual_recall(bytewise, 4, facts=given, known=False)) == 4
    alike = lands(2, answers=["A big", "A new"])
    with pytest.raises(FactError, match=r"(?s)2 have answers that begin with the same token.*Give more facts"):
        locate.tasks.factual_recall(bytewise, 1, facts=alike, known=False)


def rank(model, fact):
    """Literally."""
    prompt = encode_fact(model, fact)
    return rank_of(model(prompt.tokens[None])[0, -1], int(encode_target(model, prompt, fact.target)[0]))


def test_only_facts_that_the_model_knows(small):
    """Of half of the facts the answer is what the model says."""
    given = []
    for index, fact in enumerate(locate.bundled_facts()[:60]):
        said = int(small(encode_fact(small, fact).tokens[None])[0, -1].argmax())
        text = small.tokenizer.decode([said])
        answer = text if index % 2 and text.strip() and text == text.rstrip() else f" {fact.target}"
        given.append(replace(fact, target=answer, target_new=None, joined=True))
    knows = [fact for fact in given if rank(small, fact) == 1]
    assert 10 < len(knows) < 40
    pairs = locate.tasks.factual_recall(small, 5, facts=given)
    assert {rank(small, fact) for pair in pairs for fact in pair} == {1}
    unknown = [fact for fact in given if fact not in knows]
    with pytest.raises(FactError, match=r"(?s)have an answer that the model does not rank first.*or known=False"):
        locate.tasks.factual_recall(small, 5, facts=unknown)


@pytest.mark.real_model
@pytest.mark.parametrize("name", [
    name if name in ("ioi", "greater_than") else pytest.param(name, marks=pytest.mark.slow("two tasks stand for all"))
    for name in TASKS
])  # fmt: skip
def test_the_default_model_tells_clean_from_corrupted(smollm, name):
    pairs = getattr(locate.tasks, name)(smollm, n=12)
    check(smollm, pairs)
    ends = []
    for _, group in pairs.by_length(smollm):
        contrast = locate.Contrast.of(smollm, group.clean, group.corrupt, metric=group.metric or ())
        ends.append(torch.stack(contrast.ends(group.metric)))
    corrupt, clean = torch.cat(ends, dim=1)[..., 0].mean(1).tolist()
    assert corrupt < 0 < clean
