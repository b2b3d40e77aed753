"""Greedy generation against transformers, its natural stop, exact match, and fluency."""

import math
import unicodedata

import pytest
import torch

from edit.evaluation import fluency, generation
from edit.evaluation.fluency import ngram_entropy, sample_texts, split_words
from edit.evaluation.generation import exact_match, generate_greedily
from locate import FactError
from tests import tiny

KINDS = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]
PROMPTS = [
    "The Eiffel Tower is located in the city of",
    "The Colosseum stands in",
    "Paris is in the country of",
    "The Louvre stands in",
]


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def ids(text):
    return tiny.tokenizer()(text)["input_ids"]


def saying(model, *texts):
    """Hooks that make row i of the batch say texts[i], whatever the model thinks, and then the end token."""
    scripts = [[*ids(text), 0] for text in texts]
    step = iter(range(1000))

    def dictate(logits, hook):
        logits, now = logits.clone(), next(step)
        for row, script in enumerate(scripts):
            logits[0, row, script[min(now, len(script) - 1)]] += 1000
        return logits

    return model.hooks(fwd_hooks=[("unembed.hook_out", dictate)])


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_up_to_the_stop(kind):
    plain = tiny.hf_model(kind)
    texts = generate_greedily(tiny.bridge(kind), PROMPTS, max_new_tokens=10)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        tokens = torch.tensor([ids(prompt)])
        made = plain.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=10, pad_token_id=0
        )[0, tokens.shape[1] :]
        whole = tiny.tokenizer().decode(made, skip_special_tokens=True)
        assert text
        assert whole.startswith(text)
        rest = whole[len(text) :]
        assert not rest or "\n" in rest.split(text.strip())[0] or (text[-1] in ".!?" and rest[0].isspace())


def test_a_batch_says_what_each_prompt_says_alone(model):
    lengths = [len(ids(prompt)) for prompt in PROMPTS]
    assert 1 < len(set(lengths)) < len(PROMPTS)
    together = generate_greedily(model, PROMPTS)
    assert together == [generate_greedily(model, [prompt])[0] for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_large_batches_are_split(model, monkeypatch):
    whole, sizes = generate_greedily(model, PROMPTS * 3), []
    monkeypatch.setattr(generation, "WRITING_BUDGET", 2 * (max(len(ids(p)) for p in PROMPTS) + 16))
    real = generation._decode
    monkeypatch.setattr(
        generation, "_decode", lambda m, tokens, most: sizes.append(len(tokens)) or real(m, tokens, most)
    )
    assert generate_greedily(model, PROMPTS * 3) == whole
    assert max(sizes) == 2
    assert sum(sizes) == 12


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" Rome. The city", " Rome."),
        (" Rome! The city", " Rome!"),
        ("北京。上海是", "北京。"),
        (" Rome? No", " Rome?"),
        (" Rome.\nThe city", " Rome."),
        (" Rome\nThe city", " Rome"),
        (" Rome  \n\nThe city", " Rome"),
        ("\n\nRome\nThe city", "\n\nRome"),
        (" Rome, in Italy", " Rome, in Italy"),
        (" Rome.", " Rome."),
        (" about 3.5 hours. Or", " about 3.5 hours."),
        (" St. Petersburg. The city", " St. Petersburg."),
        (" J. R. R. Tolkien. He", " J. R. R. Tolkien."),
        (" the U.S. state. It", " the U.S. state."),
        (". The city", "."),
        ("", ""),
    ],
)
def test_stops_by_itself(model, said, kept):
    with saying(model, said):
        assert generate_greedily(model, PROMPTS[:1], max_new_tokens=60) == [kept]


def test_stops_only_when_every_row_has_and_cuts_each(model):
    pair = [PROMPTS[0], PROMPTS[0]]
    with saying(model, " Rome. It is old.", " a rather long time away from here"):
        assert generate_greedily(model, pair, max_new_tokens=60) == [
            " Rome.",
            " a rather long time away from here",
        ]


def test_says_no_more_than_it_may_and_no_more_than_it_needs(model):
    passes = []
    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: passes.append(1))]):
        with saying(model, " a rather long time away from here"):
            (text,) = generate_greedily(model, PROMPTS[:1], max_new_tokens=3)
        assert ids(" a rather long time away from here")[:3] == ids(text)
        assert len(passes) == 3
        with saying(model, " Rome\nThe city of"):
            generate_greedily(model, PROMPTS[:1], max_new_tokens=30)
        assert len(passes) == 3 + len(ids(" Rome\n"))


@pytest.mark.parametrize(
    ("generation", "answer", "matches"),
    [
        (" Rome", "Rome", True),
        (" Rome, in Italy", "Rome", True),
        (" Rome. The city", "Rome", True),
        (" Rome (Italy)", "Rome", True),
        (" Rome – the capital", "Rome", True),
        (" Rome - the capital", "Rome", True),
        (' "Rome" is it', "Rome", True),
        (" “Rome”", "Rome", True),
        ("北京。", "北京", True),
        ("「北京」、", "北京", True),
        ("北京大学", "北京", False),
        ("Rome", " Rome", True),
        (" Rome\n\nThe city", "Rome", True),
        ("\n\nRome", "Rome", True),
        (" ROME!", "rome", True),
        (" STRASSE", "Straße", True),
        (" Rome Airport", "Rome", False),
        (" Rome  Airport", "Rome", False),
        (" Romeo", "Rome", False),
        (" Rome's", "Rome", False),
        (" Rome’s", "Rome", False),
        (" Rome-based", "Rome", False),
        (" in Rome", "Rome", False),
        (" Paris, not Rome", "Rome", False),
        (" New York", "York", False),
        (" New", "New York", False),
        (" New  York.", "New York", True),
        (" the Netherlands", "Netherlands", True),
        (" Netherlands.", "The Netherlands", True),
        (" an apple", "apple", True),
        (" Theodore", "odore", False),
        (" Antwerp", "twerp", False),
        (" St. Petersburg, Russia", "St. Petersburg", True),
        (" Washington, D.C., and", "Washington, D.C.", True),
        (" Cote d’Ivoire.", "Cote d'Ivoire", True),
        (unicodedata.normalize("NFD", " São Paulo"), unicodedata.normalize("NFC", "São Paulo"), True),
        (unicodedata.normalize("NFC", " São Paulo"), unicodedata.normalize("NFD", "São Paulo"), True),
        (" Sao Paulo", "São Paulo", False),
        (" 1889.", "1889", True),
        (" 1889, in Paris", "1889", True),
        (" 1,000", "1", False),
        (" 3.14", "3", False),
        (" C++ (2011)", "C++", True),
        (" C", "C++", False),
        (" anything", ".*", False),
        ("", "Rome", False),
        ("", "", False),
        (", Rome", " ", False),
    ],
)
def test_exact_match(generation, answer, matches):
    assert exact_match(generation, [answer]) is matches


def test_any_alias_matches_and_none_does_not():
    assert exact_match(" the Eternal City", ["Rome", "Eternal City"])
    assert not exact_match(" Rome", [])


@torch.no_grad()
def literal_sample(plain, prompt, seed, length, top):
    """One token at a time over the whole text, drawn by its place among the cumulated shares."""
    draws = torch.rand(length, generator=torch.Generator().manual_seed(seed)).tolist()
    tokens = ids(prompt)
    for draw in draws[: length - len(tokens)]:
        best = plain(torch.tensor([tokens])).logits[0, -1].topk(top)
        cumulated = best.values.softmax(-1).cumsum(-1).tolist()
        chosen = next((i for i, share in enumerate(cumulated) if share >= draw), top - 1)
        tokens.append(int(best.indices[chosen]))
    return tiny.tokenizer().decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_samples_as_a_literal_loop_does_whatever_stands_in_the_batch(kind, monkeypatch):
    monkeypatch.setattr(fluency, "WRITING_BUDGET", 2 * 30)
    plain, prompts = tiny.hf_model(kind, scale=2.0), [*PROMPTS, PROMPTS[0]]
    texts = sample_texts(tiny.bridge(kind, scale=2.0), prompts, [0, 1, 2, 3, 4], tokens=30)
    assert texts == [literal_sample(plain, prompt, seed, 30, 5) for seed, prompt in enumerate(prompts)]
    assert texts[0] != texts[4]


def test_a_text_counts_its_prompt(model):
    length = len(ids(PROMPTS[0]))
    assert sample_texts(model, PROMPTS[:1], [0], tokens=length) == PROMPTS[:1]
    assert sample_texts(model, PROMPTS[:1], [0], tokens=1) == PROMPTS[:1]


def test_ngram_entropy_is_the_published_one():
    # Pairs: ab, bc, ca twice each and once ad; triples: abc, bca twice each and cab, cad once.
    words = "a b c a b c a d"
    pairs = -(3 * 2 / 7 * math.log2(2 / 7) + 1 / 7 * math.log2(1 / 7))
    triples = -(2 * 2 / 6 * math.log2(2 / 6) + 2 / 6 * math.log2(1 / 6))
    assert ngram_entropy(words) == pytest.approx((2 / 3 * pairs + 4 / 3 * triples) / 2)
    # A hundred different words: 99 pairs and 98 triples, each once.
    varied = " ".join(f"w{i}" for i in range(100))
    assert ngram_entropy(varied) == pytest.approx((2 / 3 * math.log2(99) + 4 / 3 * math.log2(98)) / 2)
    assert ngram_entropy("no no no no no") == 0
    assert ngram_entropy("") == ngram_entropy("one") == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It doesn't, does it?", ["It", "does", "n't", ",", "does", "it", "?"]),
        ("The city's well-known: 1,000 people.", ["The", "city", "'s", "well-known", ":", "1,000", "people", "."]),
        ("The city’s big.", ["The", "city", "’", "s", "big", "."]),  # a quotation mark of its own, as published
        ("It is in Rome. It is big.", ["It", "is", "in", "Rome", ".", "It", "is", "big", "."]),
        ('He said "yes".', ["He", "said", "``", "yes", "''", "."]),
        ("Wait... “São Paulo”", ["Wait", "...", "“", "São", "Paulo", "”"]),
    ],
)
def test_words_and_marks_are_counted_apart(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_generation_ends_where_the_context_is_full(kind):
    model = tiny.bridge(kind)
    prompt = "Of" + " Paris" * (126 - len(ids("Of")))
    with saying(model, " Rome" * 40):
        assert generate_greedily(model, [prompt], max_new_tokens=20) == [" Rome" * 3]
    with pytest.raises(FactError, match="but the model has room for 128"):
        generate_greedily(model, [prompt + " Paris" * 3])
