"""Whole answers, and answers that begin alike: against literal passes over the prompt with its answer."""

import dataclasses

import pytest
import torch

import locate
from locate.contrast.sequences import SequenceProbability
from locate.errors import LocateError
from locate.facts.answers import encode_question, first_difference, tell_apart
from tests import tiny

TITANIC = locate.Fact(prompt="{} sank in the year", subject="The Titanic", target="1912")
CITIES = locate.Fact(
    prompt="{} is near the city of", subject="The Louvre", target="Paris too", target_new="Paris, France"
)
SWAP = locate.TokenSwap("The Colosseum")
KINDS = ["gpt2", "llama", "gemma3_text", "olmo2"]


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


def ids(text):
    return tiny.tokenizer()(text)["input_ids"]


def logprob(model, before, answer, hooks=()):
    """Of all tokens of an answer, by one whole pass."""
    tokens = torch.tensor([[*before, *answer]])
    with torch.no_grad():
        scores = model.run_with_hooks(tokens, fwd_hooks=list(hooks))[0].log_softmax(-1)
    return float(sum(scores[len(before) - 1 + place, token] for place, token in enumerate(answer)))


def swapped(fact, subject="The Colosseum"):
    return dataclasses.replace(fact, subject=subject)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_of_a_whole_answer_is_that_of_literal_passes(kind):
    """Restoring one state, with the answer's tokens behind the prompt in both runs."""
    model = tiny.bridge(kind)
    fact = locate.Fact(prompt="{} stands in the city of", subject="The Louvre", target="Paris too, in France")
    trace = locate.causal_trace(
        model, fact, kinds=["resid", "mlp"], window=1, corruption=SWAP, progress=False,
        metric=["sequence_log_probability", "sequence_probability", "probability"],
    )  # fmt: skip
    clean, corrupt, answer = ids(fact.text), ids(swapped(fact).text), ids(" Paris too, in France")
    assert len(clean) == len(corrupt)
    assert len(answer) > 2
    assert trace.clean == pytest.approx(logprob(model, clean, answer), abs=2e-3)
    assert trace.corrupted == pytest.approx(logprob(model, corrupt, answer), abs=2e-3)
    _, kept = model.run_with_cache(torch.tensor([[*clean, *answer]]))
    names = {"resid": "blocks.{}.hook_out", "mlp": "blocks.{}.hook_mlp_out"}
    for kind_, position, layer in [("resid", 1, 0), ("resid", 2, 2), ("mlp", 2, 1), ("resid", len(clean) - 1, 3)]:
        name = names[kind_].format(layer)

        def restore(value, hook, position=position, name=name):
            value = value.clone()
            value[:, position] = kept[name][:, position]
            return value

        expected = logprob(model, corrupt, answer, [(name, restore)])
        found = trace.scores.sel(kind=kind_, position=position, layer=layer)
        assert float(found) == pytest.approx(expected, abs=2e-3)
        of_all = trace.of("sequence_probability").scores.sel(kind=kind_, position=position, layer=layer)
        assert float(of_all) == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-2)
    # What else is asked beside it is as by itself.
    alone = locate.causal_trace(model, fact, kinds=["resid", "mlp"], window=1, corruption=SWAP, progress=False)
    torch.testing.assert_close(
        torch.tensor(trace.of("probability").scores.values), torch.tensor(alone.scores.values), rtol=1e-3, atol=1e-6
    )
    assert trace.info["answer_tokens"] == [tiny.tokenizer().decode([one]) for one in answer]


def test_answers_that_begin_alike_have_traces_of_their_own(llama):
    def traced(target, metric):
        fact = dataclasses.replace(TITANIC, target=target)
        return locate.causal_trace(llama, fact, kinds=["resid"], metric=metric, progress=False)

    assert ids(" 1912")[0] == ids(" 1985")[0]  # a space, and for some a digit as well
    one, other = (traced(target, "sequence_probability") for target in ("1912", "1985"))
    assert abs(one.clean / other.clean - 1) > 0.1
    with pytest.warns(UserWarning, match="white space alone, .*metric='sequence_probability'"):
        traced("1912", "probability")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fact_with_two_answers_is_read_where_they_part(kind):
    model = tiny.bridge(kind)
    shared = ids(" Paris")
    assert ids(" Paris too")[:1] == ids(" Paris, France")[:1] == shared
    clean, corrupt = [*ids(CITIES.text), *shared], [*ids(swapped(CITIES).text), *shared]
    trace = locate.causal_trace(model, CITIES, kinds=["resid"], corruption=SWAP, progress=False)
    answer = ids(" too")[:1]
    assert trace.clean == pytest.approx(torch.tensor(logprob(model, clean, answer)).exp().item(), rel=1e-3)
    assert trace.corrupted == pytest.approx(torch.tensor(logprob(model, corrupt, answer)).exp().item(), rel=1e-3)
    assert trace.tokens[-1] == " Paris"
    assert trace.answer == " too"
    patches = locate.patch(model, CITIES, SWAP, sites="resid_pre", progress=False)
    assert patches.metric == "logit_diff"
    logits = model(torch.tensor([clean]))[0, -1].detach()
    assert patches.clean == pytest.approx(float(logits[answer[0]] - logits[ids(" Paris, France")[1]]), abs=1e-3)
    assert patches.info["answer_tokens"] == [" Paris", " too"]
    knocked = locate.attention_knockout(model, CITIES, source="subject", target="last", window=1, progress=False)
    assert knocked.clean == pytest.approx(trace.clean, rel=1e-3)


def test_a_whole_answer_beside_two_that_begin_alike(llama):
    """Patches at the shared tokens cannot reach what is read before them."""
    trace = locate.causal_trace(
        llama, CITIES, kinds=["resid"], corruption=SWAP, metric=["sequence_log_probability", "probability"],
        progress=False,
    )  # fmt: skip
    clean, corrupt, answer = ids(CITIES.text), ids(swapped(CITIES).text), ids(" Paris too")
    assert trace.clean == pytest.approx(logprob(llama, clean, answer), abs=1e-3)
    alone = locate.causal_trace(llama, CITIES, kinds=["resid"], corruption=SWAP, progress=False)
    assert (abs(trace.of("probability").scores - alone.scores) < 1e-5).all()
    _, kept = llama.run_with_cache(torch.tensor([[*clean, *answer]]))
    for position, layer in [(2, 1), (len(clean), 2)]:  # the second at " Paris" itself
        name = f"blocks.{layer}.hook_out"

        def restore(value, hook, position=position, name=name):
            value = value.clone()
            value[:, position] = kept[name][:, position]
            return value

        expected = logprob(llama, corrupt, answer, [(name, restore)])
        assert float(trace.scores.sel(kind="resid", position=position, layer=layer)) == pytest.approx(
            expected, abs=1e-3
        )


def test_facts_whose_answers_are_of_unequal_length_are_traced_together(llama):
    facts = [
        locate.Fact(prompt="{} stands in the city of", subject="The Louvre", target="Paris too, in France"),
        locate.Fact(prompt="{} stands in the city of", subject="The Colosseum", target="Rome"),
        CITIES,
    ]
    how = {"kinds": ["resid"], "metric": "sequence_probability", "progress": False}
    for fact, together in zip(facts, locate.causal_trace(llama, facts, **how), strict=True):
        alone = locate.causal_trace(llama, fact, **how)
        assert (abs(together.scores - alone.scores) < 1e-6).all()
        assert together.clean == pytest.approx(alone.clean, rel=1e-4)


@pytest.mark.parametrize("sites", ["resid_pre", "attn_head_z", "mlp_neurons"])
def test_patches_of_a_whole_answer_are_those_of_literal_passes(llama, sites):
    fact = locate.Fact(prompt="{} stands in the city of", subject="The Louvre", target="Paris too")
    metric = locate.sequence_log_probability("Rome, Italy")
    patches = locate.patch(llama, fact, SWAP, sites=sites, metric=metric, layers=[1], progress=False)
    clean, corrupt, answer = ids(fact.text), ids(swapped(fact).text), ids(" Rome, Italy")
    assert patches.clean == pytest.approx(logprob(llama, clean, answer), abs=1e-3)
    assert patches.info["metrics"] == {"sequence_log_probability": "log p(all of Rome, Italy) [nat]"}
    _, kept = llama.run_with_cache(torch.tensor([[*clean, *answer]]))
    name = {"resid_pre": "hook_in", "attn_head_z": "attn.o.hook_in", "mlp_neurons": "mlp.out.hook_in"}[sites]
    full = f"blocks.1.{name}"
    length = len(clean) + len(answer) - 1
    # Heads and neurons at all positions, those of the answer included.
    place = (slice(None), 2) if sites == "resid_pre" else (slice(None), slice(None, length), 1)
    unit = {"resid_pre": {"position": 2}, "attn_head_z": {"head": 1}, "mlp_neurons": {"neuron": 1}}[sites]

    def restore(value, hook):
        value = value.clone()
        value[place] = kept[full][place]
        return value

    expected = logprob(llama, corrupt, answer, [(full, restore)])
    assert float(patches.values.sel(layer=1, **unit)) == pytest.approx(expected, abs=1e-3)
    if sites == "mlp_neurons":  # an estimate is of the whole answer as well
        screened = locate.patch(llama, fact, SWAP, sites=sites, metric=metric, layers=[1], screen=5, progress=False)
        assert int(screened.data["confirmed"].sum()) == 5
        best = screened.top(1).iloc[0]
        assert best["value"] == pytest.approx(float(patches.values.sel(layer=1, neuron=best["neuron"])), abs=1e-3)


def test_an_answer_may_be_what_the_model_says_itself(llama):
    text, other = "The Louvre stands in the city of", "The Colosseum stands in the city of"
    metric = locate.sequence_log_probability(generated=3)
    patches = locate.patch(llama, text, other, metric=metric, layers=[0], progress=False)
    said = ids(text)
    for _ in range(3):
        said.append(int(llama(torch.tensor([said]))[0, -1].argmax()))
    answer = said[len(ids(text)) :]
    assert patches.clean == pytest.approx(logprob(llama, ids(text), answer), abs=1e-3)
    assert patches.corrupted == pytest.approx(logprob(llama, ids(other), answer), abs=1e-3)
    assert patches.info["answer_tokens"] == [tiny.tokenizer().decode([one]) for one in answer]


def test_answers_that_are_named_part_where_they_differ(llama):
    metric = locate.logit_diff("Paris too", "Paris, France")
    patches = locate.patch(
        llama, "The Louvre stands in", "The Colosseum stands in", metric=metric, layers=[0], progress=False
    )
    logits = llama(torch.tensor([ids("The Louvre stands in Paris")]))[0, -1].detach()
    assert patches.clean == pytest.approx(float(logits[ids(" too")[0]] - logits[ids(",")[0]]), abs=1e-3)


def test_blocked_attention_is_measured_on_a_whole_answer(llama):
    fact = locate.Fact(prompt="{} stands in the city of", subject="The Louvre", target="Paris too")
    metrics = ["sequence_log_probability", "probability"]
    knocked = locate.attention_knockout(llama, fact, source="subject", window=1, metric=metrics, progress=False)
    assert knocked.clean == pytest.approx(logprob(llama, ids(fact.text), ids(" Paris too")), abs=1e-3)
    alone = locate.attention_knockout(llama, fact, source="subject", window=1, progress=False)
    assert (abs(knocked.of("probability").values - alone.values) < 1e-5).all()
    paths = locate.path_patch(
        llama, fact, SWAP, receivers=["logits"], metric="sequence_log_probability", progress=False
    )
    assert paths.clean == pytest.approx(knocked.clean, abs=1e-3)


def test_small_budgets_read_whole_answers_alike(llama):
    how = {"kinds": ["resid"], "corruption": SWAP, "metric": "sequence_probability", "progress": False}
    fact = dataclasses.replace(CITIES, target_new=None)
    one, other = (locate.causal_trace(llama, fact, budget=budget, **how) for budget in (40, 4000))
    assert (abs(one.scores - other.scores) < 1e-6).all()


def test_what_cannot_be_asked_is_explained(llama):
    with pytest.raises(LocateError, match="has no known answer, of which a probability could be taken"):
        locate.patch(llama, "The Louvre is in", "The Louvre is of", metric="sequence_probability", progress=False)
    contrast = locate.Contrast.of(llama, CITIES, SWAP)
    with pytest.raises(LocateError, match=r"Give the metric to what makes the runs: Contrast.of\(…, metric=…\)"):
        contrast.ends("sequence_probability")
    asked = locate.Contrast.of(llama, CITIES, SWAP, metric="sequence_probability")
    assert asked.ends("sequence_probability").source.shape == (1, 1)
    two = [locate.sequence_probability("Rome"), locate.sequence_log_probability("Paris")]
    with pytest.raises(LocateError, match="are of two answers, and a prompt has one behind it"):
        locate.causal_trace(llama, dataclasses.replace(CITIES, target_new=None), metric=two, progress=False)
    with pytest.raises(LocateError, match="either given or generated"):
        SequenceProbability("Rome", 2)
    with pytest.raises(LocateError, match="generated: needs at least one token"):
        locate.sequence_probability(generated=0)
    with pytest.raises(locate.FactError, match="begin with ' Paris', and 'Rome' does not go on from there"):
        locate.causal_trace(llama, CITIES, metric=locate.probability("Rome"), progress=False)


def test_two_answers_are_told_apart_at_their_first_difference(llama):
    assert first_difference(ids(" Paris too"), ids(" Paris, France")) == 1
    apart = tell_apart(llama, CITIES.text, "Paris too", "Paris, France")
    assert (apart.shared.tolist(), [apart.one, apart.other]) == (ids(" Paris"), [ids(" too")[0], ids(",")[0]])
    with pytest.raises(locate.FactError, match="one begins with all of the other"):
        tell_apart(llama, CITIES.text, "Paris", "Paris too")
    assert encode_question(llama, CITIES).forced.tolist() == ids(" Paris")
