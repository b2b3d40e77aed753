"""The locate-then-edit family against literal references, its defaults, its stabilisers, and bad input."""

import dataclasses
import inspect
import json
import math
import pickle
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import edit
import locate
from benchmarks import literal_memit
from benchmarks.literal_rome import halved_mean
from edit.hyperparameters import Count, hyperparameters, whole
from edit.methods import EMMET, KN, MEMIT, PMET, ROME, AlphaEdit, Job
from edit.methods.rewriting import locate_then_edit, rewriting
from edit.methods.rewriting.stabilisers import BLUE, ENCORE, NAS, PRUNE, RECT, reference_norm
from edit.methods.where import _whole
from edit.requests.requests import EditRequest
from edit.statistics import collect_statistics
from edit.values.contexts import build_contexts
from edit.values.objective import ValueObjective
from edit.values.optimisation import optimise_value, optimise_values
from locate import DataError, Fact, FactError, LocateError, NumericsError, Site, SiteError
from locate.engine import rows
from locate.engine.rows import Budget, passes
from locate.model.anatomy import check_layer
from locate.model.weights import down_projection, fingerprint, hf_parameters
from locate.sites.table import hook_name
from tests import tiny
from tests.edit.methods.problems import solved
from tests.sampling import sampled

# One of each form: Conv1D, gated, a norm after the MLP, parallel blocks with fused projections.
KINDS = ["gpt2", "llama", "gemma3_text", "gpt_neox"]
PREFIXES = ("I am. ", "You see the Louvre. ")
LAYERS = (1, 2)
TOWER = Fact(prompt="In Europe, {} is located in the city of", subject="The Eiffel Tower", target="Paris",
             target_new="Rome")  # fmt: skip
LOUVRE = Fact(prompt="{} stands in", subject="The Louvre", target="Paris", target_new="London in France")
BEN = Fact(prompt="The city of {} is", subject="Big Ben", target="London", target_new="Paris")
REQUESTS = [EditRequest(TOWER), EditRequest(LOUVRE), EditRequest(BEN)]
OBJECTIVE = ValueObjective(steps=4, clamp=0.75, stop="loss", loss_threshold=-1.0)
METHODS = {
    "MEMIT": MEMIT(weight=50.0), "PMET": PMET(weight=50.0), "AlphaEdit": AlphaEdit(ridge=0.5),
    "EMMET": EMMET(slack=0.1),
}  # fmt: skip


@pytest.fixture
def prepared(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path))
    options = {"objective": OBJECTIVE, "prefixes": PREFIXES, "corpus": corpus, "statistics_tokens": 1500}

    def prepare(name, **changes):
        if name == "ROME":
            return dataclasses.replace(ROME(layer=2), **{**options, **changes})
        method = METHODS[name]
        layers = LAYERS[-1:] if name == "EMMET" else LAYERS
        return dataclasses.replace(method, **{"layers": layers, **options, **changes})

    return prepare


@pytest.fixture
def llama():
    return tiny.bridge("llama")


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


def dense(model, update, layer):
    down = down_projection(model, layer)
    delta = update.delta(down.name).double()
    return delta.T if down.transposed else delta


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_literal_method(kind, name, prepared):
    model = tiny.bridge(kind)
    before = prints(model)
    method = prepared(name)
    update = method.fit(model, REQUESTS, progress=False)
    assert prints(model) == before
    statistics = collect_statistics(model, method.layers, corpus=method.corpus, tokens=1500, progress=False)
    expected = literal_memit.deltas(
        model, REQUESTS, ["", *PREFIXES], method.layers, OBJECTIVE,
        {layer: one.second_moment for layer, one in statistics.items()}, method=name, weight=50.0, ridge=0.5,
    )  # fmt: skip
    assert prints(model) == before
    for layer in method.layers:
        found = dense(model, update, layer)
        assert (found - expected[layer]).norm() < 2e-3 * expected[layer].norm(), layer
        assert expected[layer].norm() > 0


@pytest.mark.parametrize("kind", sampled(KINDS))
@pytest.mark.parametrize("place", ["mlp", "resid", "attn+mlp"])
def test_values_found_together_are_those_found_alone(kind, place, monkeypatch):
    model = tiny.bridge(kind)
    contexts = [build_contexts(model, request, ["", *PREFIXES]) for request in REQUESTS]
    # One of them stops early: the others must not notice.
    objective = dataclasses.replace(OBJECTIVE, steps=6, learning_rate=0.3, clamp=4.0)
    alone = [optimise_value(model, batch, 1, objective, place=place) for batch in contexts]
    threshold = alone[1].losses[3] + 1e-4
    objective = dataclasses.replace(objective, loss_threshold=threshold)
    alone = [optimise_value(model, batch, 1, objective, place=place) for batch in contexts]
    assert len({len(value.losses) for value in alone}) > 1
    # All in one pass, in passes of few tokens, and in passes without padding.
    for budget, padding in ((16_384, 16_384), (400, 16_384), (16_384, 0)):
        monkeypatch.setitem(rows._PADDING, "cpu", padding)
        together = optimise_values(model, contexts, 1, objective, place=place, budget=budget)
        for one, other in zip(together, alone, strict=True):
            assert one.losses == pytest.approx(other.losses, abs=2e-4)
            assert one.stopped == other.stopped
            torch.testing.assert_close(one.value, other.value, atol=1e-3, rtol=0)
            torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=0)
            torch.testing.assert_close(one.written, other.written, atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", [0, 3, 64])
def test_requests_are_grouped_by_what_they_pad(llama, padding):
    contexts = [build_contexts(llama, request, ["", *PREFIXES]) for request in REQUESTS * 3]
    groups = passes([one.extent for one in contexts], Budget(tokens=16_384, padding=padding), gradients=True)
    assert sorted(index for group in groups for index in group) == list(range(9))
    suffixes = [[max(len(row.tokens) - row.site for row in contexts[i].rows) for i in group] for group in groups]
    for own in suffixes:
        assert all((after - before) * n * 4 <= padding for n, (before, after) in enumerate(pairwise(own), start=1))
    # No more groups than that asks for: the next one's first would have padded them too much.
    for own, following in pairwise(suffixes):
        assert (following[0] - own[-1]) * len(own) * 4 > padding
    assert len(groups) == (1 if padding == 64 else len({length for own in suffixes for length in own}))


@pytest.mark.parametrize("kind", KINDS)
def test_emmet_gives_every_mean_key_its_value(kind, prepared):
    model = tiny.bridge(kind)
    update = prepared("EMMET", slack=0.0).fit(model, REQUESTS, progress=False)
    contexts = [build_contexts(model, request, ["", *PREFIXES]) for request in REQUESTS]
    values = optimise_values(model, contexts, 2, OBJECTIVE)
    projection = model.blocks[2].mlp.out
    with torch.no_grad(), update.applied(model):
        for value in values:
            written = projection(halved_mean(value.keys)[None, None])[0, 0]
            torch.testing.assert_close(written, value.value, atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_emmet_reaches_its_values_over_several_layers(kind, prepared):
    model = tiny.bridge(kind)
    fitted = prepared("EMMET", layers=LAYERS, slack=0.0).fit_with(Job(model=model, requests=REQUESTS, progress=False))
    assert len(fitted.update.parameters) == 2
    contexts = [build_contexts(model, request, ["", *PREFIXES]) for request in REQUESTS]
    values = optimise_values(model, contexts, 2, OBJECTIVE)
    name = hook_name("down_out", 2)
    with fitted.update.applied(model):
        found = edit.values.states.read_at_sites(model, contexts, [name], 2)[name]
    for states, value in zip(found, values, strict=True):
        torch.testing.assert_close(halved_mean(states), value.value, atol=2e-3, rtol=0)


def test_memit_without_preservation_reaches_the_value_at_the_last_layer(llama, prepared):
    method = prepared("MEMIT", weight=1e-8, prefixes=())
    fitted = method.fit_with(Job(model=llama, requests=REQUESTS, progress=False))
    contexts = [build_contexts(llama, request, [""]) for request in REQUESTS]
    values = optimise_values(llama, contexts, 2, OBJECTIVE, place="resid")
    name = "blocks.2.hook_resid_post"
    with fitted.update.applied(llama):
        found = edit.values.states.read_at_sites(llama, contexts, [name], 2)[name]
    for state, value in zip(found, values, strict=True):
        torch.testing.assert_close(state[0], value.value, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_order_and_half_precision(name, llama, prepared):
    method = prepared(name)
    update = method.fit(llama, REQUESTS, progress=False)
    turned = method.fit(llama, REQUESTS[::-1], progress=False)
    layer = method.layers[-1]
    expected = dense(llama, update, layer)
    assert (dense(llama, turned, layer) - expected).norm() < 2e-3 * expected.norm()
    half = tiny.bridge("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        found = method.fit(half, REQUESTS, progress=False)
        before = prints(half)
        with found.applied(half):
            assert prints(half) != before
        assert prints(half) == before
    assert torch.nn.functional.cosine_similarity(
        dense(half, found, layer).flatten(), expected.flatten(), dim=0
    ) > 0.5  # fmt: skip


@pytest.mark.parametrize(
    ("method", "n_layers", "layers"),
    [
        (MEMIT(), 32, (4, 5, 6, 7, 8)), (MEMIT(), 4, (0, 1)), (AlphaEdit(), 32, (4, 5, 6, 7, 8)),
        (PMET(), 32, (4, 5, 6, 7, 8)), (EMMET(), 32, (5,)), (EMMET(), 30, (4,)),
    ],
)  # fmt: skip
def test_default_layers_are_a_share_of_the_depth(method, n_layers, layers, llama, monkeypatch):
    monkeypatch.setattr(llama.cfg, "n_layers", n_layers)
    assert method.resolve_layers(llama) == layers


def test_a_result_of_locate_names_the_layers(llama, prepared):
    method = prepared("MEMIT")
    fact = EditRequest(TOWER)
    update = method.fit(llama, fact, layer=Site("mlp", layer=2, position=1), progress=False)
    assert update.info["layers"] == [1, 2]
    assert method.fit(llama, fact, layer=(0, 2), progress=False).info["layers"] == [0, 2]
    trace = locate.causal_trace(llama, TOWER, corruption=locate.GaussianNoise(samples=1), progress=False)
    rome = prepared("ROME")
    assert rome.fit(llama, fact, layer=Site("mlp", layer=0), progress=False).info["layer"] == 0
    neurons = locate.knowledge_neurons(llama, TOWER, steps=3, progress=False)
    patches = locate.patch(llama, TOWER, locate.GaussianNoise(samples=1), sites="mlp_out", progress=False)
    knocked = locate.attention_knockout(llama, TOWER, window=1, progress=False)
    average = locate.average_traces([trace, trace])
    assert rome.fit(llama, fact, layer=patches, progress=False).info["layer"] == patches.best().layer
    for found in (trace, neurons, patches, knocked, average):
        best = found.best()
        assert rome.edited_layers(llama, found) == (best.layer,)
        assert method.edited_layers(llama, found)[-1] == best.layer
    for wrong, message in (((3, 1), "ascending order"), (True, "a Site, or a result of locate"), (9, "out of range")):
        with pytest.raises(SiteError, match=message):
            method.fit(llama, fact, layer=wrong, progress=False)


def test_nas_gives_values_the_norm_of_the_anchor(llama, prepared):
    contexts = [build_contexts(llama, request, ["", *PREFIXES]) for request in REQUESTS]
    values = optimise_values(llama, contexts, 2, OBJECTIVE, place="resid")
    anchor = reference_norm(values)
    assert anchor == pytest.approx(sum(float((v.written + v.value - v.initial).norm()) for v in values) / 3)
    for changed, value in zip(NAS().values(values, 2.5), values, strict=True):
        own = changed.written + changed.value - changed.initial
        assert float(own.norm()) == pytest.approx(2.5, rel=1e-4)
        before = value.written + value.value - value.initial
        assert torch.nn.functional.cosine_similarity(own, before, dim=0) > 0.9999
    explicit = prepared("MEMIT", stabilisers=(NAS(norm=anchor),)).fit(llama, REQUESTS, progress=False)
    usual = prepared("MEMIT", stabilisers=(NAS(),)).fit(llama, REQUESTS, progress=False)
    torch.testing.assert_close(dense(llama, usual, 2), dense(llama, explicit, 2))
    assert not torch.allclose(
        dense(llama, usual, 2), dense(llama, prepared("MEMIT").fit(llama, REQUESTS, progress=False), 2), atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:The key statistics were collected")
def test_blue_edits_first_and_last_layer_each_to_its_own_value(llama, prepared):
    method = dataclasses.replace(prepared("MEMIT"), layers=(0, 1, 2), stabilisers=(BLUE(),))
    statistics = collect_statistics(llama, (0, 2), corpus=method.corpus, tokens=1500, progress=False)
    method = dataclasses.replace(method, statistics=statistics)
    fitted = method.fit_with(Job(model=llama, requests=REQUESTS, progress=False))
    assert fitted.update.info["layers"] == [0, 2]
    alone = dataclasses.replace(method, stabilisers=())
    first = alone.fit(llama, REQUESTS, layer=(0,), progress=False)
    torch.testing.assert_close(dense(llama, fitted.update, 0), dense(llama, first, 0))
    with first.applied(llama):
        second = alone.fit(llama, REQUESTS, layer=(2,), progress=False)
    torch.testing.assert_close(dense(llama, fitted.update, 2), dense(llama, second, 2))
    spread = alone.fit(llama, REQUESTS, layer=(0, 2), progress=False)
    assert not torch.allclose(dense(llama, fitted.update, 0), dense(llama, spread, 0), atol=1e-6)


def test_encore_stops_early_and_shrinks_the_change(llama, prepared):
    plain = prepared("MEMIT").fit(llama, REQUESTS, progress=False)
    method = prepared("MEMIT", stabilisers=(ENCORE(strength=5.0),))
    update = method.fit(llama, REQUESTS, progress=False)
    assert update.info["objective"]["stop"] == "first"
    assert update.info["stabilisers"] == [{"name": "ENCORE", "strength": 5.0}]
    assert dense(llama, update, 1).norm() < dense(llama, plain, 1).norm()


def wide(parameter):
    """A matrix with a largest singular value as trained models have it, and that value."""
    weight = parameter.detach().double()
    weight = weight * (3.0 / torch.linalg.matrix_norm(weight, 2))
    return weight.float(), 3.0


def test_prune_over_many_batches_ends_where_pruning_once_does(llama):
    weight, limit = wide(down_projection(llama, 1).parameter)
    generator = torch.Generator().manual_seed(0)
    sizes = (8.0, 0.01, 3.0, 0.01, 12.0)
    batches = [
        edit.LowRank(
            left=size * torch.randn(32, 2, generator=generator), right=torch.randn(2, 80, generator=generator) / 8
        )
        for size in sizes
    ]
    earlier, raw = None, None
    for batch in batches:
        now = weight if earlier is None else weight + earlier.dense()
        change = PRUNE().change(batch, now, earlier)
        earlier = change if earlier is None else earlier.joined(change)
        raw = batch if raw is None else raw.joined(batch)
        left, values, right = torch.linalg.svd(raw.dense().double(), full_matrices=False)
        lowered = torch.where(values > limit, values.log() - math.log(limit) + limit, values)
        torch.testing.assert_close(earlier.dense().double(), left * lowered @ right, atol=1e-4, rtol=1e-4)
    assert float(values[0]) > 10 * limit


def test_prune_never_enlarges_a_value(llama):
    weight = down_projection(llama, 1).parameter.detach()
    weight = weight * (0.3 / torch.linalg.matrix_norm(weight, 2))
    u, _, v = torch.linalg.svd(weight, full_matrices=False)
    delta = edit.LowRank(left=u[:, :2] * torch.tensor([9.0, 0.31]), right=v[:2])
    found = torch.linalg.svdvals(PRUNE().change(delta, weight, None).dense())[:2]
    torch.testing.assert_close(found, torch.tensor([0.3 + math.log(30), 0.31]), atol=1e-4, rtol=1e-4)


def test_prune_leaves_small_singular_values_alone_and_lowers_large_ones(llama):
    weight, limit = wide(down_projection(llama, 1).parameter)
    u, _, v = torch.linalg.svd(
        torch.randn(*weight.shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    sizes = torch.tensor([9.0 * limit, 2.0 * limit, 0.5 * limit])
    delta = edit.LowRank(left=u[:, :3] * sizes, right=v[:3])
    found = torch.linalg.svdvals(PRUNE().change(delta, weight, None).dense())[:4]
    expected = [limit + torch.tensor(9.0).log(), limit + torch.tensor(2.0).log(), 0.5 * limit, 0.0]
    torch.testing.assert_close(found, torch.tensor([float(one) for one in expected]), atol=1e-3, rtol=1e-4)
    small = edit.LowRank(left=u[:, :1] * 0.9 * limit, right=v[:1])
    assert PRUNE().change(small, weight, None) is small
    # What counts is the accumulated change: 0.9 and 0.3 of the limit in one direction are 1.2 of it together.
    more = edit.LowRank(left=u[:, :1] * 0.3 * limit, right=v[:1])
    with torch.no_grad():
        edited = weight + small.dense()
    total = small.joined(PRUNE().change(more, edited, small)).dense()
    value = torch.linalg.svdvals(total)[0]
    assert float(value) == pytest.approx(limit + float(torch.tensor(1.2).log()), rel=1e-3)


@pytest.mark.parametrize("share", [0.4, 0.05])
def test_rect_keeps_its_share_of_the_entries_exactly(share, llama):
    weight = down_projection(llama, 1).parameter
    generator = torch.Generator().manual_seed(0)
    delta = edit.LowRank(left=torch.randn(32, 2, generator=generator), right=torch.randn(2, 80, generator=generator))
    found = RECT(share=share).change(delta, weight, None).dense()
    kept = found != 0
    assert int(kept.sum()) == round(share * 32 * 80)
    assert torch.equal(found[kept], delta.dense()[kept])
    relative = (delta.dense() / weight).abs()
    assert relative[kept].min() >= relative[~kept].max()


@pytest.mark.parametrize("stabiliser", [NAS(), ENCORE(), BLUE(), PRUNE(), RECT()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", [*METHODS, "ROME"])
def test_every_stabiliser_goes_with_every_method(name, stabiliser, llama, prepared):
    method = prepared(name, stabilisers=(stabiliser,))
    before = prints(llama)
    update = method.fit(llama, REQUESTS[:2], progress=False)
    assert prints(llama) == before
    assert update.info["stabilisers"][0]["name"] == type(stabiliser).__name__
    with update.applied(llama):
        assert prints(llama) != before
    assert prints(llama) == before


@pytest.mark.parametrize("kind", KINDS)
def test_kn_rewrites_the_neurons_that_attribution_finds(kind):
    model = tiny.bridge(kind)
    before = prints(model)
    method = KN(steps=4, threshold=0.3, share=0.3, most=3, prefix_lengths=((2, 2),))
    update = method.fit(model, REQUESTS[:2], progress=False)
    assert prints(model) == before
    embedding = model.unembed.original_component.weight.detach()
    for request, edited in zip(REQUESTS, update.info["edits"], strict=False):
        old, new = (tiny.tokenizer()(" " + text)["input_ids"][0] for text in (request.fact.target, request.target_new))
        for layer, neuron in edited["neurons"]:
            column = dense(model, update, layer)[:, neuron].float()
            others = [e for e in update.info["edits"] if e is not edited and [layer, neuron] in e["neurons"]]
            if not others:
                torch.testing.assert_close(column, 2 * embedding[new] - embedding[old], atol=1e-5, rtol=1e-5)
    touched = {tuple(n) for edited in update.info["edits"] for n in edited["neurons"]}
    for layer in update.info["layers"]:
        columns = dense(model, update, layer).norm(dim=0).nonzero().flatten().tolist()
        assert {(layer, column) for column in columns} <= touched


def test_kn_attributes_under_given_texts(llama, monkeypatch):
    monkeypatch.setattr(rewriting, "sample_prefixes", lambda *_: pytest.fail("it sampled"))
    found = KN(prefixes=("I am. ",)).fit(llama, [REQUESTS[0]], progress=False)
    assert found.info["prefixes"] == ["I am. "]
    asked = KN().fit(llama, [EditRequest(dataclasses.replace(TOWER, paraphrases=("{} is in",)))], progress=False)
    assert asked.info["prefixes"] == []


def test_kn_takes_each_facts_own_neurons_from_scores(llama):
    method = KN(steps=4, threshold=0.3, share=0.3, most=3)
    scores = locate.knowledge_neurons(llama, [TOWER, LOUVRE], steps=4, threshold=0.3, progress=False)
    both = method.fit(llama, REQUESTS[:2], layer=scores, progress=False).info["edits"]
    assert both[0]["neurons"] != both[1]["neurons"]
    each = [one.info["edits"][0] for one in method.fit_each(llama, REQUESTS[:2], layer=scores, progress=False)]
    assert [one["neurons"] for one in each] == [one["neurons"] for one in both]
    other = locate.knowledge_neurons(llama, TOWER, steps=3, threshold=0.1, progress=False)
    info = method.fit(llama, REQUESTS[0], layer=other, progress=False).info
    assert (info["steps"], info["threshold"]) == (3, 0.1)
    with pytest.raises(FactError, match=r"Big Ben.*: the neurons given are of other facts"):
        method.fit(llama, REQUESTS[2], layer=scores, progress=False)


def test_kn_refuses_stabilisers_of_values(llama):
    with pytest.raises(NumericsError, match=r"NAS acts on optimised values, and KN has none\. Use PRUNE or RECT"):
        KN(stabilisers=(NAS(),)).fit(llama, REQUESTS, progress=False)
    quick = KN(threshold=0.99, share=0.99, steps=2, prefix_lengths=((2, 1),))
    prefixes = edit.sample_prefixes(llama, ((2, 1),))[1:]
    found = locate.knowledge_neurons(llama, TOWER, prefixes=prefixes, steps=2, threshold=0.99, progress=False)
    away = int((found.kept.sum("neuron").isel(fact=0) == 0).values.argmax())
    assert float(found.kept.sel(layer=away).sum()) == 0
    with pytest.raises(NumericsError, match=rf"no neuron of layers \[{away}\] passes 0.99 .* allow more layers"):
        quick.fit(llama, REQUESTS[:1], layer=away, progress=False)


def test_kn_lowers_the_share_until_enough_neurons_pass(llama):
    strict = KN(threshold=0.5, share=0.99, least=3, steps=2, prefix_lengths=((2, 3),))
    update = strict.fit(llama, REQUESTS[:1], progress=False)
    assert len(update.info["edits"][0]["neurons"]) >= 3
    single = dataclasses.replace(strict, least=0)
    assert len(single._neurons(locate.knowledge_neurons(llama, TOWER, steps=2, progress=False), 0, None)) >= 1


@pytest.mark.parametrize("name", [*METHODS, "KN"])
def test_bad_requests_are_refused_before_anything_happens(name, llama, prepared):
    method = KN() if name == "KN" else prepared(name)
    with pytest.raises(FactError, match="There is nothing to edit; give at least one EditRequest"):
        method.fit(llama, [])
    other = dataclasses.replace(TOWER, target_new="London")
    with pytest.raises(FactError, match=r"1 request about the same subject and relation .*\n.*Rome  ≠ "):
        method.fit(llama, [*REQUESTS, EditRequest(other)])
    with pytest.raises(FactError, match="and again"):
        method.fit(llama, [*REQUESTS, REQUESTS[0]])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MEMIT(weight=0.0), r"weight: must be positive, found 0\.0"),
    (lambda: PMET(weight=float("nan")), "weight: must be positive, found nan"),
    (lambda: EMMET(weight=-1.0), r"weight: must be positive, found -1\.0"),
    (lambda: EMMET(slack=-0.1), r"slack: must be 0 or more, found -0\.1"),
    (lambda: AlphaEdit(ridge=0.0), r"ridge: must be positive, found 0\.0"),
    (lambda: AlphaEdit(relative_ridge=-1.0), r"relative_ridge: must be positive, found -1\.0"),
    (lambda: AlphaEdit(energy=0.0), r"energy: must be positive, found 0\.0"),
    (lambda: NAS(norm=0.0), r"norm: must be positive, found 0\.0"),
    (lambda: ENCORE(strength=-1.0), r"strength: must be 0 or more, found -1\.0"),
    (lambda: RECT(share=2.0), r"share: must be above 0 and at most 1, found 2\.0"),
    (lambda: ROME(prefix_lengths=((0, 5),)), r"both 1 or more, such as .*; found \(\(0, 5\),\)"),
    (lambda: KN(prefix_lengths=((10, -5),)), "pairs of a length and a count, both 1 or more"),
    (lambda: AlphaEdit(energy=1.5), r"energy: must be a share below 1, found 1\.5"),
    (lambda: MEMIT(statistics_tokens=0), "statistics_tokens: must be 1 or more, found 0"),
])  # fmt: skip
def test_hyperparameters_that_make_no_sense_are_refused(make, message):
    with pytest.raises(LocateError, match=message):
        make()


@pytest.mark.parametrize(("name", "value", "message"), [
    ("stabilisers", (NAS,), r"stabilisers: give several, or one as \(edit.NAS\(\),\); found \(<class"),
    ("stabilisers", NAS(), r"stabilisers: give several, or one as .* found NAS\(norm=None\)"),
    ("prefix_lengths", (5, 2), r"prefix_lengths: give pairs .* found \(5, 2\)"),
    ("prefixes", "I am. ", r"prefixes: give several texts, or one as \('I am\. ',\)"),
    ("layers", 4, r"layers: give several, or one as \(4,\); found 4"),
    ("precision", "bf16", "precision must be one of model, bfloat16, found 'bf16'"),
])  # fmt: skip
def test_one_in_place_of_several_is_told(name, value, message):
    with pytest.raises(LocateError, match=message):
        MEMIT(**{name: value})


def test_numbers_from_arrays_are_taken(llama):
    assert type(inspect.unwrap(_whole)(np.int64(1))) is int
    assert type(inspect.unwrap(check_layer)(llama, np.int64(-1))) is int
    assert type(MEMIT(seed=np.int64(3)).seed) is int
    assert ROME(layer=Site("mlp", layer=2)).edited_layers(llama) == (2,)


@pytest.mark.parametrize("number", [1e5, np.int64(100_000), torch.tensor(100_000)])
def test_whole_numbers_may_be_of_any_type(number):
    found = whole("tokens", number)
    assert (type(found), found) == (int, 100_000)
    for wrong in (1.5, "7", None, float("nan")):
        with pytest.raises(NumericsError, match="tokens: must be a whole number, found"):
            whole("tokens", wrong)


def test_no_layers_are_not_the_usual_ones(llama):
    with pytest.raises(SiteError, match=r"layers: give one or more layers in ascending order, each once; found \(\)"):
        MEMIT(layers=()).edited_layers(llama)


@pytest.mark.parametrize("name", [*METHODS, "ROME"])
def test_half_precision_of_both_kinds(name, prepared, corpus):
    half = tiny.bridge("llama", dtype=torch.float16)
    options = {"objective": OBJECTIVE, "prefixes": PREFIXES, "corpus": corpus, "statistics_tokens": 1500}
    method = ROME(layer=LAYERS[-1], **options) if name == "ROME" else prepared(name)
    before = prints(half)
    update = method.fit(half, REQUESTS, progress=False)
    whole = method.fit(tiny.bridge("llama"), REQUESTS, progress=False)
    assert prints(half) == before
    layer = LAYERS[-1]
    found, expected = dense(half, update, layer).flatten(), dense(half, whole, layer).flatten()
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.9


@pytest.mark.parametrize(("name", "keys"), [("MEMIT", 20), ("AlphaEdit", 40), ("EMMET", 20)])
def test_statistics_are_sized_by_the_method(name, keys, llama, prepared, monkeypatch):
    asked = []

    def collect(*arguments, tokens, **options):
        asked.append(tokens)
        return collect_statistics(*arguments, tokens=tokens, **options)

    monkeypatch.setattr(locate_then_edit, "collect_statistics", collect)
    prepared(name, statistics_tokens=None).statistics_for(llama, progress=False)
    assert asked == [keys * 80]


@pytest.mark.parametrize("name", [*METHODS, "ROME"])
def test_too_few_keys_are_refused_with_and_without_a_ridge(name, llama, prepared, corpus):
    options = {"objective": OBJECTIVE, "prefixes": PREFIXES, "corpus": corpus}
    known = collect_statistics(llama, LAYERS, corpus=corpus, tokens=1500, progress=False)
    few = {layer: dataclasses.replace(one, count=60) for layer, one in known.items()}
    for stabilisers in ((), (ENCORE(),)):
        changes = {"statistics": few, "stabilisers": stabilisers}
        method = ROME(layer=1, **options, **changes) if name == "ROME" else prepared(name, **changes)
        with pytest.raises(NumericsError, match=r"60 keys of dimension 80 .* at least 160, better 800"):
            method.fit(llama, REQUESTS, progress=False)


def test_alphaedit_takes_a_threshold_for_small_eigenvalues(llama, prepared):
    energetic = prepared("AlphaEdit", layers=LAYERS[-1:])
    statistics = energetic.statistics_for(llama, progress=False)[LAYERS[-1]]
    basis = statistics.null_space(energy=energetic.energy)
    threshold = float(statistics.eigen()[0][basis.shape[1]])  # the first that the energy leaves out
    same = prepared("AlphaEdit", layers=LAYERS[-1:], threshold=threshold)
    expected = energetic.fit(llama, REQUESTS, progress=False)
    torch.testing.assert_close(
        dense(llama, same.fit(llama, REQUESTS, progress=False), LAYERS[-1]), dense(llama, expected, LAYERS[-1])
    )
    fewer = prepared("AlphaEdit", layers=LAYERS[-1:], threshold=threshold / 10)
    assert not torch.allclose(
        dense(llama, fewer.fit(llama, REQUESTS, progress=False), LAYERS[-1]), dense(llama, expected, LAYERS[-1]),
        atol=1e-5,
    )  # fmt: skip


def test_a_failing_optimisation_names_request_and_step(llama, prepared):
    before = prints(llama)
    method = prepared("MEMIT", objective=dataclasses.replace(OBJECTIVE, learning_rate=float("inf")))
    with pytest.raises(NumericsError, match=r"^(In Europe|The Louvre|The city).*: The value's loss is nan at step 1"):
        method.fit(llama, REQUESTS, progress=False)
    assert prints(llama) == before


def test_a_failure_in_a_later_layer_leaves_nothing(llama, prepared, monkeypatch):
    before, done = prints(llama), []
    real = MEMIT.solve

    def fail_on_second(self, *arguments):
        if done:
            raise NumericsError("It is asked to fail.")
        done.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(MEMIT, "solve", fail_on_second)
    with pytest.raises(NumericsError, match="Layer 2: It is asked to fail"):
        prepared("MEMIT").fit(llama, REQUESTS, progress=False)
    assert done
    assert prints(llama) == before


def test_statistics_must_cover_the_layers(llama, prepared):
    method = prepared("MEMIT")
    one = collect_statistics(llama, [1], corpus=method.corpus, tokens=1500, progress=False)
    with pytest.raises(DataError, match="of layer 1, the edit is in layer 2"):
        dataclasses.replace(method, statistics=one).fit(llama, REQUESTS, progress=False)


@pytest.mark.parametrize("name", [*METHODS, "ROME"])
def test_each_by_itself_is_what_fit_gives_for_one(name, llama, prepared):
    other = prepared("EMMET" if name == "ROME" else name)
    method = other
    if name == "ROME":
        method = ROME(layer=2, objective=OBJECTIVE, prefixes=PREFIXES, corpus=other.corpus, statistics_tokens=1500)
    again = EditRequest(TOWER, "London")
    before = prints(llama)
    # The last two are edited at one layer, the others at one of their own each.
    places = [Site("mlp", layer=2), [1], *[Site("mlp", layer=2)] * (len(REQUESTS) - 1)]
    found = list(method.fit_each(llama, [*REQUESTS, again], layer=places, progress=False))
    assert prints(llama) == before
    for update, request, place in zip(found, [*REQUESTS, again], places, strict=True):
        alone = method.fit(llama, request, layer=place, progress=False)
        assert update.parameters == alone.parameters
        assert [edited["request"] for edited in update.info["edits"]] == [request.describe()]
        layer = alone.info["layers"][-1]
        assert (dense(llama, update, layer) - dense(llama, alone, layer)).norm() < 2e-3 * dense(
            llama, alone, layer
        ).norm()


@pytest.mark.parametrize("name", ["MEMIT", "ROME"])
def test_methods_with_one_objective_share_its_values(name, llama, prepared):
    one, other = prepared("MEMIT"), prepared("AlphaEdit")
    if name == "ROME":
        one = ROME(layer=2, objective=OBJECTIVE, prefixes=PREFIXES, corpus=one.corpus, statistics_tokens=1500)
        other = dataclasses.replace(one, original=True)
    values = one.values_for(llama, REQUESTS, progress=False)
    shared = list(other.fit_each(llama, REQUESTS, values=values, progress=False))
    for update, own in zip(shared, other.fit_each(llama, REQUESTS, progress=False), strict=True):
        assert update.parameters == own.parameters
        for parameter in own.parameters:
            assert torch.equal(update.delta(parameter), own.delta(parameter))
    with pytest.raises(FactError, match=r"found 1 for 3 requests\. Find them with values_for"):
        list(other.fit_each(llama, REQUESTS, values=values[:1], progress=False))
    with pytest.raises(SiteError, match="2 places for 3 requests"):
        list(other.fit_each(llama, REQUESTS, layer=[[1], [2]], progress=False))


def test_values_of_something_else_are_refused(llama, prepared):
    memit, rome = prepared("MEMIT"), prepared("ROME")
    values = memit.values_for(llama, REQUESTS[:2], progress=False)
    for method, given, message in (
        (dataclasses.replace(memit, layers=(1,)), values, r"at layer 1 \(resid\) there is one found for .* at layer 2"),
        (rome, values, r"at layer 2 \(mlp\) there is one found for .* at layer 2 \(resid\)"),
        (memit, values[::-1], "for 'In Europe, The Eiffel Tower .*' at layer 2 .* found for 'The Louvre stands in"),
        (memit, values[:1], "one per request is needed, found 1 for 2 requests"),
    ):
        with pytest.raises(FactError, match=message):
            list(method.fit_each(llama, REQUESTS[:2], values=given, progress=False))


def test_facts_stand_for_their_own_counterfactuals(llama, prepared):
    method = prepared("MEMIT")
    name = down_projection(llama, 1).name
    wanted = method.fit(llama, REQUESTS[:2], progress=False).delta(name)
    assert torch.equal(method.fit(llama, [TOWER, LOUVRE], progress=False).delta(name), wanted)
    with pytest.raises(FactError, match="has no new target"):
        method.fit(llama, dataclasses.replace(TOWER, target_new=None), progress=False)


def test_a_result_without_one_best_site_names_no_layer(llama, prepared):
    class Several:
        def best(self, kind):
            raise AssertionError

    with pytest.raises(SiteError, match=r"a Several has no one best site; give one of them, such as where.best"):
        prepared("MEMIT").fit(llama, REQUESTS, layer=Several())


@pytest.mark.parametrize("name", [*METHODS, "ROME"])
def test_a_layer_whose_state_reaches_no_answer_is_refused(name, llama, prepared):
    before = {key: fingerprint(parameter) for key, parameter in hf_parameters(llama).items()}
    with pytest.raises(NumericsError, match="What layer 3 gives at the subject's last token reaches no answer"):
        prepared(name).fit(llama, REQUESTS[:1], layer=3, progress=False)
    assert {key: fingerprint(parameter) for key, parameter in hf_parameters(llama).items()} == before
    # A prompt that its subject ends is answered from that very state.
    ending = EditRequest(Fact(prompt="The city of {}", subject="Big Ben", target="London"), "Paris")
    assert prepared(name).fit(llama, ending, layer=3, progress=False).norm(down_projection(llama, 3).name) > 0


@pytest.mark.parametrize("name", ["MEMIT", "ROME"])
def test_edits_that_share_a_key_are_told(name, llama, prepared):
    other = EditRequest(dataclasses.replace(TOWER, prompt="In Europe, {} stands in", target_new="London"))
    with pytest.warns(UserWarning, match=r"1 pair of edits at one key(.|\n)*stands in: Paris → London  and"):
        prepared(name).fit(llama, [REQUESTS[0], REQUESTS[1], other], progress=False)
    with edit.EditSession(llama, prepared(name)) as session:
        session.edit(REQUESTS[:2], progress=False)
        with pytest.warns(UserWarning, match=r"stands in: Paris → London  and  edit 0 of those before"):
            session.edit(other, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ values did not reach")
        prepared(name).fit(llama, REQUESTS, progress=False)


def test_numbers_from_arrays_become_plain_hyperparameters(llama, prepared):
    @hyperparameters
    class Some:
        steps: Count
        rate: float
        lengths: tuple[Any, ...]
        other: object = None

    some = Some(steps=np.int64(2), rate=torch.tensor(0.5), lengths=[[np.int64(3), 4]], other=np.arange(2))
    assert repr(some).endswith("Some(steps=2, rate=0.5, lengths=((3, 4),), other=(0, 1))")
    some = Some(steps=2.0, rate=np.array(0.5), lengths=range(2))
    assert repr(some).endswith("Some(steps=2, rate=0.5, lengths=(0, 1), other=None)")
    with pytest.raises(NumericsError, match=r"steps: must be a whole number, found 0\.5"):
        Some(steps=torch.tensor(0.5), rate=1, lengths=())
    with pytest.raises(NumericsError, match="steps: must be 1 or more, found 0"):
        Some(steps=0, rate=1, lengths=())
    with pytest.raises(NumericsError, match="steps: must be 3 or more, found 2"):
        whole("steps", np.int64(2), least=3)
    # Every kind of hyperparameter goes through it.
    number = np.float64(0.5)
    objective = ValueObjective(steps=2, learning_rate=number)
    method = prepared("MEMIT", objective=objective, weight=number, stabilisers=(RECT(share=number),))
    assert "float64" not in repr(method)
    json.dumps(dict(method.fit(llama, REQUESTS[:1], progress=False).info))


def test_methods_are_the_dataclasses_that_they_look_like(llama):
    for method in (*METHODS.values(), ROME(layer=1), KN(), ValueObjective(), NAS(norm=2.0)):
        fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
        own = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        assert repr(method) == f"{type(method).__name__}({own})"
        assert dataclasses.replace(method) == method == pickle.loads(pickle.dumps(method))
        assert hash(dataclasses.replace(method)) == hash(method)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.seed = 1
        shown = str(inspect.signature(type(method)))
        assert list(inspect.signature(type(method)).parameters) == list(fields)
        assert not [word for word in ("Annotated", "Told", "FieldInfo") if word in shown]
    assert [field.name for field in dataclasses.fields(MEMIT)][:5] == [
        "prefix_lengths", "prefixes", "stabilisers", "seed", "budget",
    ]  # fmt: skip
    for wrong in ({"wieght": 1.0}, {"layer": 2}):
        (name,) = wrong
        with pytest.raises(TypeError, match=f"MEMIT: unexpected keyword argument '{name}'"):
            MEMIT(**wrong)
    for call in (lambda: MEMIT(3.0), lambda: ValueObjective(20)):
        with pytest.raises(TypeError, match="positional argument"):
            call()
    for name, value in (("remember", "no"), ("corpus", 3), ("objective", {"steps": 3}), ("prefixes", (1,))):
        with pytest.raises(NumericsError, match=rf"^{name}: .*, found "):
            MEMIT(**{name: value})


def test_kn_needs_first_tokens_that_differ(llama):
    request = EditRequest(LOUVRE, "Paris in France")
    with pytest.raises(FactError, match=r"first tokens, and both targets of 1 request(.|\n)*Paris → Paris in France"):
        KN().fit(llama, request, progress=False)
    with edit.EditSession(llama, KN()) as session, pytest.raises(FactError, match="both targets of 1 request"):
        session.edit([REQUESTS[0], request], batch_size=1, progress=False)
    for wrong in ({"most": 0}, {"least": -1}, {"steps": 0}, {"share": -1.0}, {"write": float("nan")}):
        (name,) = wrong
        with pytest.raises(NumericsError, match=f"{name}.*: must be"):
            KN(**wrong)


def test_alphaedits_ridge_is_the_energy_in_the_null_space(llama, prepared):
    method = prepared("AlphaEdit", ridge=None)
    statistics = method.statistics_for(llama, progress=False)[1]
    basis = statistics.null_space(energy=method.energy)
    held = float((basis * (statistics.second_moment @ basis)).sum())
    keys, residuals = torch.randn(3, 80), torch.randn(3, 32)
    none = torch.zeros(0, 80)
    explicit = dataclasses.replace(method, ridge=held)
    for found, wanted in zip(
        solved(method, keys, residuals, statistics, none),
        solved(explicit, keys, residuals, statistics, none),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
