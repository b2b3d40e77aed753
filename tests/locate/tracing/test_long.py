"""Traces of long prompts: what all rows begin with is run once, and what cannot change not at all."""

import warnings

import numpy as np
import pytest

import locate
from benchmarks import literal
from locate.facts.prompts import encode_target
from tests import tiny
from tests.counting import counted

SAMPLES, LAYERS = 3, 4
NOISE = locate.GaussianNoise(samples=SAMPLES)
FACT = locate.Fact(
    prompt="The Louvre is located in the city of Paris too. " * 3 + "I think that {} is in", subject="Big Ben",
    target="London",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    made = tiny.bridge("llama", scale=20.0)
    trace(made)  # what is found out about a model once
    return made


def trace(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate.causal_trace(
            model, FACT, **{"kinds": ["resid"], "corruption": NOISE, "progress": False, **options}
        )


def runs(model):
    """How many tokens the clean and the corrupted run take: the beginning once."""
    prompt = locate.encode_fact(model, FACT)
    length, first = len(prompt.tokens), prompt.subject_span[0]
    assert first > 3 * (length - first)
    return length, first, length + SAMPLES * (length - first)


def test_what_all_rows_begin_with_is_run_once(model):
    length, first, both = runs(model)
    positions = [first, length - 2]
    found, counts = counted(model, lambda: trace(model, positions=positions))
    # By then the rows of as many layers have entered.
    resumed = [layer * SAMPLES * sum(length - position for position in positions) for layer in range(LAYERS)]
    assert counts == [both + own for own in resumed]
    sites = [(position, layer) for position in positions for layer in range(LAYERS)]
    expected = literal.causal_trace(model, FACT, "resid", corruption=NOISE, sites=sites)[positions].numpy()
    np.testing.assert_allclose(found.scores.sel(kind="resid"), expected, rtol=1e-4)
    assert expected.std() > 1e-2 * expected.mean()


def test_positions_before_the_corruption_cost_nothing(model):
    _, first, both = runs(model)
    kinds = ["resid", "mlp", "attn", "attn_head"]
    found, counts = counted(model, lambda: trace(model, kinds=kinds, positions=[0, first // 2, first - 1]))
    assert counts == [both] * LAYERS
    assert np.ptp(found.scores.values) == np.ptp(found.head_scores.values) == 0
    patched, counts = counted(
        model,
        lambda: locate.patch(model, FACT, NOISE, sites="resid_post", positions=[0, first - 1], progress=False),
    )
    assert counts == [both] * LAYERS
    assert np.ptp(patched.values.values) == 0


def test_whole_answers_and_swaps_share_their_beginning_too(model):
    length, first, _ = runs(model)
    swap = locate.TokenSwap("Pa Ben")
    for corruption, rows in ((NOISE, SAMPLES), (swap, 1)):
        metric = locate.sequence_probability("London and Paris")
        behind = len(encode_target(model, locate.encode_fact(model, FACT), "London and Paris")) - 1
        _, counts = counted(model, lambda c=corruption, m=metric: trace(model, corruption=c, metric=m, positions=[0]))
        assert counts == [length + behind + rows * (length + behind - first)] * LAYERS
