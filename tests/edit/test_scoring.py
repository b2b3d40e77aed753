"""Scores of targets against one plain transformers pass per pair."""

import pytest
import torch

from edit.evaluation import scoring
from edit.evaluation.scoring import next_token_logprobs, score_targets
from locate import FactError
from tests import tiny

KINDS = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]
PAIRS = [
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("The Colosseum stands in", "Rome in Italy"),
    ("To visit the Eiffel Tower, you need a flight to", "London"),
    ("Big Ben is in", "the continent of Europe"),
    ("Of", "Paris"),
    ("He said: (", "Zürich"),
]


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def ids(text):
    return tiny.tokenizer()(text)["input_ids"]


@torch.no_grad()
def literal(model, prompt, target):
    """Mean and first log-probability and rank, from one whole pass over one unpadded text."""
    space = "" if prompt.endswith("(") else " "
    start, tokens = len(ids(prompt)), ids(prompt + space + target)
    logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    own = [float(logprobs[i - 1, tokens[i]]) for i in range(start, len(tokens))]
    ranked = logprobs[start - 1].argsort(descending=True).tolist()
    return sum(own) / len(own), own[0], ranked.index(tokens[start]) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_equals_one_plain_pass_per_pair(kind):
    plain = tiny.hf_model(kind)
    scores = score_targets(tiny.bridge(kind), PAIRS)
    for score, (prompt, target) in zip(scores, PAIRS, strict=True):
        mean, first, rank = literal(plain, prompt, target)
        assert (score.mean_logprob, score.first_logprob) == pytest.approx((mean, first), abs=2e-5)
        assert score.rank == rank


@pytest.mark.parametrize("kind", KINDS)
def test_next_tokens_equal_a_plain_pass_each(kind):
    plain = tiny.hf_model(kind)
    prompts = [prompt for prompt, _ in PAIRS]
    with torch.no_grad():
        expected = [plain(torch.tensor([ids(prompt)])).logits[0, -1].log_softmax(-1) for prompt in prompts]
    torch.testing.assert_close(next_token_logprobs(tiny.bridge(kind), prompts), torch.stack(expected))


def test_batches_change_nothing(model, monkeypatch):
    together = score_targets(model, PAIRS)
    batches = []
    real = scoring._logprobs

    def count(model, rows, places):
        batches.append(len(rows))
        return real(model, rows, places)

    monkeypatch.setattr(scoring, "_logprobs", count)
    monkeypatch.setattr(scoring, "_BUDGET", 30)
    apart = score_targets(model, PAIRS)
    assert len(batches) > 1
    assert sum(batches) == len(PAIRS)
    for one, other in zip(together, apart, strict=True):
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-5)
        assert one.rank == other.rank


def test_no_batch_is_larger_than_the_budget(monkeypatch):
    monkeypatch.setattr(scoring, "_BUDGET", 30)
    lengths = [7, 40, 3, 12, 10, 5]
    groups = scoring._batches(lengths)
    assert sorted(index for group in groups for index in group) == list(range(6))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 30 for group in groups)


def test_refuses_targets_that_cannot_follow(model):
    with pytest.raises(FactError, match="The target is empty"):
        score_targets(model, [("The Colosseum stands in", " ")])
