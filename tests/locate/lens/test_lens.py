"""The logit lens and the tuned lens: against the model's own output, and against reading its blocks by plain hooks."""

import json
import os
import pickle

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr

import locate
from edit.methods.where import layers_at
from locate import DataError, FactError, LocateError, ModelError, SiteError, TunedLens
from locate.engine import freeze
from tests import tiny
from tests.architectures import table
from tests.figures import check_fits
from tests.locate.lens.test_attribution import ALWAYS, FACT, OTHERS, own_logits, tokens_of
from tests.sampling import slow
from tests.transformer_lens import models

SHORT = locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris")
VALUES = ("logit", "log_probability", "rank")
TEXTS = [
    "The Eiffel Tower is located in the city of Paris. The Louvre is located in the city of Paris too.",
    "The capital of France is Paris; the capital of Italy is Rome.",
]


@pytest.fixture(scope="module")
def model():
    return models.model("llama")


def read(logits, tokens):
    """By definition: each value of some tokens, from one row of logits."""
    chosen = logits[list(tokens)]
    rank = (logits[None] > chosen[:, None]).sum(-1) + 1
    return {"logit": chosen, "log_probability": logits.log_softmax(-1)[list(tokens)], "rank": rank}


@pytest.mark.parametrize(
    "kind", [*ALWAYS, *(pytest.param(kind, marks=slow) for kind in [*OTHERS, "modernbert-decoder"])]
)
@pytest.mark.filterwarnings("ignore:.* cannot be resumed from the middle")
def test_the_last_layer_is_the_models_own_output(kind):
    tokens, *answers = tokens_of()
    with torch.no_grad():
        logits = models.hf_model(kind)(tokens[None]).logits[0].double()
    lens = locate.logit_lens(models.model(kind), FACT, progress=False)
    last = lens.data.isel(fact=0, layer=-1)
    for position, own in enumerate(logits):
        for name, expected in read(own, answers).items():
            np.testing.assert_allclose(last[name].isel(position=position), expected, rtol=1e-4, atol=1e-4)
        assert last["top"].values[position] == tiny.tokenizer().decode([int(own.argmax())])
        assert float(last["top_probability"][position]) == pytest.approx(float(own.softmax(-1).max()), abs=1e-4)


def by_hand(kind):
    """The last position's logits after each block, read by the plain model's own norm and unembedding."""
    hf, (tokens, *_) = models.hf_model(kind), tokens_of()
    body = hf.transformer if kind == "gpt2" else hf.model
    blocks, norm = (body.h, body.ln_f) if kind == "gpt2" else (body.layers, body.norm)
    seen = []

    def keep(module, args, output):
        seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    handles = [block.register_forward_hook(keep) for block in blocks]
    own_logits(hf, tokens)
    for handle in handles:
        handle.remove()
    scale = {"granite": 0.5, "cohere": getattr(hf.config, "logit_scale", 1.0)}.get(kind, 1.0)
    cap = getattr(hf.config, "final_logit_softcapping", None)
    with torch.no_grad():
        logits = [hf.lm_head(norm(state)) * scale for state in seen]
        return [one if cap is None else cap * (one / cap).tanh() for one in logits]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "olmo2", "granite", "cohere"])
def test_each_layer_is_read_as_the_model_reads_its_last(kind):
    _, *answers = tokens_of()
    after = locate.logit_lens(models.model(kind), FACT, positions="last", progress=False)
    before = locate.logit_lens(models.model(kind), FACT, sites="resid_pre", positions="last", progress=False)
    for layer, logits in enumerate(by_hand(kind)):
        for name, expected in read(logits, answers).items():
            np.testing.assert_allclose(after.data[name].values[0, layer, 0], expected, rtol=1e-4, atol=1e-4)
            if layer + 1 < before.data.sizes["layer"]:
                np.testing.assert_allclose(before.data[name].values[0, layer + 1, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["mlp", "attn"])
def test_what_is_added_is_read_by_itself(model, part):
    hf, (tokens, *answers), seen = models.hf_model("llama"), tokens_of(), []
    for block in hf.model.layers:
        module = block.mlp if part == "mlp" else block.self_attn
        module.register_forward_hook(
            lambda module, args, output: seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])
        )
    own_logits(hf, tokens)
    lens = locate.logit_lens(model, FACT, sites=f"{part}_out", positions="last", progress=False)
    with torch.no_grad():
        for layer, state in enumerate(seen):
            expected = read(hf.lm_head(hf.model.norm(state)), answers)["logit"]
            np.testing.assert_allclose(lens.data["logit"].values[0, layer, 0], expected, rtol=1e-4, atol=1e-4)
    best = lens.best()
    assert (best.kind, best.layer) == (f"{part}_out", int(lens.of().values[0, :, 0, 0].argmax()))


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_positions_and_tokens_of_several_prompts(model):
    one, other = (locate.logit_lens(model, fact, progress=False) for fact in (FACT, SHORT))
    both = locate.logit_lens(model, [FACT, SHORT], positions=["subject_last", "last"], progress=False)
    assert list(both.data["position"].values) == ["subject_last", "last"]
    for fact, alone, spec in ((0, one, FACT), (1, other, SHORT)):
        place = locate.encode_fact(model, spec).last_subject_position
        for name in VALUES:
            for at, position in ((place, 0), (-1, 1)):
                np.testing.assert_allclose(
                    both.data[name].values[fact, :, position, 0],
                    alone.data[name].values[0, :, at, 0],
                    rtol=1e-4,
                    atol=1e-4,
                )
    assert np.isnan(both.of("logit").values[1, ..., 1]).all()  # it has no second answer
    assert not np.isnan(both.of("logit").values[0]).any()
    assert list(other.data["token"].values) == ["answer"]
    named = locate.logit_lens(model, [FACT, SHORT], ["London", 7], progress=False)
    assert list(named.data["token"].values) == ["London", "7"]
    text = locate.logit_lens(model, FACT.text, progress=False)  # its own first answer
    assert float(text.of("rank")[0, -1, -1, 0]) == 1
    same = locate.logit_lens(model, [FACT, FACT], positions="subject", progress=False)
    start, end = locate.encode_fact(model, FACT).subject_span
    assert list(same.data["position"].values) == list(range(start, end))


@pytest.mark.parametrize(("prompts", "options", "error", "message"), [
    ([], {}, FactError, "no prompts; give at least one"),
    (FACT, {"tokens": "Paris"}, FactError, "give one or more, such as"),
    (FACT, {"tokens": [400]}, FactError, "There is no token 400"),
    (FACT, {"sites": "mlp_in"}, SiteError, "the lens reads resid_pre, .* found 'mlp_in'"),
    (FACT, {"sites": "mlp_out", "translator": lambda _, stream: stream}, SiteError, "it reads resid_pre or resid_post"),
    (FACT, {"positions": [99]}, SiteError, "Position 99 is out of range"),
    ([FACT, SHORT], {"positions": "all"}, SiteError, "are not the same in all prompts"),
    (FACT, {"translator": lambda layer, stream: stream[..., :4]}, ModelError, r"gave \(\d+, 4\) for a stream"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused(model, prompts, options, error, message):
    with pytest.raises(error, match=message):
        locate.logit_lens(model, prompts, **options)


def test_values_are_averaged_and_kept(model, tmp_path):
    lens = locate.logit_lens(model, [FACT, SHORT, FACT], progress=False)
    logs, ranks = lens.of("log_probability"), lens.of("rank")
    np.testing.assert_allclose(lens.summary()["mean"], logs.mean("fact"), rtol=1e-5)
    np.testing.assert_allclose(lens.summary("rank")["mean"], np.exp(np.log(ranks).mean("fact")), rtol=1e-5)
    np.testing.assert_allclose(lens.of("probability"), np.exp(logs))
    whole = lens.summary()
    assert bool(((whole["low"] <= whole["mean"]) & (whole["mean"] <= whole["high"])).isel(token=0).all())
    rises = logs.mean("fact").isel(position=-1, token=0).diff("layer")
    assert lens.best() == locate.Site("resid", layer=1 + int(rises.values.argmax()))
    assert layers_at(model, lens) == (lens.best().layer,)
    before = locate.logit_lens(model, [FACT, SHORT, FACT], sites="resid_pre", progress=False)
    rises = before.of().mean("fact").isel(position=-1, token=0).diff("layer")
    assert before.best() == locate.Site("resid", layer=int(rises.values.argmax()))
    again = locate.load_trajectory(lens.save(tmp_path / "lens.nc"))
    xr.testing.assert_equal(again.data[list(VALUES)], lens.data[list(VALUES)])
    assert (again.data["top"].values == lens.data["top"].values).all()
    assert (again.sites, again.info) == (lens.sites, lens.info)
    assert list(lens.to_dataframe().columns) == ["fact", "layer", "position", "token", *VALUES]
    with pytest.raises(LocateError, match="value must be one of log_probability, probability, logit, rank"):
        lens.of("odds")


def test_figures_show_the_values(model):
    one = locate.logit_lens(model, FACT, progress=False)
    several = locate.logit_lens(model, [FACT, SHORT], positions=["subject_last", "last"], progress=False)
    figures = [
        one.plot(), one.plot(figsize=(2.3, 2.2)), one.plot(value="rank", position=2), one.plot_map(),
        several.plot(position="subject_last"), several.plot_map(fact=1, token="answer", figsize=(2.4, 3.0)),
    ]  # fmt: skip
    for figure in figures:
        check_fits(figure)
    shown = figures[0].axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(shown, one.of()[0, :, -1, 0])
    axes = figures[3].axes[0]
    np.testing.assert_allclose(axes.collections[0].get_array().ravel(), one.data["top_probability"].values[0].ravel())
    assert len(axes.texts) == one.data["top"].size
    assert figures[4].get_suptitle().replace("\n", " ").endswith("at the subject's last token, mean of 2 prompts")
    for call, message in ((lambda: one.plot(position=99), "found 99"), (lambda: one.plot_map(fact=1), "no prompt 1"),
                          (lambda: one.plot_map(layers=[9]), r"found \[9\]"),
                          (lambda: one.plot_map(token="new"), "follows answer, other; found 'new'")):  # fmt: skip
        with pytest.raises(SiteError, match=message):
            call()
    assert [text.get_text() for text in one.plot_map(layers=[2, 0]).axes[0].get_yticklabels()] == ["0", "2"]
    plt.close("all")


# --- translators ------------------------------------------------------------------------------------------------------


def test_a_translator_is_given_the_stream_that_enters_a_layer(model):
    given = {}

    def shift(layer, stream):
        given[layer] = stream
        return stream + layer

    plain = locate.logit_lens(model, FACT, progress=False)
    translated = locate.logit_lens(model, FACT, translator=shift, progress=False)
    assert sorted(given) == [1, 2, 3]  # what leaves the last layer is read as it is
    np.testing.assert_array_equal(translated.of("logit")[:, -1], plain.of("logit")[:, -1])
    tokens, *answers = tokens_of()
    assert torch.equal(given[2], freeze(model, tokens[None]).residuals[2][0])
    with torch.no_grad():
        expected = model.unembed(model.ln_final(given[2][None] + 2))[0][:, answers]
    np.testing.assert_allclose(translated.of("logit")[0, 1], expected, rtol=1e-4, atol=1e-4)
    assert translated.info["translator"] == "shift"


def published(folder, n=4, width=32, **config):
    """A lens as the tuned-lens package writes it: the state of a list of linear layers, pickled."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(n)])
    folder.mkdir(exist_ok=True)
    torch.save(layers.state_dict(), folder / "params.pt")
    described = {
        "base_model_name_or_path": "some/model", "d_model": width, "num_hidden_layers": n, "bias": True,
        "base_model_revision": None, "unembed_hash": "0f", "lens_type": "linear_tuned_lens", **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    return layers


def test_a_published_lens_adds_its_map_to_the_stream(model, tmp_path):
    layers = published(tmp_path)
    lens = TunedLens.load(tmp_path)
    stream = torch.randn(3, 32)
    for layer, linear in enumerate(layers):
        with torch.no_grad():
            torch.testing.assert_close(lens(layer, stream), stream + linear(stream))
    found = locate.logit_lens(model, FACT, sites="resid_pre", translator=lens, progress=False)
    assert found.info["translator"] == "TunedLens"
    again = TunedLens.load(lens.save(tmp_path / "again"))
    assert torch.equal(again.weights, lens.weights)
    assert torch.equal(again.biases, lens.biases)
    assert again.model == lens.model == "some/model"


class Harm:
    """What a pickle may hold."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_what_is_no_lens_of_the_model_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "narrow", width=16)
    with pytest.raises(ModelError, match=r"for 4 layers of width 16; .* has 4 of width 32"):
        locate.logit_lens(model, FACT, translator=TunedLens.load("narrow"))
    published(tmp_path / "short", n=2)
    short = TunedLens.load("short")
    with pytest.raises(ModelError, match=r"for 2 layers of width 32"):
        short.check(model)
    with pytest.raises(ModelError, match="for layers 0 to 1 and width 32; found layer 2"):
        short(2, torch.zeros(1, 32))
    published(tmp_path / "other", lens_type="jacobian_lens")
    published(tmp_path / "wider", d_model=40)
    published(tmp_path / "odd", d_model="wide")
    published(tmp_path / "harm")
    (tmp_path / "harm" / "params.pt").write_bytes(pickle.dumps({"0.weight": Harm()}, protocol=2))
    published(tmp_path / "wrapped")
    torch.save({"0.weight": torch.zeros(1), "1.weight": Harm()}, tmp_path / "wrapped" / "params.pt")
    published(tmp_path / "beside")
    torch.save({"0.weight": torch.zeros(1), "layers": 4}, tmp_path / "beside" / "params.pt")
    published(tmp_path / "gone")
    (tmp_path / "gone" / "params.pt").unlink()
    for folder, message in (("other", "lens_type must be 'linear_tuned_lens'"), ("odd", "not the description"),
                            ("wider", r"'0.bias' should have shape \(40,\), found \(32,\)"),
                            ("harm", "not a file of tensors alone.*Nothing of it was run"),
                            ("wrapped", "not a file of tensors alone.*Nothing of it was run"),
                            ("beside", "something else than the named tensors"),
                            ("gone", "no params.safetensors, and no params.pt"),
                            ("nowhere", "it has no config.json")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            TunedLens.load(folder)
    assert not (tmp_path / "harmed").exists()


def divergence(model, lens, text):
    """KL(model ‖ lens) of a text's tokens by the stream that enters each layer, from whole passes."""
    tokens = torch.tensor(tiny.tokenizer()(text)["input_ids"])[None]
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        wanted, found = logits[0].log_softmax(-1), []
        for layer in range(model.cfg.n_layers):
            stream = cache[f"blocks.{layer}.hook_resid_pre"][0]
            read = model.unembed(model.ln_final((stream if lens is None else lens(layer, stream))[None]))[0]
            found.append(float((wanted.exp() * (wanted - read.log_softmax(-1))).sum(-1).mean()))
    return np.array(found)


def test_a_fitted_lens_is_nearer_to_the_output():
    model = tiny.bridge("llama", scale=8.0)
    before = {name: one.clone() for name, one in model.original_model.named_parameters()}
    text = "To visit the Eiffel Tower, you need a flight to Paris."
    lens = TunedLens.fit(model, TEXTS, steps=60, rate=0.02, batch=32, progress=False)
    plain, tuned = divergence(model, None, TEXTS[0]), divergence(model, lens, TEXTS[0])
    assert (tuned < 0.6 * plain).all()
    assert divergence(model, lens, text).mean() < divergence(model, None, text).mean()  # which it has not seen
    assert all(torch.equal(one, before[name]) for name, one in model.original_model.named_parameters())
    assert all(one.grad is None for one in model.original_model.parameters())
    again = TunedLens.fit(model, TEXTS, steps=60, rate=0.02, batch=32, progress=False)
    assert torch.equal(again.weights, lens.weights)
    assert lens.info["tokens"] == sum(len(tiny.tokenizer()(one)["input_ids"]) for one in TEXTS)
    nothing = TunedLens.fit(model, TEXTS, steps=1, rate=1e-12, progress=False)
    np.testing.assert_allclose(divergence(model, nothing, text), divergence(model, None, text), rtol=1e-3)


def test_training_without_anything_is_refused(model):
    with pytest.raises(FactError, match="give one or more, as a list"):
        TunedLens.fit(model, [])
    with pytest.raises(LocateError, match="must be 1 or more, found 0"):
        TunedLens.fit(model, TEXTS, steps=0)


def test_experts_are_read_like_any_model():
    lens = locate.logit_lens(table.bridge("mixtral"), FACT, sites="mlp_out", progress=False)
    assert lens.data.sizes["layer"] == 3
