"""What reaches blocks beside the residual stream: inputs of tokens, keys and values of earlier layers, states kept."""

import warnings
from contextlib import ExitStack
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch

import edit
import locate
from locate import SiteError
from locate.engine import freeze
from locate.engine.caches import recorded_layers
from locate.engine.decode import continue_tokens, greedy
from locate.engine.embedding import other_embeddings
from locate.engine.freezing import token_places
from locate.engine.reach import reaching_layers
from locate.facts.prompts import encode_target
from locate.sites.places import layers_with
from tests import tiny

FACT = locate.Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
TOKENS = torch.randint(1, tiny.VOCAB, (1, 8), generator=torch.Generator().manual_seed(2))
HYBRIDS = ["lfm2", "qwen3_5_text", "qwen3_next"]
QUIET = {"progress": False}


@cache
def bridge(kind):
    return tiny.bridge(kind)


@cache
def plain(kind):
    return tiny.hf_model(kind)


def other(position):
    tokens = TOKENS[0].clone()
    tokens[position] = (tokens[position] + 1) % tiny.VOCAB
    return tokens


def whole(kind, tokens, changes):
    """Last logits of a whole pass of the plain model, with the outputs of some modules changed."""
    model = plain(kind)
    modules = dict(model.named_modules())
    with ExitStack() as stack, torch.no_grad():
        for name, change in changes.items():
            hook = modules[name].register_forward_hook(lambda _module, _args, out, change=change: change(out))
            stack.callback(hook.remove)
        return model(tokens).logits[:, -1]


def scores(logits):
    answer = encode_target(bridge("gemma4_text"), "The Eiffel Tower is located in the city of", "Paris")[0]
    return logits.softmax(-1)[:, answer]


@pytest.mark.parametrize("kind", [*tiny.BESIDE_CONFIGS, "llama", "bloom"])
@pytest.mark.parametrize("position", [3, 7])
@pytest.mark.parametrize("direction", ["restore", "break"])
def test_all_that_a_token_brings_makes_the_other_run(kind, position, direction):
    """Where two texts differ in one token, all that enters a block there is the whole difference, if it is the last."""
    found = locate.patch(
        bridge(kind), TOKENS[0], other(position), sites="block_in", direction=direction, positions=[position],
        metric="log_probability", **QUIET,
    )  # fmt: skip
    end, start = (found.clean, found.corrupted) if direction == "restore" else (found.corrupted, found.clean)
    assert abs(end - start) > 1e-3
    reached = found.values.values[:, 0] if position == 7 else found.values.values[:1, 0]
    np.testing.assert_allclose(reached, end, atol=2e-5)


def test_the_stream_alone_is_no_complete_cut_where_tokens_bring_more():
    found = locate.patch(
        bridge("gemma4_text"), TOKENS[0], other(7), sites="resid_pre", positions=[7], metric="log_probability", **QUIET
    )
    share = (found.values.values[:, 0] - found.corrupted) / (found.clean - found.corrupted)
    assert np.abs(share - 1).min() > 0.01
    assert token_places(bridge("gemma4_text"))
    assert not token_places(bridge("llama"))
    assert freeze(bridge("gemma4_text"), TOKENS).carries
    assert not freeze(bridge("llama"), TOKENS).carries


def test_noise_reaches_the_embeddings_of_every_layer():
    names = ("model.embed_tokens", "model.embed_tokens_per_layer")
    model, noise = bridge("gemma4_text"), locate.GaussianNoise(samples=2, seed=4)
    assert other_embeddings(model) == names[1:]
    prompt = locate.encode_fact(model, FACT)
    span = slice(*prompt.subject_span)
    draws, changes = np.random.RandomState(4), {}
    for name in names:
        own = dict(plain("gemma4_text").named_modules())[name](prompt.tokens[None])[0, span].detach()
        added = torch.tensor(draws.randn(2, *own.shape) * 3 * float(own.std()), dtype=torch.float32)

        def corrupt(out, noisy=own + added):
            out = out.clone()
            out[:, span] = noisy
            return out

        changes[name] = corrupt
    expected = scores(whole("gemma4_text", prompt.tokens.expand(2, -1), changes)).mean()
    trace = locate.causal_trace(model, FACT, kinds=["resid"], corruption=noise, **QUIET)
    assert trace.corrupted == pytest.approx(float(expected), rel=1e-4)
    assert trace.info["corrupted"] == ["embed.hook_out", names[1]]
    assert trace.info["beside_the_stream"]
    # Before the subject nothing differs: a state there restores nothing at all, whatever layers share.
    assert (trace.scores.sel(position=slice(0, trace.subject_span[0] - 1)) == trace.corrupted).all()


@pytest.mark.parametrize("make", [
    locate.ZeroEmbedding(), locate.UniformNoise(samples=2), locate.MeanEmbedding(reference=(FACT,)),
    locate.ResampledEmbedding(reference=(FACT,), samples=2), locate.MultivariateNoise(reference=(FACT,), samples=2),
])  # fmt: skip
def test_every_corruption_reaches_them(make):
    model = bridge("gemma4_text")
    prompt = locate.encode_fact(model, FACT)
    made = make.corrupt(model, FACT, prompt)
    own = dict(model.original_model.named_modules())["model.embed_tokens_per_layer"]
    looked_up = own(prompt.tokens[None])[0, slice(*prompt.subject_span)].detach()
    (values,) = made.beside.values()
    assert values.shape == (make.samples, *looked_up.shape)
    assert float((values - looked_up).abs().amax()) > 0.1


@pytest.mark.parametrize("kind", ["gemma4_text", "llama", *HYBRIDS, "nanochat"])
def test_layers_whose_output_at_earlier_tokens_is_read(kind):
    reaching = reaching_layers(bridge(kind))
    assert reaching == (range(1) if kind == "gemma4_text" else range(3))
    blocks = "model.layers.{}"
    tokens = TOKENS.expand(2, -1)

    def disturbed(layer):
        def change(out):
            out = out[0] if isinstance(out, tuple) else out
            out = out.clone()
            out[1, :-1] += out.std() * torch.sin(torch.arange(32.0))
            return out

        one, changed = whole(kind, tokens, {blocks.format(layer): change})
        return not torch.equal(one, changed)

    assert [disturbed(layer) for layer in range(4)] == [layer in reaching for layer in range(4)]


def test_an_edit_is_refused_where_nothing_reads_it():
    model, request = bridge("gemma4_text"), edit.EditRequest(FACT, target_new="Rome")
    with pytest.raises(locate.LocateError, match="From layer 1 on this model reads nothing of earlier tokens' states"):
        edit.ROME(layer=1).fit(model, [request], progress=False)


@pytest.mark.parametrize("kind", [*tiny.BESIDE_CONFIGS, "llama"])
def test_texts_go_on_as_whole_passes_say(kind):
    (made,) = islice(continue_tokens(bridge(kind), TOKENS, greedy), 5, 6)
    tokens = TOKENS
    for step in range(6):
        new = whole(kind, tokens, {}).argmax(-1)
        assert int(made[0, step]) == int(new)
        tokens = torch.cat([tokens, new[:, None]], dim=1)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_attention_is_traced_where_there_is_attention(kind):
    model = bridge(kind)
    assert recorded_layers(model) == (False, True, False, True)
    trace = locate.causal_trace(model, FACT, window=1, corruption=locate.TokenSwap("The Eiffel Louvre"), **QUIET)
    missing = trace.scores.isnull().any("position")
    has = [layer not in layers_with(model, "attn") for layer in range(4)]
    assert missing.sel(kind="attn").values.tolist() == has
    assert not missing.sel(kind=["resid", "mlp"]).any()
    assert trace.best("attn").layer in layers_with(model, "attn")
    assert len(trace.to_dataframe())
    trace.plot()
    heads = locate.causal_trace(
        model, FACT, kinds=["attn_head"], corruption=locate.TokenSwap("The Eiffel Louvre"), **QUIET
    )
    assert heads.head_scores.isnull().all(["position", "head"]).values.tolist() == has


def test_a_kind_that_no_layer_has_is_refused():
    with pytest.raises(SiteError, match="no hook point"):
        layers_with(bridge("nanochat"), locate.sites.table.Row(name="x", title="x", hook="attn.nothing", axes=""))


def test_a_model_that_resumes_does_so_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in tiny.BESIDE_CONFIGS:
            assert freeze(tiny.bridge(kind), TOKENS).resumable


def test_what_needs_attention_or_the_middle_takes_the_layers_that_have_them():
    model, swap = bridge("lfm2"), locate.TokenSwap("The Eiffel Louvre")
    middle = locate.patch(model, FACT, swap, sites="resid_mid", positions="subject", **QUIET)
    assert middle.values["layer"].values.tolist() == [1, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = locate.attribute_extraction_rate(model, [FACT], top=tiny.VOCAB, **QUIET)
    assert rates["rate"].sel(kind="attn").isnull().values.tolist() == [True, False, True, False]
    assert (rates["rate"].sel(kind="mlp") == 1).all()
    assert (rates["any"] == 1).all()
    knocked = locate.attention_knockout(model, FACT, window=1, **QUIET)
    assert knocked.values.isnull().any("source").values.tolist() == [True, False, True, False]


@pytest.mark.parametrize("kind", ["falcon_h1", "gemma4_text", "lfm2"])
def test_paths_are_refused_where_something_else_writes_to_the_stream(kind):
    with pytest.raises(locate.ModelError, match="neither attention nor an MLP, in layers 0, "):
        locate.path_patch(bridge(kind), FACT, locate.TokenSwap("The Eiffel Louvre"), receivers=["logits"], **QUIET)
