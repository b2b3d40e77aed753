"""Each method of scoring edges written out on whole passes; pairs averaged; what is refused."""

import numpy as np
import pytest
import torch

import locate
from locate import FactError, LocateError, ModelError
from locate.circuits.gathering import check_flat
from locate.circuits.written import tellable
from locate.engine.rules import GRADIENT, RELP, Ruling
from tests import tiny
from tests.locate.circuits import literal
from tests.locate.circuits.test_scoring import contrast, metric, model, prompts, scores, some_edges

STEPS = 3


def frozen(norm):
    """The norm with its scale as a constant."""

    def hook(states):
        if hasattr(norm, "bias"):
            states = states - states.mean(-1, keepdim=True)
            scale = (states.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt().detach()
            return states / scale * norm.weight + norm.bias
        return states / (states.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt().detach() * norm.weight

    return hook


def gradient(bridge, reader, tokens, before=(), rules=GRADIENT):
    """Of the metric with respect to a shift of what one reader reads."""
    moved = torch.zeros(1, tokens.shape[1], bridge.cfg.d_model, requires_grad=True)
    last = [("blocks.2.hook_resid_post", lambda value, hook: value + moved)]
    hooks = last if reader.name == "logits" else literal.edge_hooks(bridge, reader, moved, parallel=False)
    ruling = Ruling.of(bridge, rules)
    with ruling.making(), bridge.hooks(fwd_hooks=[*before, *hooks]), ruling.taking():
        measured = metric(bridge(tokens)[:, -1]).sum()
    return torch.autograd.grad(measured, moved)[0]


def on_the_way(bridge, hook, clean, corrupt):
    """Hooks that put what is at a hook point at each step between the two runs."""
    own, its = (literal.watched(bridge, tokens, [hook])[1][hook] for tokens in (clean, corrupt))
    shares = [step / STEPS for step in range(1, STEPS + 1)]
    return [[(hook, lambda value, hook, share=share: its + share * (own - its))] for share in shares]


@pytest.mark.parametrize("method", ["eap", "eap-relp", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_method_is_as_written_out(kind, method, monkeypatch):
    bridge, graph = model(kind), tellable(model(kind))
    clean, corrupt = (ids[None] for ids in prompts())
    own, theirs = literal.added(bridge, clean), literal.added(bridge, corrupt)
    found = scores(kind, method, steps=STEPS).total
    size = float(found.abs().max())
    rules = RELP if method == "eap-relp" else GRADIENT
    if rules is RELP:
        reading = literal.reading
        monkeypatch.setattr(literal, "reading", lambda *args: frozen(reading(*args)))
    for i, j in some_edges(graph, 8):
        writer, reader = graph.writers[i], graph.readers[j]
        hook = "blocks.0.hook_in" if writer.name == "embed" or method == "eap-ig-inputs" else writer.hook
        passes = [(clean, ())]
        if "-ig-" in method:
            passes = [(clean, before) for before in on_the_way(bridge, hook, clean, corrupt)]
        if method == "clean-corrupted":
            passes = [(clean, ()), (corrupt, ())]
        each = [gradient(bridge, reader, tokens, before, rules) for tokens, before in passes]
        expected = ((theirs[writer.name] - own[writer.name]) * torch.stack(each).mean(0)).sum()
        assert float(found[i, j]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4 * size), (writer, reader)
    if method != "eap":
        assert float((found - scores(kind, "eap").total).abs().max()) > 1e-2 * size


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "eap-ig-activations"])
def test_positions_add_up(method):
    found = scores("llama", method, steps=2, by_position=True)
    torch.testing.assert_close(found.by_position.sum(0), scores("llama", method, steps=2).total, rtol=1e-4, atol=1e-5)
    assert float(found.by_position[:4].abs().max()) == 0  # before the first difference
    assert int((found.by_position.abs().amax((1, 2)) > 0).sum()) > 2


def find(clean, corrupt=None, kind="llama", **options):
    return locate.find_circuit(model(kind), clean, corrupt, **{"progress": False, "metric": metric, **options})


def test_pairs_are_averaged_whatever_their_lengths():
    clean, corrupt = prompts()
    second = clean.clone()
    second[1] = int(corrupt[4])
    pairs = [(one.tolist(), corrupt[: len(one)].tolist()) for one in (clean, second, clean[:8])]
    each = np.stack([find(*pair, method="eap").scores.values for pair in pairs])
    both = find(*map(list, zip(*pairs, strict=True)), method="eap")
    size = np.nanmax(np.abs(each))
    np.testing.assert_allclose(both.scores, each.mean(0), rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(both.standard_error, each.std(0, ddof=1) / 3**0.5, rtol=1e-2, atol=1e-4 * size)
    assert both.info["lengths"] == [8, len(clean)]
    assert np.nanmax(each.std(0)) > 1e-2 * size
    with pytest.raises(FactError, match="by_position: prompts need one length"):
        find(*map(list, zip(*pairs, strict=True)), by_position=True)


def test_rows_of_noise_are_averaged():
    fact = locate.Fact(prompt="I think that {} is in the city of", subject="Big Ben", target="London")
    noise = locate.GaussianNoise(samples=3)
    found = find(fact, noise, method="eap-ig-inputs", steps=2)
    names = list(contrast("llama").source.kept)
    own = locate.Contrast.of(
        model("llama"), fact, noise, direction="break", keep=names, keep_target=names, metric=metric
    )
    each = [find(own.only(torch.arange(3) == row), method="eap-ig-inputs", steps=2).scores.values for row in range(3)]
    size = np.nanmax(np.abs(each))
    np.testing.assert_allclose(found.scores, np.mean(each, axis=0), rtol=1e-4, atol=1e-5 * size)
    assert np.nanmax(np.std(each, axis=0)) > 1e-3 * size


def test_what_has_no_circuit_is_refused():
    clean, corrupt = prompts()
    paired = locate.tasks.PairedPrompts.of(["In Paris"], ["In Rome"], answers=[("the", "a")])
    for pair, options, problem in (
        ((clean, clean), {}, "are the same"), ((clean.tolist(), corrupt[:-1].tolist()), {}, "tokens"),
        ((clean, corrupt), {"steps": 0}, "steps: must be 1 or more"),
        ((clean, corrupt), {"method": "epa"}, "no method 'epa' to score edges"),
        ((clean, corrupt), {"metric": "rank"}, "gradient"),
        ((clean, corrupt), {"metric": lambda logits: 0 * metric(logits)}, "no edge matters to it"),
    ):  # fmt: skip
        with pytest.raises(LocateError, match=problem):
            find(*pair, **options)
    # By themselves, as the types of find_circuit do not let them in while tests run.
    for pairs, problem in (
        (list(paired), "a list of pairs is not read. Give the clean prompts as pairs"),
        ([paired, paired], "give one PairedPrompts, found a list of 2"),
    ):
        with pytest.raises(FactError, match=problem):
            check_flat(pairs)
    for kind in ("gemma4_text:inputs of each layer", "falcon_h1", "jamba"):
        with pytest.raises(ModelError):
            find(clean, corrupt, kind=kind)


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs"])
def test_half_precision_is_scored(method):
    half = locate.load_model(tiny.hf_model("llama", dtype=torch.bfloat16), tiny.tokenizer())
    clean, corrupt = prompts()
    found, whole = (
        locate.find_circuit(one, clean, corrupt, method=method, metric=metric, progress=False).scores.values
        for one in (half, locate.load_model(tiny.hf_model("llama"), tiny.tokenizer()))
    )
    there = np.isfinite(whole)
    assert np.corrcoef(found[there], whole[there])[0, 1] > 0.98


def test_scores_that_are_rounding_are_refused():
    """A divergence from the clean run has no gradient there."""
    pair = prompts()
    with pytest.raises(LocateError, match="at the run where gradients are taken it has none"):
        find(*pair, method="eap", metric="kl_divergence")
    assert np.nanmax(np.abs(find(*pair, method="eap-ig-inputs", metric="kl_divergence").scores)) > 1e-3


def test_faithfulness_is_a_ratio_of_means_and_areas_are_under_it(tmp_path):
    clean, corrupt = prompts()
    second = clean.clone()
    second[1] = int(corrupt[4])
    pairs = [clean, second], [corrupt, corrupt]
    circuit = find(*pairs, method="eap")
    options = {"sizes": [5, 0.3, 1.0], "random": 2, "metric": metric, "progress": False}
    curve = circuit.faithfulness(model("llama"), *pairs, **options)
    data = curve.data
    low, high = float(data["empty"].mean()), float(data["whole"].mean())
    by_hand = (data["values"].values.mean(1) - low) / (high - low)
    np.testing.assert_allclose(curve.curve, by_hand)
    assert by_hand[-1] == pytest.approx(1, abs=1e-4)
    shares = np.array([5, round(0.3 * circuit.n_possible), circuit.n_possible]) / circuit.n_possible
    heights = (by_hand[1:] + by_hand[:-1]) / 2, (abs(1 - by_hand)[1:] + abs(1 - by_hand)[:-1]) / 2
    assert (curve.cpr, curve.cmd) == pytest.approx([float((one * np.diff(shares)).sum()) for one in heights])
    again = circuit.faithfulness(model("llama"), *pairs, **options)
    other = circuit.faithfulness(model("llama"), *pairs, **{**options, "seed": 1})
    np.testing.assert_array_equal(again.random, curve.random)
    assert np.abs(other.random - curve.random).max() > 1e-3
    loaded = locate.load_faithfulness(curve.save(tmp_path / "curve.nc"))
    assert (loaded.cmd, loaded.cpr) == (curve.cmd, curve.cpr)


def test_circuits_that_cannot_be_tried_are_refused():
    clean, corrupt = prompts()
    circuit = find(clean, corrupt, method="eap")
    quiet = {"metric": metric, "progress": False}
    with pytest.raises(LocateError, match="of another model"):
        circuit.faithfulness(model("gpt2"), clean, corrupt, **quiet)
    with pytest.raises(LocateError, match="edges, found"):
        circuit.faithfulness(model("llama"), clean, corrupt, sizes=[circuit.n_edges + 1], **quiet)
    lengths = [clean.tolist(), clean[:8].tolist()], [corrupt.tolist(), corrupt[:8].tolist()]
    with pytest.raises(LocateError, match="needs prompts of one length"):
        circuit.faithfulness(model("llama"), *lengths, ablation="mean", **quiet)
    with pytest.raises(LocateError, match="no gap for a circuit to fill"):
        circuit.faithfulness(
            model("llama"), clean, corrupt, metric=lambda logits: 1 + 0 * metric(logits), progress=False
        )
