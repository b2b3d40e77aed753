"""Causal tracing against the published loop, written down literally."""

import warnings
from functools import cache

import jaxtyping
import numpy as np
import pytest
import torch
import xarray as xr

import locate
from benchmarks import literal
from locate import DataError, Fact, GaussianNoise, LocateError, Site, SiteError, causal_trace, load_trace
from locate.contrast import branches
from locate.contrast.branches import Graft
from locate.contrast.noise import embedding_std
from locate.contrast.sweep import window_layers
from tests import tiny

KINDS = ("resid", "mlp", "attn")
NOISE = GaussianNoise(samples=4)
PROMPTS = [("{} is located in the city of", "The Eiffel Tower"), ("I think that {} is in", "Big Ben")]


@cache
def model(kind):
    return tiny.bridge(kind, scale=20.0)


@cache
def known(kind, prompt=PROMPTS[1][0], subject=PROMPTS[1][1], top=0):
    """A fact whose target is the word that the model gives the ``top``-th place among words."""
    tokenizer = tiny.tokenizer()
    text = prompt.replace("{}", subject)
    with torch.no_grad():
        logits = model(kind)(torch.tensor([tokenizer(text)["input_ids"]]))[0, -1]
    words = [i for name, i in tokenizer.get_vocab().items() if name.startswith("Ġ") and name[1:].isalpha()]
    words.sort(key=lambda token: -logits[token])
    return Fact(prompt=prompt, subject=subject, target=tokenizer.decode([words[top]]).strip())


def quiet_trace(kind, fact=None, **options):
    options = {"corruption": NOISE, "window": 2, "progress": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return causal_trace(model(kind), known(kind) if fact is None else fact, **options)


@pytest.fixture(scope="module")
def trace():
    return quiet_trace("llama")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_every_site_of_every_kind_equals_the_literal_loop(kind, prompt):
    fact = known(kind, *prompt)
    found = quiet_trace(kind, fact)
    start = found.subject_span[0]
    assert found.scores.dims == ("kind", "position", "layer")
    assert found.scores.shape == (3, len(found.tokens), 4)
    for one in KINDS:
        expected = literal.causal_trace(model(kind), fact, one, window=2, corruption=NOISE).numpy()
        np.testing.assert_allclose(found.scores.sel(kind=one), expected, atol=1e-5, rtol=1e-4)
        # Otherwise there would be nothing to get wrong.
        assert expected[start:].std() > 3e-4
    np.testing.assert_allclose(found.scores[:, :start], found.corrupted, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_windows_equal_the_literal_loop(window):
    found = quiet_trace("llama", kinds=["mlp", "attn"], window=window)
    assert list(found.scores["kind"].values) == ["mlp", "attn"]
    for one in ("mlp", "attn"):
        expected = literal.causal_trace(model("llama"), known("llama"), one, window=window, corruption=NOISE)
        np.testing.assert_allclose(found.scores.sel(kind=one), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("center", "window", "layers"),
    [
        (15, 10, range(10, 20)),
        (2, 10, range(7)),
        (29, 10, range(24, 30)),
        (5, 3, range(4, 7)),
        (5, 1, range(5, 6)),
    ],
)
def test_windows_are_centred_and_cut_off_at_the_ends(center, window, layers):
    assert window_layers(center, window, 30) == layers


@pytest.mark.parametrize("window", [0, 5])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(SiteError, match=f"window of {window} layers does not fit: the model has 4"):
        quiet_trace("llama", window=window)


def test_clean_and_corrupted_are_the_plain_models_probabilities(trace):
    fact, tokenizer = known("llama"), tiny.tokenizer()
    plain = tiny.hf_model("llama", scale=20.0)
    tokens = torch.tensor(tokenizer([fact.text])["input_ids"])
    answer = tokenizer(" " + fact.target)["input_ids"][0]
    start, end = trace.subject_span
    with torch.no_grad():
        clean = plain(tokens).logits[0, -1].softmax(-1)
        vectors = plain.get_input_embeddings()(tokens)
        draws = np.random.RandomState(1).randn(4, end - start, 32) * 3.0 * float(vectors[0, start:end].std())
        noisy = vectors.repeat(4, 1, 1)
        noisy[:, start:end] += torch.tensor(draws, dtype=torch.float32)
        corrupted = plain(inputs_embeds=noisy).logits[:, -1].softmax(-1)
    assert trace.clean == pytest.approx(float(clean[answer]), rel=1e-4)
    assert trace.corrupted == pytest.approx(float(corrupted[:, answer].mean()), rel=1e-4)
    assert trace.answer == " " + fact.target
    assert trace.answer_rank == int((clean > clean[answer]).sum()) + 1
    assert trace.total_effect == pytest.approx(trace.clean - trace.corrupted)
    assert "".join(trace.tokens) == fact.text
    assert "".join(trace.tokens[start:end]) == " Big Ben"


def test_noise_is_the_original_studys():
    embeddings = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = np.random.RandomState(7).randn(5, 3, 8) * 2.5
    own = GaussianNoise(scale=2.5, samples=5, seed=7).noise(embeddings)
    torch.testing.assert_close(own, torch.tensor(expected * float(embeddings.std()), dtype=torch.float32))
    given = GaussianNoise(scale=2.5, samples=5, seed=7, std=0.1).noise(embeddings)
    torch.testing.assert_close(given, torch.tensor(expected * 0.1, dtype=torch.float32))
    assert GaussianNoise() == GaussianNoise(scale=3.0, samples=10, seed=1, std=None)


def test_embedding_std_is_over_the_subjects_tokens_of_all_prompts():
    bridge = model("llama")
    prompts = [locate.encode_fact(bridge, known("llama", *prompt)) for prompt in PROMPTS]
    ids = torch.cat([prompt.tokens[slice(*prompt.subject_span)] for prompt in prompts])
    rows = tiny.hf_model("llama", scale=20.0).get_input_embeddings().weight[ids]
    assert embedding_std(bridge, prompts) == pytest.approx(float(rows.detach().std()), rel=1e-5)


@pytest.mark.parametrize("options", [{"samples": 0}, {"scale": 0.0}, {"scale": -1.0}])
def test_noise_without_samples_or_scale_is_refused(options):
    with pytest.raises(LocateError, match=next(iter(options))):
        GaussianNoise(**options)


def test_the_seed_alone_decides(trace):
    xr.testing.assert_identical(quiet_trace("llama").scores, trace.scores)
    other = quiet_trace("llama", corruption=GaussianNoise(samples=4, seed=2))
    assert other.clean == trace.clean
    assert other.corrupted != trace.corrupted


def test_the_budget_changes_nothing(trace):
    xr.testing.assert_allclose(quiet_trace("llama", budget=1).scores, trace.scores, atol=1e-6)


def test_standard_errors_are_over_the_samples(trace):
    fact, position, layer = known("llama"), trace.subject_span[1] - 1, 2
    draws = NOISE.noise(_subject_embeddings(fact, trace))

    class One(GaussianNoise):
        def noise(self, embeddings):
            return draws[self.seed : self.seed + 1]

    each = []
    for sample in range(4):
        noise = One(samples=1, seed=sample)
        alone = literal.causal_trace(model("llama"), fact, "mlp", window=2, corruption=noise, sites=[(position, layer)])
        each.append(float(alone[position, layer]))
    found = float(trace.standard_error.sel(kind="mlp", position=position, layer=layer))
    assert found == pytest.approx(np.std(each, ddof=1) / 2, rel=1e-2)
    assert found > 1e-5
    assert np.isnan(quiet_trace("llama", corruption=GaussianNoise(samples=1)).standard_error).all()


def _subject_embeddings(fact, trace):
    ids = torch.tensor(tiny.tokenizer()(fact.text)["input_ids"])[slice(*trace.subject_span)]
    return model("llama").embed(ids[None])[0].detach()


def test_saving_and_loading_gives_an_equal_trace(trace, tmp_path):
    path = trace.save(tmp_path / "new" / "t.nc")
    loaded = load_trace(path)
    xr.testing.assert_equal(loaded.scores, trace.scores)
    xr.testing.assert_equal(loaded.standard_error, trace.standard_error)
    for name in ("clean", "corrupted", "answer", "answer_rank", "tokens", "subject_span", "info"):
        assert getattr(loaded, name) == getattr(trace, name)
    assert loaded.info["window"] == 2
    assert (loaded.info["scale"], loaded.info["samples"], loaded.info["seed"]) == (3.0, 4, 1)
    loaded.save(path)
    xr.testing.assert_equal(load_trace(path).scores, trace.scores)


def test_files_that_hold_no_trace_are_refused(trace, tmp_path):
    with pytest.raises(DataError, match=r"There is no trace file .*missing\.nc"):
        load_trace(tmp_path / "missing.nc")
    path = trace.save(tmp_path / "cut.nc")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut\.nc is not a saved trace"):
        load_trace(path)
    xr.Dataset({"scores": trace.scores}).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(DataError, match=r"other\.nc is not a saved trace"):
        load_trace(tmp_path / "other.nc")
    newer = trace.data.assign_attrs(trace='{"format": 99}')
    newer.to_netcdf(tmp_path / "newer.nc")
    with pytest.raises(DataError, match=r"newer\.nc: a trace of format 99; this version reads format 2"):
        load_trace(tmp_path / "newer.nc")


def made_up(scores, span=(1, 3), kinds=("resid", "mlp")):
    """A trace with these scores, of dims kind, position, layer."""
    values = np.asarray(scores, dtype=np.float32)
    coords = {"kind": list(kinds), "position": range(values.shape[1]), "layer": range(values.shape[2])}
    return tiny.made_up_trace(
        xr.DataArray(values, coords=coords, dims=("kind", "position", "layer")),
        clean=0.8, corrupted=0.1, answer=" x", tokens=tuple(f" t{i}" for i in range(values.shape[1])), span=span,
    )  # fmt: skip


def test_best_is_the_highest_score_where_one_looks():
    scores = np.full((2, 5, 3), 0.1)
    scores[1, 2, 1], scores[1, 1, 0], scores[1, 4, 2], scores[1, 0, 0] = 0.4, 0.3, 0.7, 0.9
    scores[0, 1, 2] = 0.6
    trace = made_up(scores)
    assert trace.best() == trace.best("mlp") == Site("mlp", layer=1, position=2)
    assert trace.best("resid") == Site("resid", layer=2, position=1)
    assert trace.best("mlp", within="last") == Site("mlp", layer=2, position=4)
    assert trace.best("mlp", within="all") == Site("mlp", layer=0, position=0)
    with pytest.raises(SiteError, match=r"no 'attn' scores; it was made with kinds=\['resid', 'mlp'\]"):
        trace.best("attn")
    with pytest.raises(SiteError, match=r"within must be one of .*'subject'.*found 'first'"):
        trace.best("mlp", within="first")


def test_the_table_has_one_row_per_site():
    scores = np.arange(30).reshape(2, 5, 3) / 30
    table = made_up(scores).to_dataframe().set_index(["kind", "position", "layer"])
    assert len(table) == 30
    row = table.loc[("mlp", 3, 2)]
    assert row["token"] == " t3"
    assert row["score"] == pytest.approx(scores[1, 3, 2])
    assert row["indirect_effect"] == pytest.approx(scores[1, 3, 2] - 0.1)


def test_an_answer_that_the_model_does_not_give_is_warned_about_with_its_rank():
    fact = known("llama", top=20)
    with pytest.warns(UserWarning, match=r"does not answer .*: it ranks (\d+) of 400") as caught:
        found = causal_trace(model("llama"), fact, corruption=NOISE, window=2, progress=False)
    assert any(f"ranks {found.answer_rank} of" in str(one.message) for one in caught)
    assert found.answer_rank > 20


def test_a_corruption_without_effect_is_warned_about():
    weak = GaussianNoise(scale=1e-4, samples=2)
    with pytest.warns(UserWarning, match="Corrupting 'Big Ben' changes probability by only"):
        causal_trace(model("llama"), known("llama"), corruption=weak, window=2, progress=False)
    # It is the metric that must change: here the answer stays the first.
    with pytest.warns(UserWarning, match="Corrupting 'Big Ben' changes rank by only 0,"):
        causal_trace(model("llama"), known("llama"), corruption=weak, window=2, progress=False, metric="rank")


@pytest.mark.filterwarnings("ignore")
def test_logits_that_are_not_finite_are_told_under_any_metric():
    broken = tiny.bridge("llama")
    with torch.no_grad():
        broken.blocks[3].mlp.out.weight[:] = float("nan")
    with pytest.raises(LocateError, match="logits are not finite"):
        causal_trace(broken, known("llama"), metric="rank", window=2, corruption=NOISE, progress=False)


def test_a_trace_of_nothing_is_refused():
    with pytest.raises(SiteError, match="at least one kind"):
        quiet_trace("llama", kinds=())


def test_a_record_names_the_fact_and_the_swap():
    fact = known("llama", prompt="{} is located in the city of", subject="The Louvre")
    trace = quiet_trace("llama", corruption=locate.TokenSwap("The Colosseum"), fact=fact, kinds="resid")
    assert (trace.info["subject"], trace.info["other_subject"]) == ("The Louvre", "The Colosseum")


@pytest.mark.parametrize("precision", ["model", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gemma3_text"])
def test_windows_of_mlps_leave_their_first_block_out(kind, dtype, precision, monkeypatch):
    """In every precision: only the last sum of a window's first block depends on the patch."""
    asked, tried = [], []
    real, attempt = Graft.__dict__["_mlp_is_added_last"].fget, branches._adds_last
    monkeypatch.setattr(Graft, "_mlp_is_added_last", property(lambda graft: asked.append(real(graft)) or asked[-1]))
    monkeypatch.setattr(branches, "_adds_last", lambda *args: tried.append(args) or attempt(*args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        causal_trace(
            tiny.bridge(kind, dtype=dtype, scale=20.0), known("llama"), kinds="mlp", window=2, corruption=NOISE,
            precision=precision, progress=False,
        )  # fmt: skip
    assert asked
    assert all(asked)
    assert len(tried) == 1 < len(asked)  # once per model


def test_what_is_no_corruption_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    for corruption in ("swap", known("llama")):
        with pytest.raises(LocateError, match="corruption must be one of locate's corruptions, such as GaussianNoise"):
            quiet_trace("llama", corruption=corruption)


@pytest.mark.slow("a whole trace of the default model, beside literal passes")
@pytest.mark.real_model
def test_the_default_model_keeps_the_fact_where_the_design_says(smollm):
    fact = Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    noise = GaussianNoise(scale=3.0, samples=10, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = causal_trace(smollm, fact, progress=False)
    assert found.clean == pytest.approx(0.70, abs=0.01)
    assert found.corrupted == pytest.approx(0.012, abs=0.001)
    assert (found.answer, found.answer_rank) == (" Paris", 1)
    iffel, last = found.tokens.index("iffel"), len(found.tokens) - 1
    early = found.best("resid")
    assert early.position == iffel
    assert 3 <= early.layer <= 9
    resid = found.scores.sel(kind="resid")
    assert float(resid.sel(position=iffel).max()) == pytest.approx(0.41, abs=0.03)
    assert float(resid.sel(position=last).max()) == pytest.approx(0.76, abs=0.03)
    assert float(resid.sel(position=last, layer=slice(23, None)).min()) > 0.4
    assert float(resid.sel(position=last, layer=slice(0, 20)).max()) < 0.05
    assert 19 <= found.best("attn", within="last").layer <= 24
    assert found.best("mlp").position == iffel
    for kind in KINDS:
        sites = [(iffel, 0), (iffel, 6), (0, 29), (last, 15), (last, 23)]
        expected = literal.causal_trace(smollm, fact, kind, corruption=noise, sites=sites).numpy()
        for position, layer in sites:
            assert abs(float(found.scores.sel(kind=kind)[position, layer]) - expected[position, layer]) < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_whole_passes_give_the_same_trace(kind, not_resumed):
    """The corrupted run has hooks of its own, which a whole pass must not forget."""
    fresh, fact = tiny.bridge(kind, scale=20.0), known(kind)
    with pytest.warns(UserWarning, match="cannot be resumed from the middle: a resumed pass differs"):
        found = causal_trace(fresh, fact, corruption=NOISE, window=2, progress=False)
    for one in ("resid", "mlp", "attn"):
        expected = literal.causal_trace(fresh, fact, one, window=2, corruption=NOISE).numpy()
        start = found.subject_span[0]
        np.testing.assert_allclose(found.scores.sel(kind=one).values[start:], expected[start:], rtol=1e-4, atol=1e-9)


FACTS = [
    Fact(prompt="I think that {} is in", subject="Big Ben", target="London", target_new="Rome"),
    Fact(prompt="I know that {} is in", subject="Big Ben", target="Paris", target_new="Rome"),
    Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome"),
]


def literal_patch(kind, fact, hooks, row=0):
    """The answer's probability in one whole pass over the noisy rows, with these hooks."""
    bridge = model(kind)
    prompt = locate.encode_fact(bridge, fact)
    answer = tiny.tokenizer()(" " + fact.target)["input_ids"][0]
    start, end = prompt.subject_span

    def corrupt(value, hook):
        value = value.clone()
        value[:, start:end] += NOISE.noise(value[0, start:end])
        return value

    with torch.no_grad(), bridge.hooks(fwd_hooks=[("embed.hook_out", corrupt), *hooks]):
        logits = bridge(prompt.tokens[None].expand(NOISE.samples, -1))
    return float(logits[:, -1].softmax(-1)[:, answer].mean())


def clean_cache(kind, fact):
    prompt = locate.encode_fact(model(kind), fact)
    with torch.no_grad():
        return model(kind).run_with_cache(prompt.tokens[None])[1]


def noisy_cache(kind, fact):
    cache = {}

    def keep(value, hook):
        cache[hook.name] = value.detach().clone()

    names = [f"blocks.{layer}.{name}" for layer in range(4) for name in ("hook_mlp_out", "hook_attn_out", "hook_out")]
    literal_patch(kind, fact, [(name, keep) for name in names])
    return cache


@pytest.mark.parametrize("corruption", [NOISE, locate.ZeroEmbedding()])
def test_many_facts_give_the_same_traces_as_each_alone(corruption):
    together = quiet_trace("llama", FACTS, corruption=corruption, metric=["probability", "logit_diff"])
    assert len(together) == 3
    for fact, found in zip(FACTS, together, strict=True):
        alone = quiet_trace("llama", fact, corruption=corruption, metric=["probability", "logit_diff"])
        for metric in ("probability", "logit_diff"):
            np.testing.assert_allclose(found.of(metric).scores, alone.of(metric).scores, atol=1e-5)
        assert found.info["subject"] == fact.subject
        assert found.tokens == alone.tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_single_heads_equal_whole_passes(kind):
    fact = FACTS[0]
    found = quiet_trace(kind, fact, kinds=["attn_head"])
    assert found.head_scores.dims == ("position", "layer", "head")
    clean = clean_cache(kind, fact)
    for position, layer, head in [(4, 0, 1), (5, 2, 3), (6, 3, 0)]:
        name = f"blocks.{layer}.attn.hook_z"

        def restore(value, hook, position=position, head=head, name=name):
            value = value.clone()
            value[:, position, head] = clean[name][0, position, head]
            return value

        expected = literal_patch(kind, fact, [(name, restore)])
        assert float(found.head_scores[position, layer, head]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert found.best("attn_head", within="all").head is not None
    with pytest.raises(SiteError, match="single heads alone"):
        found.scores  # noqa: B018
    with pytest.raises(SiteError, match="no heads"):
        quiet_trace(kind, fact).head_scores  # noqa: B018


@pytest.mark.parametrize("severed", ["mlp", "attn"])
def test_severed_traces_equal_whole_passes(severed):
    fact = FACTS[0]
    found = quiet_trace("llama", fact, kinds=["resid"], severed=severed)
    clean, noisy = clean_cache("llama", fact), noisy_cache("llama", fact)
    for position, layer in [(4, 0), (5, 1), (7, 2)]:

        def restore(value, hook, position=position, layer=layer):
            value = value.clone()
            value[:, position] = clean[f"blocks.{layer}.hook_out"][0, position]
            return value

        def hold(value, hook, position=position):
            value = value.clone()
            value[:, position] = noisy[hook.name][:, position]
            return value

        held = [(f"blocks.{later}.hook_{severed}_out", hold) for later in range(layer + 1, 4)]
        expected = literal_patch("llama", fact, [(f"blocks.{layer}.hook_out", restore), *held])
        assert float(found.scores[0, position, layer]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert not np.allclose(found.scores, quiet_trace("llama", fact, kinds=["resid"]).scores, atol=1e-6)
    with pytest.raises(SiteError, match="A severed trace restores residual states"):
        quiet_trace("llama", fact, severed=severed)


def test_breaking_puts_corrupted_states_into_the_clean_run():
    fact = FACTS[0]
    found = quiet_trace("llama", fact, direction="break", window=2)
    noisy, bridge = noisy_cache("llama", fact), model("llama")
    prompt = locate.encode_fact(bridge, fact)
    answer = tiny.tokenizer()(" London")["input_ids"][0]
    for kind, name in (("resid", "hook_out"), ("mlp", "hook_mlp_out")):
        for position, layer in [(4, 1), (6, 3)]:

            def put(value, hook, position=position):
                value = value.clone()
                value[:, position] = noisy[hook.name][:, position]
                return value

            layers = [layer] if kind == "resid" else [layer - 1, layer]
            hooks = [(f"blocks.{one}.{name}", put) for one in layers]
            with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
                logits = bridge(prompt.tokens[None].expand(NOISE.samples, -1))
            expected = float(logits[:, -1].softmax(-1)[:, answer].mean())
            assert float(found.scores.sel(kind=kind)[position, layer]) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.indirect_effect, found.clean - found.scores)
    last = len(found.tokens) - 1
    assert float(found.recovered.sel(kind="resid")[last, 3]) == pytest.approx(1, abs=1e-4)


def test_positions_can_be_chosen():
    every = quiet_trace("llama", FACTS[2])
    subject = quiet_trace("llama", FACTS[2], positions="subject")
    assert subject.scores["position"].values.tolist() == list(range(*every.subject_span))
    np.testing.assert_allclose(subject.scores, every.scores[:, slice(*every.subject_span)], atol=1e-6)
    two = quiet_trace("llama", FACTS[2], positions=[-1, 2])
    assert two.scores["position"].values.tolist() == [2, len(every.tokens) - 1]
    two.plot().draw_without_rendering()
    assert two.best("mlp", within="last").position == len(every.tokens) - 1
    with pytest.raises(SiteError, match="visited no position within 'last'"):
        subject.best("mlp", within="last")
    with pytest.raises(SiteError, match="Position 99 is out of range"):
        quiet_trace("llama", FACTS[2], positions=[99])
    with pytest.raises(SiteError, match="positions must be one of all"):
        quiet_trace("llama", FACTS[2], positions="first")


def test_a_swap_traces_from_the_first_token_that_differs():
    fact = Fact(prompt="I think that {} is in", subject="London", target="Paris")
    found = quiet_trace("llama", fact, corruption=locate.TokenSwap("Rome"))
    bridge, tokenizer = model("llama"), tiny.tokenizer()
    clean, other = (torch.tensor([tokenizer(f"I think that {s} is in")["input_ids"]]) for s in ("London", "Rome"))
    answer = tokenizer(" Paris")["input_ids"][0]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        position = found.subject_span[0]

        def restore(value, hook):
            value = value.clone()
            value[:, position] = cache["blocks.1.hook_out"][:, position]
            return value

        with bridge.hooks(fwd_hooks=[("blocks.1.hook_out", restore)]):
            expected = float(bridge(other)[0, -1].softmax(-1)[answer])
        swapped = float(bridge(other)[0, -1].softmax(-1)[answer])
    assert float(found.scores.sel(kind="resid")[position, 1]) == pytest.approx(expected, rel=1e-4)
    assert found.corrupted == pytest.approx(swapped, rel=1e-4)
    assert found.info["subjects"] == ["Rome"]


def test_bfloat16_is_near():
    exact, near = quiet_trace("llama"), quiet_trace("llama", precision="bfloat16")
    assert near.clean == exact.clean
    difference = float(np.abs(near.scores - exact.scores).max())
    assert 0 < difference < 0.05 * abs(exact.total_effect) + 0.05
    with pytest.raises(LocateError, match="precision must be one of model, bfloat16"):
        quiet_trace("llama", precision="int8")


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(LocateError, match="budget must be at least one token, found 0"):
        quiet_trace("llama", budget=0)


def test_heads_have_tables_of_their_own():
    heads, both = quiet_trace("llama", kinds="attn_head"), quiet_trace("llama", kinds=["mlp", "attn_head"])
    table = heads.to_dataframe()
    assert len(table) == heads.head_scores.size
    row = table.set_index(["position", "layer", "head"]).loc[(3, 2, 1)]
    assert row["kind"] == "attn_head"
    assert row["token"] == heads.tokens[3]
    assert row["score"] == pytest.approx(float(heads.head_scores.sel(position=3, layer=2, head=1)))
    assert row["indirect_effect"] == pytest.approx(float(heads.head_effect.sel(position=3, layer=2, head=1)))
    assert row["standard_error"] == pytest.approx(float(heads.head_standard_error.sel(position=3, layer=2, head=1)))
    mixed = both.to_dataframe()
    assert len(mixed) == both.scores.size + both.head_scores.size
    assert mixed.loc[mixed["kind"] == "mlp", "head"].isna().all()
    with pytest.raises(SiteError, match="This trace has no 'mlp' scores"):
        heads.best()
    for ask in (lambda: heads.scores, lambda: heads.standard_error, heads.plot):
        with pytest.raises(SiteError, match="single heads alone; see head_scores, and plot_trace_heads"):
            ask()


def test_no_facts_are_refused():
    with pytest.raises(locate.FactError, match="no facts to trace"):
        quiet_trace("llama", ())
    with pytest.raises(SiteError, match="direction must be one of"):
        quiet_trace("llama", direction="both")
