"""Corruptions: what stands in the subject's place."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import locate
from locate import Fact, FactError, LocateError, TokenSwap
from locate.contrast.corruption import run_corrupted
from locate.contrast.noise import reference_embeddings, subject_embeddings
from tests import tiny

FACT = Fact(prompt="I think that {} is in", subject="Big Ben", target="London", relation="in")
REFERENCE = (
    Fact(prompt="{} is in", subject="The Louvre", target="Paris", relation="in"),
    Fact(prompt="{} is in", subject="The Colosseum", target="Rome", relation="in"),
)


@cache
def model():
    return tiny.bridge("llama", scale=20.0)


def corrupted(corruption, fact=FACT):
    prompt = locate.encode_fact(model(), fact)
    return prompt, corruption.corrupt(model(), fact, prompt)


def rows(subject, prompt="{} is in"):
    tokenizer = tiny.tokenizer()
    fact = Fact(prompt=prompt, subject=subject, target="x")
    span = locate.encode_fact(model(), fact)
    ids = span.tokens[slice(*span.subject_span)]
    assert tokenizer.decode(ids).strip() == subject
    return tiny.hf_model("llama", scale=20.0).get_input_embeddings().weight[ids].detach()


def test_gaussian_noise_is_added_to_the_subjects_own_embeddings():
    prompt, found = corrupted(locate.GaussianNoise(samples=3, seed=5, scale=2.0))
    own = rows("Big Ben", FACT.prompt)
    draws = np.random.RandomState(5).randn(3, *own.shape) * 2.0 * float(own.std())
    torch.testing.assert_close(found.embeddings, own + torch.tensor(draws, dtype=torch.float32))
    assert found.tokens.tolist() == [prompt.tokens.tolist()] * 3


def test_noise_can_be_absolute_or_uniform():
    own = rows("Big Ben", FACT.prompt)
    absolute = locate.GaussianNoise(samples=1, scale=0.1, std=1.0)
    expected = np.random.RandomState(1).randn(1, *own.shape) * 0.1
    torch.testing.assert_close(absolute.noise(own), torch.tensor(expected, dtype=torch.float32))
    even = locate.UniformNoise(samples=200, scale=3.0).noise(own)
    limit = 3.0 * float(own.std())
    assert float(even.abs().max()) <= limit
    assert float(even.std()) == pytest.approx(limit / 3**0.5, rel=0.02)


def test_multivariate_noise_has_the_covariance_of_the_reference():
    known = torch.cat([rows("The Louvre"), rows("The Colosseum")])
    _, found = corrupted(locate.MultivariateNoise(reference=REFERENCE, samples=4000))
    assert found.embeddings is not None
    noise = (found.embeddings - rows("Big Ben", FACT.prompt)).flatten(0, 1)
    expected = torch.cov(known.T)
    assert float((torch.cov(noise.T) - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert float(noise.mean(0).abs().max()) < 0.1 * float(known.std())


def test_zero_mean_and_resampled_embeddings():
    known = torch.cat([rows("The Louvre"), rows("The Colosseum")])
    torch.testing.assert_close(reference_embeddings(model(), REFERENCE), known)
    prompt, zero = corrupted(locate.ZeroEmbedding())
    span = prompt.subject_span[1] - prompt.subject_span[0]
    assert zero.embeddings.shape == (1, span, 32)
    assert not zero.embeddings.any()
    _, mean = corrupted(locate.MeanEmbedding(reference=REFERENCE))
    torch.testing.assert_close(mean.embeddings, known.mean(0).expand(1, span, -1))
    _, drawn = corrupted(locate.ResampledEmbedding(reference=REFERENCE, samples=6))
    assert drawn.embeddings.shape == (6, span, 32)
    places = (drawn.embeddings[:, :, None] - known).abs().sum(-1).argmin(-1)
    torch.testing.assert_close(drawn.embeddings, known[places])
    assert len(places.unique()) > 2


def test_a_swap_puts_the_named_subject_in():
    fact = Fact(prompt="I think that {} is in", subject="London", target="x")
    prompt, found = corrupted(TokenSwap("Paris"), fact)
    assert found.embeddings is None
    assert found.tokens.tolist() == [tiny.tokenizer()("I think that Paris is in")["input_ids"]]
    assert len(found.tokens[0]) == len(prompt.tokens)


def test_a_swap_chooses_a_subject_of_the_relation_with_as_many_tokens_and_another_answer():
    fact = Fact(prompt="I think that {} is in", subject="London", target="England", relation="in")
    pool = (
        Fact(prompt="{}", subject="Paris", target="France", relation="other"),
        Fact(prompt="{}", subject="Rome", target="Italy", relation="in"),
        Fact(prompt="{}", subject="Europe", target="England", relation="in"),
        Fact(prompt="{}", subject="The Eiffel Tower", target="France", relation="in"),
    )
    _, found = corrupted(TokenSwap(pool=pool), fact)
    assert found.subjects == ("Rome",)
    _, both = corrupted(TokenSwap(pool=pool, samples=2), fact)
    assert both.subjects == ("Rome", "Paris")
    with pytest.raises(FactError, match=r"needs 3 other subjects of 1 token for 'London'.*found \['Rome', 'Paris'\]"):
        corrupted(TokenSwap(pool=pool, samples=3), fact)


def test_shipped_facts_are_the_pool_by_default():
    fact = Fact(prompt="The country of {} is in", subject="France", target="Europe")
    _, found = corrupted(TokenSwap(), fact)
    assert found.subjects[0] in {one.subject for one in locate.bundled_facts()}
    assert corrupted(TokenSwap(), fact)[1].subjects == found.subjects


def test_swaps_that_do_not_fit_are_refused():
    fact = Fact(prompt="I think that {} is in", subject="London", target="x")
    with pytest.raises(
        FactError, match=r"same number of tokens, found \d+ and \d+\. They differ in \[' London'\] and \["
    ):
        corrupted(TokenSwap("The Eiffel Tower"), fact)
    with pytest.raises(FactError, match="is the prompt's own subject"):
        corrupted(TokenSwap("London"), fact)
    with pytest.raises(LocateError, match="one sample where the subject is given"):
        TokenSwap("Rome", samples=2)
    with pytest.raises(LocateError, match="needs at least one sample"):
        TokenSwap(samples=0)
    with pytest.raises(LocateError, match="reference set needs subjects with at least two tokens"):
        corrupted(locate.MeanEmbedding(reference=()), fact)


def test_rows_of_several_prompts_are_each_corrupted_in_their_own_place():
    other = Fact(prompt="I {} that Big Ben is in", subject="think", target="x")  # the same text
    made = [corrupted(locate.GaussianNoise(samples=2)), corrupted(locate.ZeroEmbedding(), other)]
    tokens, hooks = run_corrupted([one for _, one in made], [prompt for prompt, _ in made])
    assert len(tokens) == 3
    ((name, hook),) = hooks
    assert name == "embed.hook_out"
    plain = model().embed(tokens).detach()
    changed = hook(plain)
    for row, (prompt, _) in zip(range(3), [made[0], made[0], made[1]], strict=True):
        start, end = prompt.subject_span
        assert not torch.equal(changed[row, start:end], plain[row, start:end])
        outside = [i for i in range(tokens.shape[1]) if not start <= i < end]
        assert torch.equal(changed[row, outside], plain[row, outside])


def test_embedding_std_takes_facts_or_prompts():
    known = subject_embeddings(model(), [locate.encode_fact(model(), fact) for fact in REFERENCE])
    assert locate.embedding_std(model(), REFERENCE) == pytest.approx(float(known.std()))
    with pytest.raises(LocateError, match="embedding_std needs at least one prompt or fact"):
        locate.embedding_std(model(), [])


def test_a_subject_that_is_named_again_is_told_of():
    """Only the mention that the fact marks is corrupted; a longer word that begins like it is none."""
    again = Fact(prompt="{} is large. Of all clocks big ben is in", subject="Big Ben", target="London")
    noise = locate.GaussianNoise(samples=1)
    with pytest.warns(UserWarning, match="names 'Big Ben' more than once"):
        locate.Contrast.of(model(), again, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        locate.Contrast.of(model(), replace(again, prompt="{} is large. The Big Benefit is in"), noise)
