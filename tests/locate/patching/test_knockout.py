"""Attention knockout against whole passes with masked scores, and attribute extraction against its definition."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

import locate
from locate import DataError, Fact, FactError, LocateError, Site, SiteError
from tests import tiny

FACT = Fact(prompt="I think that {} is in the city of", subject="Big Ben", target="Paris", target_new="Rome")


@cache
def model(kind):
    return tiny.bridge(kind, scale=20.0)


def literal(kind, queries, keys, layers, head=None):
    """The answer's probability with these scores at −∞, by one whole pass."""
    bridge = model(kind)
    prompt = locate.encode_fact(bridge, FACT)

    def block(value, hook):
        value = value.clone()
        heads = slice(None) if head is None else head
        for query in queries:
            for key in keys:
                if key <= query:
                    value[:, heads, query, key] = -torch.inf
        return value

    hooks = [(f"blocks.{layer}.attn.hook_attn_scores", block) for layer in layers]
    answer = tiny.tokenizer()(" Paris")["input_ids"][0]
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        return float(bridge(prompt.tokens[None])[0, -1].softmax(-1)[answer])


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma3_text", "bloom"])
def test_windows_equal_whole_passes(kind):
    prompt = locate.encode_fact(model(kind), FACT)
    last, subject = len(prompt.tokens) - 1, range(*prompt.subject_span)
    found = locate.attention_knockout(model(kind), FACT, window=3, progress=False)
    assert found.values.dims == ("source", "layer")
    for layer in range(4):
        window = range(max(0, layer - 1), min(4, layer + 2))
        assert float(found.values[0, layer]) == pytest.approx(literal(kind, [last], subject, window), rel=1e-4)
    assert np.abs(found.change.values).max() > 1e-3
    assert found.clean == pytest.approx(literal(kind, [], [], []), rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_single_heads_and_any_positions_equal_whole_passes(kind):
    found = locate.attention_knockout(
        model(kind), FACT, source={"two": [1, 3], "first": [0]}, target=[5, 8], heads=True, progress=False
    )
    assert found.values.dims == ("source", "layer", "head")
    for layer, head in [(0, 0), (2, 3)]:
        expected = literal(kind, [5, 8], [1, 3], [layer], head)
        assert float(found.values.sel(source="two", layer=layer, head=head)) == pytest.approx(expected, rel=1e-4)
        expected = literal(kind, [5, 8], [0], [layer], head)
        assert float(found.values.sel(source="first", layer=layer, head=head)) == pytest.approx(expected, rel=1e-4)


def test_a_token_that_may_attend_to_nothing_keeps_itself():
    everything = locate.attention_knockout(model("llama"), FACT, source="all", target="last", window=1, progress=False)
    prompt = locate.encode_fact(model("llama"), FACT)
    others = range(len(prompt.tokens) - 1)
    expected = literal("llama", [len(prompt.tokens) - 1], others, [2])
    assert float(everything.values[0, 2]) == pytest.approx(expected, rel=1e-4)
    itself = locate.attention_knockout(model("llama"), FACT, source="last", target="last", window=1, progress=False)
    assert float(itself.values[0, 2]) == pytest.approx(
        literal("llama", [len(prompt.tokens) - 1], [len(prompt.tokens) - 1], [2]), rel=1e-4
    )


def test_a_query_keeps_itself_where_its_whole_sliding_window_is_blocked():
    bridge = model("mistral")  # a window of six tokens
    prompt = locate.encode_fact(bridge, FACT)
    last = len(prompt.tokens) - 1
    assert last > 8
    seen = range(last - 5, last + 1)
    found = locate.attention_knockout(bridge, FACT, source=list(seen), target="last", window=1, progress=False)
    for layer in range(4):
        expected = literal("mistral", [last], [key for key in seen if key != last], [layer])
        assert float(found.values[0, layer]) == pytest.approx(expected, abs=1e-6)


def test_a_source_after_every_target_is_warned_about():
    with pytest.warns(UserWarning, match="No target stands at or after the source 'last', so nothing flows from it"):
        found = locate.attention_knockout(model("llama"), FACT, source="last", target=[0, 1], progress=False)
    np.testing.assert_allclose(found.values, found.clean, rtol=1e-4)
    assert found.info["window"] == 4  # all layers of a model that has no nine


def test_changes_are_relative_and_metrics_can_be_several():
    found = locate.attention_knockout(
        model("llama"), FACT, window=2, metric=["probability", "logit_diff"], progress=False
    )
    np.testing.assert_allclose(found.change, found.values / found.clean - 1, rtol=1e-5, atol=1e-7)
    other = found.of("logit_diff")
    np.testing.assert_allclose(other.change, (other.values - other.clean) / abs(other.clean), rtol=1e-5)
    with pytest.raises(LocateError, match="no metric 'rank'"):
        found.of("rank")
    assert len(found.to_dataframe()) == 4


def test_saving_and_loading(tmp_path):
    found = locate.attention_knockout(model("llama"), FACT, window=2, progress=False)
    loaded = locate.load_knockout(found.save(tmp_path / "k.nc"))
    xr.testing.assert_equal(loaded.change, found.change)
    assert loaded.info == found.info
    with pytest.raises(DataError, match="There is no knockout file"):
        locate.load_knockout(tmp_path / "none.nc")


@pytest.mark.parametrize(("options", "message"), [
    ({"window": 5}, "window of 5 layers does not fit"),
    ({"window": 0}, "window of 0 layers does not fit"),
    ({"window": 3, "heads": True}, "Single heads are blocked in one layer at a time; leave window=3 out"),
    ({"source": [99]}, "Position 99 is out of range"),
    ({"source": {}}, "give at least one set"),
    ({"target": []}, "positions: give at least one"),
])  # fmt: skip
def test_places_that_do_not_exist_are_refused(options, message):
    with pytest.raises(SiteError, match=message):
        locate.attention_knockout(model("llama"), FACT, **{"window": 1, "progress": False, **options})


def test_the_best_site_is_where_blocking_changes_most():
    options = {"source": {"subject": "subject", "first": [0]}, "window": 2, "progress": False}
    found = locate.attention_knockout(model("llama"), FACT, **options)
    largest = abs(found.change).max("source")
    assert found.best() == Site("attn", layer=int(largest.argmax("layer")))
    heads = locate.attention_knockout(model("llama"), FACT, heads=True, progress=False)
    best = heads.best()
    assert best.kind == "attn_head"
    assert float(abs(heads.change).sel(layer=best.layer, head=best.head).max()) == float(abs(heads.change).max())


def test_extraction_is_the_answer_on_top_of_the_projected_update():
    facts = [FACT, Fact(prompt="The capital of {} is", subject="Italy", target="Rome")]
    bridge = model("llama")
    found = locate.attribute_extraction_rate(bridge, facts, top=40, progress=False)
    hits = np.zeros((2, 2, 4))
    for index, fact in enumerate(facts):
        tokens = locate.encode_fact(bridge, fact).tokens[None]
        answer = tiny.tokenizer()(" " + fact.target)["input_ids"][0]
        with torch.no_grad():
            _, cache = bridge.run_with_cache(tokens)
            for k, kind in enumerate(("attn", "mlp")):
                for layer in range(4):
                    update = cache[f"blocks.{layer}.hook_{kind}_out"][0, -1]
                    scores = tiny.hf_model("llama", scale=20.0).lm_head(update)
                    hits[index, k, layer] = answer in scores.topk(40).indices.tolist()
    np.testing.assert_allclose(found["rate"], hits.mean(0))
    np.testing.assert_allclose(found["any"], hits.max(-1).mean(0))
    assert 0 < hits.mean() < 1
    assert (found["low"] <= found["rate"]).all()
    assert (found["rate"] <= found["high"]).all()
    with pytest.raises(FactError, match="no facts"):
        locate.attribute_extraction_rate(bridge, [])
