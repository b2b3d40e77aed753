"""Scores of targets against one plain transformers pass per pair."""

import pytest
import torch

from edit.evaluation import scoring
from edit.evaluation.scoring import agreement, score_targets
from locate import FactError, NumericsError
from locate.engine.readout import read_logits
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
    """Mean and first log-probability, rank, tokens and first choices, from one whole pass over one unpadded text."""
    space = "" if prompt.endswith("(") else " "
    start, tokens = len(ids(prompt)), ids(prompt + space + target)
    logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    own = [float(logprobs[i - 1, tokens[i]]) for i in range(start, len(tokens))]
    ranked = logprobs[start - 1].argsort(descending=True).tolist()
    chosen = tuple(int(logprobs[i - 1].argmax()) for i in range(start, len(tokens)))
    return sum(own) / len(own), own[0], ranked.index(tokens[start]) + 1, tuple(tokens[start:]), chosen


@pytest.mark.parametrize("kind", KINDS)
def test_equals_one_plain_pass_per_pair(kind):
    plain = tiny.hf_model(kind)
    scores = score_targets(tiny.bridge(kind), PAIRS)
    for score, (prompt, target) in zip(scores, PAIRS, strict=True):
        mean, first, rank, tokens, chosen = literal(plain, prompt, target)
        assert (score.mean_logprob, score.first_logprob) == pytest.approx((mean, first), abs=2e-5)
        assert (score.rank, score.tokens, score.predicted) == (rank, tokens, chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pass_shows_the_next_token_of_each_prompt_once(kind, monkeypatch):
    monkeypatch.setattr(scoring, "WHOLE_BUDGET", 30)
    plain, bridge, seen = tiny.hf_model(kind), tiny.bridge(kind), {}

    def see(prompts, logprobs, residuals):
        assert not seen.keys() & set(prompts)
        seen.update(zip(prompts, zip(logprobs, residuals, strict=True), strict=True))

    pairs = [*PAIRS, *[(prompt, "the capital") for prompt, _ in PAIRS], PAIRS[0]]
    score_targets(bridge, pairs, see=see)
    assert set(seen) == {prompt for prompt, _ in PAIRS}
    for prompt, (logprobs, residual) in seen.items():
        with torch.no_grad():
            expected = plain(torch.tensor([ids(prompt)])).logits[0, -1].log_softmax(-1)
            again = read_logits(bridge, residual[None])[0].log_softmax(-1)
        torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(again, expected, atol=2e-5, rtol=1e-5)


def count_rows(monkeypatch):
    batches = []
    real = scoring._read

    def count(model, rows, places):
        batches.append([len(row) for row in rows])
        assert len(set(places)) == len(places)
        return real(model, rows, places)

    monkeypatch.setattr(scoring, "_read", count)
    return batches


def test_batches_change_nothing(model, monkeypatch):
    together = score_targets(model, PAIRS)
    batches = count_rows(monkeypatch)
    monkeypatch.setattr(scoring, "WHOLE_BUDGET", 30)
    apart = score_targets(model, PAIRS)
    assert len(batches) > 1
    assert sum(len(batch) for batch in batches) == len(PAIRS)
    for one, other in zip(together, apart, strict=True):
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-5)
        assert (one.rank, one.predicted) == (other.rank, other.predicted)


def test_what_begins_another_run_is_not_run_itself(model, monkeypatch):
    prompt = "The Colosseum stands in"
    # The shortest first and apart from what it begins: their order must not matter.
    long = [(prompt, "Paris"), ("Big Ben is", "in"), (f"{prompt} Rome", "in"), (prompt, "Rome in Italy")]
    long += [("Of", "Paris"), (prompt, "Rome in France")]
    alone = [score_targets(model, [pair])[0] for pair in long]
    batches = count_rows(monkeypatch)
    together = score_targets(model, long)
    starts = {tuple(ids(f"{p} {t}")[:-1]) for p, t in long}
    needed = [row for row in starts if not any(other[: len(row)] == row and other != row for other in starts)]
    assert sum(len(batch) for batch in batches) == len(needed) < len(starts)
    for one, other in zip(alone, together, strict=True):
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-5)
        assert (one.rank, one.tokens, one.predicted) == (other.rank, other.tokens, other.predicted)


def test_agreement_is_the_share_of_equal_places():
    assert agreement((1, 2, 3), (1, 3, 3)) == pytest.approx(2 / 3)
    assert agreement((1,), (2,)) == 0


def test_refuses_targets_that_cannot_follow(model):
    with pytest.raises(FactError, match="The target is empty"):
        score_targets(model, [("The Colosseum stands in", " ")])


def test_ties_have_one_first_and_nan_is_an_error(model):
    def level(logits, hook):
        return torch.zeros_like(logits)

    with model.hooks(fwd_hooks=[("unembed.hook_out", level)]):
        scores = score_targets(model, PAIRS[:4])
    assert [score.rank for score in scores] == [score.tokens[0] + 1 for score in scores]
    with (
        model.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: logits * float("nan"))]),
        pytest.raises(NumericsError, match=r"predictions after 'The Eiffel Tower .*' are not finite"),
    ):
        score_targets(model, PAIRS[:1])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prompt_that_does_not_fit_the_context_is_refused(kind):
    model = tiny.bridge(kind)
    room = len(ids("Of")) + 128
    text = "Of" + " Paris" * 128
    assert len(ids(text)) == room
    with pytest.raises(
        FactError, match=rf"The text 'Of Paris .* …' has {room} tokens, but the model has room for 128\. Shorten"
    ):
        score_targets(model, [(text, "Paris")])
    # The last token of a target is not run.
    fits = "Of" + " Paris" * (128 - len(ids("Of")))
    assert score_targets(model, [(fits, "Paris")])[0].tokens
