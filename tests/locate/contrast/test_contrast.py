"""Two runs, which rows belong together, and what is asked: against loops of whole passes."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch

import locate
from locate import Contrast, Fact, FactError, SiteError
from locate.contrast.rows import Rows
from locate.contrast.sweep import kept_hooks, sweep, sweep_heads
from locate.engine import freeze
from locate.facts.prompts import Prompt
from locate.facts.questions import Questions
from locate.model.held import exchange
from tests import tiny

TEXT = "I think that Big Ben is in the city of"
FACT = Fact(prompt="I think that {} is in", subject="London", target="Paris", target_new="Rome")
NOISE = locate.GaussianNoise(samples=3)
HOOKS = {"resid": "hook_out", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}
HEADS = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
# The second row of the target takes states of two rows of the source.
ROWS = Rows(target=torch.tensor([0, 1, 1]), source=torch.tensor([2, 0, 1]), question=torch.tensor([0, 1, 1]))


@cache
def model(kind):
    return tiny.bridge(kind, scale=20.0)


def texts(n, seed):
    """Token rows that differ from one another from the third token on."""
    ids = torch.tensor(tiny.tokenizer()(TEXT)["input_ids"]).repeat(n, 1)
    ids[:, 2:] = torch.randint(1, 400, ids[:, 2:].shape, generator=torch.Generator().manual_seed(seed))
    return ids


def questions(kind, tokens):
    prompts = tuple(Prompt(text=TEXT, tokens=row, subject_span=(0, 0)) for row in tokens)
    answers = torch.tensor([7, 9])[: len(tokens)]
    with torch.no_grad():
        clean = model(kind)(tokens)[:, -1]
    return Questions(
        model=model(kind), prompts=prompts, answers=answers, targets_new=(None,) * len(tokens), clean=clean
    )


def by_hand(kind):
    target, source = texts(2, 0), texts(3, 1)
    keep = [*kept_hooks(model(kind), ["mlp", "attn"]), *HEADS]
    return Contrast(
        target=freeze(model(kind), target), source=freeze(model(kind), source, keep=keep), rows=ROWS,
        questions=questions(kind, target), first=2,
    )  # fmt: skip


@cache
def states(kind):
    with torch.no_grad():
        return model(kind).run_with_cache(texts(3, 1))[1]


def literal(kind, names, change):
    """The log-probability of each row's answer in one whole pass with the source's states put into the target."""
    given = states(kind)

    def hook(value, hook):
        value = value.clone()
        change(value, given[hook.name][ROWS.source])
        return value

    with torch.no_grad(), model(kind).hooks(fwd_hooks=[(name, hook) for name in names]):
        logits = model(kind)(texts(2, 0)[ROWS.target])[:, -1]
    return logits.log_softmax(-1)[range(3), torch.tensor([7, 9])[ROWS.question]]


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_a_sweep_over_two_runs_equals_literal_loops(kind):
    contrast = by_hand(kind)
    positions, length = [2, 5, 8], contrast.target.tokens.shape[1]
    assert length > 9
    found = sweep(
        contrast, ["resid", "mlp", "attn"], contrast.measure("log_probability"), positions=positions, window=2
    )
    assert found.shape == (3, 3, 4, 3, 1)
    start = contrast.ends("log_probability").target
    for k, one in enumerate(HOOKS):
        for p, position in enumerate(positions):
            for layer in range(4):
                layers = [layer] if one == "resid" else range(max(0, layer - 1), layer + 1)
                names = [f"blocks.{own}.{HOOKS[one]}" for own in layers]

                def put(value, other, position=position):
                    value[:, position] = other[:, position]

                expected = literal(kind, names, put)
                np.testing.assert_allclose(found[k, p, layer, :, 0], expected, atol=2e-4)
    assert float((found - start).abs().max()) > 0.1  # or there would be nothing to get wrong


def test_a_sweep_of_heads_equals_literal_loops():
    contrast = by_hand("llama")
    found = sweep_heads(contrast, contrast.measure("log_probability"), positions=[3, 7])
    assert found.shape == (2, 4, 4, 3, 1)
    for p, position in enumerate([3, 7]):
        for layer, head in [(0, 1), (2, 3), (3, 0)]:

            def put(value, other, position=position, head=head):
                value[:, position, head] = other[:, position, head]

            expected = literal("llama", [HEADS[layer]], put)
            np.testing.assert_allclose(found[p, layer, head, :, 0], expected, atol=2e-4)


def test_the_ends_are_the_runs_own_answers():
    contrast = by_hand("llama")
    with torch.no_grad():
        target, source = (model("llama")(ids)[:, -1].softmax(-1) for ids in (texts(2, 0), texts(3, 1)))
    ends = contrast.ends(["probability", "rank"])
    assert ends.target.shape == ends.source.shape == (3, 2)
    torch.testing.assert_close(ends.target[:, 0], torch.stack([target[0, 7], target[1, 9], target[1, 9]]))
    torch.testing.assert_close(ends.source[:, 0], torch.stack([source[2, 7], source[0, 9], source[1, 9]]))
    back = contrast.reversed()
    assert (back.target, back.source) == (contrast.source, contrast.target)
    torch.testing.assert_close(back.ends("probability").target, ends.source[:, :1])
    assert back.first == contrast.first
    few = contrast.only(torch.tensor([True, False, True]))
    torch.testing.assert_close(few.ends("rank").source, ends.source[[0, 2], 1:])
    # Measured are rows of the target, by the question that each asks.
    measured = contrast.measure("probability")(contrast.target.logits[[1, 0]], torch.tensor([1, 0]))
    torch.testing.assert_close(measured[:, 0], torch.stack([target[1, 9], target[0, 7]]))


def test_the_mean_counts_each_question_once():
    contrast = by_hand("llama")
    values = torch.tensor([[1.0, 4.0, 8.0]])[..., None]  # of two questions: 1, and the mean of 4 and 8
    mean, error = contrast.mean(values)
    assert mean.tolist() == [[3.5]]
    assert float(error) == pytest.approx(np.std([1, 6], ddof=1) / 2**0.5)
    # Of a single question the rows are samples; a single row has no spread.
    second = contrast.only(contrast.rows.question == 1)
    mean, error = second.mean(values[:, 1:])
    assert mean.tolist() == [[6.0]]
    assert float(error) == pytest.approx(np.std([4, 8], ddof=1) / 2**0.5)
    mean, error = contrast.only(contrast.rows.question == 0).mean(values[:, :1])
    assert mean.tolist() == [[1.0]]
    assert error.isnan().all()


def test_facts_become_two_runs_in_either_direction():
    other = Fact(prompt="I think that {} is in", subject="Paris", target="Rome")
    contrast = Contrast.of(model("llama"), [FACT, other], NOISE, keep=HEADS[:1], keep_target=HEADS[1:2])
    assert (len(contrast.target.tokens), len(contrast.source.tokens)) == (6, 2)
    assert contrast.rows.source.tolist() == contrast.rows.question.tolist() == [0, 0, 0, 1, 1, 1]
    start = locate.encode_fact(model("llama"), FACT).subject_span[0]
    assert contrast.first == start
    owner = contrast.rows.source
    torch.testing.assert_close(contrast.target.residuals[2][:, :start], contrast.source.residuals[2][owner, :start])
    assert (set(contrast.source.kept), set(contrast.target.kept)) == ({HEADS[0]}, {HEADS[1]})
    paris, rome = (tiny.tokenizer()(f" {name}")["input_ids"][0] for name in ("Paris", "Rome"))
    assert contrast.questions.answers.tolist() == [paris, rome]
    assert contrast.questions.targets_new == ("Rome", None)
    broken = Contrast.of(model("llama"), [FACT, other], NOISE, direction="break", keep=HEADS[:1])
    assert (len(broken.target.tokens), set(broken.source.kept)) == (2, {HEADS[0]})
    torch.testing.assert_close(broken.ends("probability").source, contrast.ends("probability").target)
    record = contrast.record
    assert (record["pairs"], record["corruption"], record["samples"]) == (2, "GaussianNoise", 3)
    assert record["answer"] == " answer"
    assert (record["tokens"][0], record["tokens"][start]) == ("I", f" [{start}]")


def quiet(function, *given, bridge=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(bridge or model("llama"), *given, **{"metric": "logit_diff", "progress": False, **options})


@pytest.mark.parametrize("direction", ["restore", "break"])
def test_patches_of_a_contrast_are_those_of_its_prompts(direction):
    contrast = Contrast.of(model("llama"), FACT, NOISE, keep=HEADS, keep_target=HEADS)
    options = {"sites": "attn_head_z", "direction": direction, "positions": "subject"}
    found, expected = quiet(locate.patch, contrast, **options), quiet(locate.patch, FACT, NOISE, **options)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-4)
    assert found.info == expected.info


def test_paths_of_a_contrast_are_those_of_its_prompts():
    names = [*HEADS, *(f"blocks.{layer}.hook_mlp_out" for layer in range(4)), "ln_final.hook_in"]
    contrast = Contrast.of(model("llama"), FACT, NOISE, keep=names, keep_target=names)
    found, expected = quiet(locate.path_patch, contrast), quiet(locate.path_patch, FACT, NOISE)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    assert found.info == expected.info


def test_heads_of_a_changed_model_are_put_into_the_plain_one_and_back():
    """Whatever weights the model has by then: each run computes with its own."""
    bridge, tokens, name = tiny.bridge("llama", scale=20.0), texts(1, 0), HEADS[2]
    weight = bridge.blocks[1].mlp.out.weight
    weights = [weight.data, 1.5 * weight.data]
    runs = []
    for values in weights:
        exchange(bridge, [(weight, values)])
        runs.append(freeze(bridge, tokens, keep=HEADS))
    plain, changed = runs
    gained = Contrast.between(plain, changed, questions("llama", tokens))
    assert gained.first == 0
    for contrast, values in zip((gained, gained.reversed()), weights, strict=True):
        exchange(bridge, [(weight, weights[0])])
        found = quiet(locate.patch, contrast, bridge=bridge, sites="attn_head_z", metric="log_probability")
        exchange(bridge, [(weight, values)])
        for head in range(4):

            def put(value, hook, head=head, source=contrast.source):
                value = value.clone()
                value[:, :, head] = source.kept[name][:, :, head]
                return value

            with torch.no_grad(), bridge.hooks(fwd_hooks=[(name, put)]):
                expected = bridge(tokens)[0, -1].log_softmax(-1)[7]
            assert float(found.values.sel(layer=2, head=head)) == pytest.approx(float(expected), abs=2e-5)
        np.testing.assert_allclose(found.values.sel(layer=[0, 1]), found.corrupted, rtol=1e-5)
        assert float(abs(found.effect).max()) > 1e-3


def test_what_does_not_fit_is_refused():
    contrast = Contrast.of(model("llama"), FACT, NOISE, keep=HEADS[:2])
    with pytest.raises(SiteError, match=r"source of this contrast did not keep 'blocks\.2\.attn\.hook_z'.*keep=\[…\]"):
        locate.patch(model("llama"), contrast, sites="attn_head_z")
    with pytest.raises(SiteError, match=r"source .* did not keep 'blocks\.0\.attn\.hook_z'"):
        locate.patch(model("llama"), contrast, sites="attn_head_z", direction="break")
    with pytest.raises(FactError, match="runs are of another model than the one given"):
        locate.patch(model("gpt2"), contrast)
    with pytest.raises(FactError, match="give a corruption or another prompt, or a Contrast in place of both"):
        locate.patch(model("llama"), FACT)
    with pytest.raises(SiteError, match="direction must be one of"):
        Contrast.of(model("llama"), FACT, NOISE, direction="both")
    two, three = freeze(model("llama"), texts(2, 0)), freeze(model("llama"), texts(3, 1))
    with pytest.raises(FactError, match="Runs of 2 and 3 rows: say which of them belong together"):
        Contrast.between(two, three, questions("llama", texts(2, 0)))
    short = freeze(model("llama"), texts(2, 0)[:, :5])
    with pytest.raises(FactError, match=r"position by position; found \(\d+, 5\) tokens"):
        Contrast.between(two, short, questions("llama", texts(2, 0)))
