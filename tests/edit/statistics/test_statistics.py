"""Key statistics: the second moment itself, its cache, its shards and checkpoints, its file and its errors."""

import copy
import dataclasses
import itertools
import json
import random
import time
import warnings

import pytest
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

import locate
from edit.statistics import (
    KeyStatistics,
    Part,
    accumulate,
    collect,
    collect_statistics,
    key_statistics,
    load_statistics,
)
from edit.statistics.corpus import token_batches
from locate import DataError, LocateError, NumericsError, SiteError
from locate.model.weights import down_projection, model_fingerprint
from locate.sites.table import hook_name
from tests import tiny

KINDS = ["gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]
# Attention that is global and local by turns, in a model with learned positions and plain linear layers.
GPT_NEO = {
    "vocab_size": tiny.VOCAB, "max_position_embeddings": 128, "hidden_size": 32, "num_layers": 4, "num_heads": 4,
    "attention_types": [[["global", "local"], 2]], "window_size": 6, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def write_text(path, words, seed=0):
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    path.write_text("".join("".join(draw.choices(letters, k=4)) + draw.choice(" \n") for _ in range(words)))
    return str(path)


@pytest.fixture(autouse=True)
def gpt_neo(monkeypatch):
    monkeypatch.setitem(tiny.CONFIGS, "gpt_neo", GPT_NEO)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", 500)


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


@pytest.fixture
def calls(monkeypatch):
    """The layers for which keys were really collected."""
    made = []
    real = collect._accumulate

    def count(model, sums, *rest):
        made.extend(one.layer for one in sums)
        return real(model, sums, *rest)

    monkeypatch.setattr(collect, "_accumulate", count)
    return made


def same(one, two):
    return one.count == two.count and torch.equal(one.second_moment, two.second_moment)


def moment_of(model, layer, batches):
    """The second moment from whole passes, key by key, in float64."""
    keys = []
    for batch in batches:
        _, cache = model.run_with_cache(batch, names_filter=hook_name("down_in", layer))
        keys.append(cache[hook_name("down_in", layer)].flatten(0, -2).double())
    keys = torch.cat(keys)
    return keys.T @ keys / len(keys), len(keys)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_loop_over_single_keys(kind, layer, text):
    model = tiny.bridge(kind)
    keys = []
    for batch in token_batches(model, text):
        for row in batch:
            _, cache = model.run_with_cache(row[None], names_filter=hook_name("down_in", layer))
            keys.extend(cache[hook_name("down_in", layer)][0])
    expected = sum(torch.outer(key.double(), key.double()) for key in keys) / len(keys)
    found = key_statistics(model, layer, corpus=text)
    assert found.count == len(keys)
    assert found.second_moment.dtype == torch.float64
    torch.testing.assert_close(found.second_moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    assert (found.layer, found.corpus, found.fingerprint) == (layer, text, model_fingerprint(model))
    assert found.dtype == "float32"
    assert torch.equal(found.second_moment, found.second_moment.T)


def test_solve_is_the_inverse_of_the_second_moment(model, text):
    found = key_statistics(model, 1, corpus=text)
    keys = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    solved = found.solve(keys)
    torch.testing.assert_close(found.second_moment @ solved, keys.double())
    assert torch.equal(found.solve(keys), solved)
    other = dataclasses.replace(found, second_moment=2 * found.second_moment)
    torch.testing.assert_close(other.solve(keys), solved / 2)


def test_stops_at_the_number_of_tokens(model, text):
    assert key_statistics(model, 1, corpus=text, tokens=1).count == len(next(token_batches(model, text))) * 128


def test_a_text_corpus_runs_no_block_above_the_layer(model, text):
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        key_statistics(model, 1, corpus=text)
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) == {0, 1}


def test_the_sampled_corpus_is_the_default_and_comes_from_the_seed(monkeypatch):
    monkeypatch.setattr(collect, "ROWS", 128)
    monkeypatch.setattr(collect, "LENGTH", 13)
    model = tiny.bridge("gpt_neox")
    found = key_statistics(model, 0, cache=False)
    again = key_statistics(model, 0, cache=False)
    assert (found.corpus, found.count, found.seed) == ("sampled", 13 * 128, 0)
    assert torch.equal(found.second_moment, again.second_moment)
    other = key_statistics(model, 0, seed=1, cache=False)
    assert not torch.equal(found.second_moment, other.second_moment)


def test_few_sampled_keys_take_a_small_batch(monkeypatch):
    monkeypatch.setattr(collect, "ROWS", 128)
    monkeypatch.setattr(collect, "LENGTH", 13)
    model = tiny.bridge("gpt_neox")
    found = key_statistics(model, 0, tokens=90, cache=False)
    expected, count = moment_of(model, 0, itertools.islice(token_batches(model, "sampled", length=13, rows=8), 1))
    assert found.count == count == 13 * 8
    torch.testing.assert_close(found.second_moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    assert key_statistics(model, 0, tokens=13 * 100, cache=False).count == 13 * 128


def test_the_cache_is_used_again(model, text, calls, cache):
    first = key_statistics(model, 1, corpus=text)
    second = key_statistics(model, 1, corpus=text)
    assert calls == [1]
    assert torch.equal(first.second_moment, second.second_moment)
    assert len(list(cache.iterdir())) == 1
    # A layer counted from the end is the same layer.
    key_statistics(model, -3, corpus=text)
    assert calls == [1]
    key_statistics(model, 1, corpus=text, cache=False)
    assert calls == [1, 1]
    assert len(list(cache.iterdir())) == 1


def test_anything_that_changes_the_keys_is_another_file(text, calls, cache, tmp_path):
    model = tiny.bridge("llama")
    key_statistics(model, 1, corpus=text)
    key_statistics(model, 2, corpus=text)
    key_statistics(model, 1, corpus=text, seed=1)
    key_statistics(model, 1, corpus=text, tokens=256 * 128 + 1)
    key_statistics(model, 1, corpus=write_text(tmp_path / "other.txt", 500, seed=1))
    with torch.no_grad():
        down_projection(model, 0).parameter[3, 4] += 0.5
    changed = key_statistics(model, 1, corpus=text)
    assert changed.fingerprint == model_fingerprint(model)
    assert len(calls) == len(list(cache.iterdir())) == 6


def test_another_tokenizer_has_statistics_of_its_own(text, calls, cache):
    key_statistics(tiny.bridge("llama"), 1, corpus=text)
    other = copy.deepcopy(tiny.tokenizer())
    other("some padding", padding="max_length", max_length=30)  # leaves a trace that is none of the text's
    same = locate.load_model(tiny.hf_model("llama"), tokenizer=other)
    key_statistics(same, 1, corpus=text)
    assert len(calls) == 1
    opening = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    leading = copy.deepcopy(other)
    leading.backend_tokenizer.post_processor = opening
    opened = locate.load_model(tiny.hf_model("llama"), tokenizer=leading)
    found = key_statistics(opened, 1, corpus=text)
    assert len(calls) == 2
    torch.testing.assert_close(found.second_moment, key_statistics(opened, 1, corpus=text, cache=False).second_moment)
    key_statistics(opened, 1, tokens=100)
    key_statistics(same, 1, tokens=100)
    assert len(list((cache / "text").iterdir())) == 2


def test_a_text_file_counts_by_what_it_says(model, text, calls, tmp_path):
    key_statistics(model, 1, corpus=text)
    key_statistics(model, 1, corpus=write_text(tmp_path / "copy.txt", 500))
    assert len(calls) == 1
    write_text(tmp_path / "text.txt", 500, seed=2)
    key_statistics(model, 1, corpus=text)
    assert len(calls) == 2


def test_refuses_a_layer_that_is_not_there(model, text):
    with pytest.raises(SiteError, match="Layer 4 is out of range: the model has 4 layers"):
        key_statistics(model, 4, corpus=text)


def test_refuses_a_corpus_that_is_missing_or_too_short(model, tmp_path, monkeypatch, cache):
    with pytest.raises(DataError, match="There is no text file"):
        key_statistics(model, 1, corpus=str(tmp_path / "missing.txt"))
    with pytest.raises(DataError, match=r"gave only 0 keys; the statistics of layer 1 need at least 80,"):
        key_statistics(model, 1, corpus=write_text(tmp_path / "short.txt", 3))
    row = torch.arange(20)[None]
    monkeypatch.setattr(collect, "token_batches", lambda *_, **__: iter([row]))
    with pytest.raises(DataError, match=r"gave only 20 keys; the statistics of layer 1 need at least 80,"):
        key_statistics(model, 1, corpus="sampled")
    assert not any(path.is_file() for path in cache.iterdir())  # only the text that was written is kept


def test_text_that_the_model_wrote_is_not_written_again(model, cache, small_batches, monkeypatch):
    first = collect_statistics(model, [1], tokens=300, progress=False)[1]
    kept = sorted(path.name for path in (cache / "text").rglob("*.safetensors"))
    assert len(kept) == 3
    whole = collect_statistics(model, [1, 2], tokens=500, cache=False, progress=False)
    asked = []
    real = collect.token_batches
    monkeypatch.setattr(collect, "token_batches", lambda *a, **o: asked.append(o["first"]) or real(*a, **o))
    found = collect_statistics(model, [2], tokens=300, progress=False)
    more = collect_statistics(model, [1, 2], tokens=500, progress=False)
    assert asked == [3]  # only what was not there
    assert first.count == found[2].count == 384
    for layer in (1, 2):
        assert torch.equal(more[layer].second_moment, whole[layer].second_moment)


KNOWN = {"layer": 2, "corpus": "text.txt", "seed": 0, "fingerprint": "abc"}


def make(second_moment, **changes):
    return KeyStatistics(second_moment=second_moment, **{"count": 9, **KNOWN, **changes})


def random_moment(size, count, seed=0):
    keys = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    keys *= torch.logspace(0, -4, size, dtype=torch.float64)
    return keys.T @ keys / count


def test_one_more_token_than_a_batch_is_two_batches_in_another_file(model, text, cache, small_batches):
    one = key_statistics(model, 1, corpus=text, tokens=128)
    assert one.count == 128
    assert same(one, key_statistics(model, 1, corpus=text, tokens=1))
    assert len(list(cache.iterdir())) == 1
    assert key_statistics(model, 1, corpus=text, tokens=129).count == 256


@pytest.mark.parametrize("corpus", ["sampled", "text"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "llama", "gemma3_text"])
def test_several_layers_at_once_equal_one_at_a_time(kind, corpus, text, small_batches):
    model = tiny.bridge(kind)
    options = {"corpus": text if corpus == "text" else corpus, "tokens": 200, "cache": False}
    together = collect_statistics(model, [3, 0, -3, 1], **options)
    assert list(together) == [3, 0, 1]
    batches = list(itertools.islice(token_batches(model, options["corpus"], length=16, rows=8), 2))
    assert same(together[1], key_statistics(model, 1, **options))
    for layer, found in together.items():
        assert found.layer == layer
        expected, count = moment_of(model, layer, batches)
        assert found.count == count == 256
        torch.testing.assert_close(found.second_moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)


def test_several_layers_take_one_pass_and_no_block_above_the_highest(model, text, small_batches):
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        collect_statistics(model, [2, 0], corpus=text, tokens=256)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1, 2] * 4  # two batches in two passes each


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gemma3_text"])
def test_the_model_is_left_as_it_was(kind, text, small_batches):
    model = tiny.bridge(kind)
    tokens = torch.arange(12)[None] + 20
    before = model(tokens)
    collect_statistics(model, [0, 2], corpus=text, tokens=256)
    assert torch.equal(model(tokens), before)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_only_layers_that_are_not_in_the_cache_are_collected(model, text, calls, cache):
    first = collect_statistics(model, [1, 2], corpus=text)
    again = collect_statistics(model, [3, 2, 1], corpus=text)
    assert calls == [1, 2, 3]
    assert all(same(first[layer], again[layer]) for layer in (1, 2))
    assert len(list(cache.iterdir())) == 3


def test_results_go_to_a_folder_that_is_given(model, text, calls, cache, tmp_path):
    for _ in range(2):
        collect_statistics(model, [1], corpus=text, folder=tmp_path / "mine")
    assert calls == [1]
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert not cache.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_of_half_precision(dtype, text, small_batches):
    model = tiny.bridge("llama", dtype=dtype, scale=1.0)
    found = key_statistics(model, 1, corpus=text, tokens=200)
    expected, _ = moment_of(model, 1, itertools.islice(token_batches(model, text, length=16, rows=8), 2))
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.second_moment.dtype == torch.float64
    # Products of halves are exact in float32; had they been taken in halves, two digits would agree.
    torch.testing.assert_close(found.second_moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("corpus", ["sampled", "text"])
def test_shards_merge_to_the_whole(corpus, model, text, small_batches):
    of = 3
    options = {"corpus": text if corpus == "text" else corpus, "tokens": 400}
    whole = collect_statistics(model, [1, 2], **options)
    shards = [collect_statistics(model, [1, 2], shard=(index, of), **options) for index in range(of)]
    for layer in (1, 2):
        merged = shards[0][layer].merge(*(shard[layer] for shard in shards[1:]))
        assert merged.count == whole[layer].count == 4 * 128
        torch.testing.assert_close(merged.second_moment, whole[layer].second_moment, rtol=1e-12, atol=1e-14)
        assert merged.parts == whole[layer].parts
        backwards = shards[-1][layer]
        for shard in reversed(shards[:-1]):
            backwards = backwards + shard[layer]
        assert backwards.count == merged.count
        torch.testing.assert_close(backwards.second_moment, merged.second_moment, rtol=1e-12, atol=1e-14)
        assert (merged.layer, merged.corpus, merged.dtype) == (layer, options["corpus"], "float32")
        assert len({float(shard[layer].second_moment.sum()) for shard in shards}) == of


def test_shards_cover_a_text_to_its_end(model, text, small_batches):
    whole = key_statistics(model, 1, corpus=text, tokens=10**6)
    assert whole.count % 128  # the last batch is not full
    shards = [collect_statistics(model, [1], corpus=text, tokens=10**6, shard=(i, 4))[1] for i in range(4)]
    assert shards[0].merge(*shards[1:]).count == whole.count


def test_merging_refuses_what_does_not_belong_together():
    one = make(torch.eye(3, dtype=torch.float64), parts=(Part("a", 0, 4),))
    for changes, message in [
        ({"layer": 3}, r"different layers .* found 2 and 3\. Merge only statistics of one layer"),
        ({"fingerprint": "other"}, "different models with the fingerprints .* found abc and other"),
        ({"parts": (Part("a", 0, 4),)}, r"Shard 0/4 of a shares text .* would count twice"),
        ({"parts": (Part("a", 2, 6),)}, r"Shard 2/6 of a shares text"),
        ({"parts": (Part("a", 0, 1),)}, r"Shard 0/1 of a shares text"),
    ]:
        with pytest.raises(DataError, match=message):
            one.merge(dataclasses.replace(one, **changes))
    with pytest.raises(DataError, match=r"keys of dimensions .* found 3 and 2"):
        one.merge(make(torch.eye(2, dtype=torch.float64)))
    with pytest.raises(TypeError):
        one + 1


def test_merging_weighs_by_count_and_keeps_the_sources():
    one = make(torch.eye(3, dtype=torch.float64), count=3, parts=(Part("a", 0, 4),))
    two = make(5 * torch.eye(3, dtype=torch.float64), count=1, corpus="b.txt", parts=(Part("b", 0, 4), Part("a", 1, 4)))
    merged = one + two
    assert torch.equal(merged.second_moment, 2 * torch.eye(3, dtype=torch.float64))
    assert (merged.count, merged.corpus) == (4, "text.txt + b.txt")
    assert merged.parts == (Part("a", 0, 4), Part("b", 0, 4), Part("a", 1, 4))
    # The inputs stay as they were, and nothing that was computed for them is handed on.
    one.solve(torch.ones(3, 1))
    torch.testing.assert_close((one + two).solve(torch.ones(3, 1)), torch.full((3, 1), 0.5, dtype=torch.float64))
    assert torch.equal(one.second_moment, torch.eye(3, dtype=torch.float64))


class Killed(Exception):
    pass


@pytest.fixture
def killed(monkeypatch):
    """Makes the next collections fail at a pass of the model, as if the process had been killed there."""
    real = collect._run
    # Checkpoints may take any share of the time of batches as short as these.
    monkeypatch.setattr(collect, "_SHARE_FOR_CHECKPOINTS", float("inf"))

    def after(batches):
        left = iter(range(batches))

        def run(model, batch, active, bar):
            if next(left, None) is None:
                # Part of a batch is added and lost.
                for one in active:
                    one.add(torch.ones(7, one.size))
                raise Killed
            real(model, batch, active, bar)

        monkeypatch.setattr(collect, "_run", run)

    return after


@pytest.mark.parametrize(("corpus", "shard"), [("text", (0, 1)), ("text", (1, 2)), ("sampled", (0, 2))])
def test_a_killed_collection_goes_on_bit_for_bit(corpus, shard, model, text, killed, cache, small_batches):
    options = {
        "corpus": text if corpus == "text" else corpus,
        "tokens": 1000,
        "shard": shard,
        "checkpoint_seconds": 0.0,
    }
    whole = collect_statistics(model, [1, 3], cache=False, **options)
    for batches in (2, 1):
        killed(batches)
        with pytest.raises(Killed):
            collect_statistics(model, [1, 3], **options)
        assert all(path.name.endswith(".partial.safetensors") for path in cache.iterdir() if path.is_file())
    left = whole[1].count // 128 - 3
    killed(left)  # no batch is run again
    found = collect_statistics(model, [1, 3], **options)
    assert all(same(found[layer], whole[layer]) for layer in (1, 3))
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert not list(cache.glob("*partial*"))


def test_layers_that_were_stopped_at_different_batches_go_on_together(model, text, killed, small_batches):
    options = {"corpus": text, "tokens": 1000, "checkpoint_seconds": 0.0}
    whole = collect_statistics(model, [0, 1, 2], cache=False, **options)
    for layers, batches in (([1], 2), ([2], 4)):
        killed(batches)
        with pytest.raises(Killed):
            collect_statistics(model, layers, **options)
    killed(100)
    found = collect_statistics(model, [0, 1, 2], **options)
    assert all(same(found[layer], whole[layer]) for layer in (0, 1, 2))


def test_a_damaged_checkpoint_begins_anew_and_other_leftovers_go(model, text, killed, cache, small_batches):
    options = {"corpus": text, "tokens": 1000, "checkpoint_seconds": 0.0}
    killed(3)
    with pytest.raises(Killed):
        collect_statistics(model, [1], **options)
    (partial,) = cache.iterdir()
    partial.write_bytes(partial.read_bytes()[:-5])
    half_written = cache / f".{partial.name}.999999999"  # no process has this number
    half_written.write_bytes(b"half")
    killed(100)
    found = collect_statistics(model, [1], **options)[1]
    assert same(found, key_statistics(model, 1, corpus=text, tokens=1000, cache=False))
    assert not half_written.exists()
    assert not partial.exists()


def test_checkpoints_wait_for_their_time(model, text, killed, cache, small_batches, monkeypatch):
    saved = []
    monkeypatch.setattr(accumulate.MomentSum, "save", lambda self: saved.append(self.done))
    collect_statistics(model, [1], corpus=text, tokens=1000)
    assert saved == []
    collect_statistics(model, [2], corpus=text, tokens=1000, checkpoint_seconds=0.0)
    assert saved == [1, 2, 3, 4, 5, 6, 7]
    collect_statistics(model, [3], corpus=text, tokens=1000, checkpoint_seconds=0.0, cache=False)
    assert len(list(cache.iterdir())) == 2
    # Where writing is slow there are few.
    monkeypatch.setattr(collect, "_SHARE_FOR_CHECKPOINTS", 0.01)
    monkeypatch.setattr(accumulate.MomentSum, "save", lambda self: (saved.append("slow"), time.sleep(0.2)))
    collect_statistics(model, [0], corpus=text, tokens=1000, checkpoint_seconds=0.0)
    assert saved.count("slow") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_keys_that_are_not_finite_are_named(value, text, killed, small_batches):
    model = tiny.bridge("llama")
    passes = iter(range(100))

    def spoil(output, hook):
        output = output.clone()
        if next(passes) == 4:  # of two for each batch
            output[0, 5, 7] = value
        return output

    with (
        model.hooks(fwd_hooks=[(hook_name("down_in", 1), spoil)]),
        pytest.raises(NumericsError, match="Keys of layer 1 in batch 2 of the corpus are not finite, or too large"),
    ):
        collect_statistics(model, [0, 1, 2], corpus=text, tokens=1000)


def test_no_text_can_be_sampled_from_a_model_without_finite_predictions():
    model = tiny.bridge("llama")
    with torch.no_grad():
        down_projection(model, 3).parameter[:] = float("nan")
    with pytest.raises(NumericsError, match="predictions are not finite, so no text can be sampled"):
        key_statistics(model, 1)


def test_refuses_options_that_make_no_sense(model, text, small_batches):
    with pytest.raises(LocateError, match="There are no layers"):
        collect_statistics(model, [])
    with pytest.raises(LocateError, match="tokens must be at least 1, found 0"):
        collect_statistics(model, [1], tokens=0)
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(LocateError, match=r"shard must be \(i, n\)"):
            collect_statistics(model, [1], shard=shard)
    with pytest.raises(DataError, match=r"Shard 3/4 is empty: the text is 2 batches of 128 tokens\. Use fewer shards"):
        collect_statistics(model, [1], tokens=200, shard=(3, 4))
    with pytest.raises(DataError, match="ended before shard 98/99"):
        collect_statistics(model, [1], corpus=text, tokens=10**6, shard=(98, 99))


def test_a_shard_may_have_too_few_keys_for_itself(model, text, monkeypatch):
    monkeypatch.setattr(collect, "ROWS", 1)
    monkeypatch.setattr(collect, "LENGTH", 50)
    shards = [collect_statistics(model, [1], corpus=text, tokens=200, shard=(i, 4))[1] for i in range(4)]
    assert shards[0].count == 50
    with pytest.raises(NumericsError, match=r"50 keys of dimension 80 .* too few\. Collect more: at least 160"):
        shards[0].solve(torch.ones(80, 1))
    assert shards[0].merge(*shards[1:]).count == 200


def test_eigen_and_its_cache(model, text, cache, monkeypatch):
    found = key_statistics(model, 1, corpus=text)
    values, vectors = found.eigen()
    assert (values.diff() >= 0).all()
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, found.second_moment)
    assert found.eigen()[0] is values
    assert len(list(cache.iterdir())) == 2
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("computed again"))
    again = key_statistics(model, 1, corpus=text)
    assert torch.equal(again.eigen()[0], values)
    assert torch.equal(again.eigen()[1], vectors)
    # A file that is damaged, or of another matrix, is made anew.
    monkeypatch.setattr(torch.linalg, "eigh", real)
    (file,) = cache.glob("*.eigen.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    torch.testing.assert_close(key_statistics(model, 1, corpus=text).eigen()[0], values)
    assert len(file.read_bytes()) == len(whole)
    key_statistics(model, 2, corpus=text).eigen()
    (other,) = set(cache.glob("*.eigen.safetensors")) - {file}
    other.replace(file)
    torch.testing.assert_close(key_statistics(model, 1, corpus=text).eigen()[0], values)
    changed = dataclasses.replace(again, second_moment=2 * again.second_moment)
    torch.testing.assert_close(changed.eigen()[0], 2 * values)


def test_eigen_works_where_nothing_can_be_written(model, text, monkeypatch):
    found = key_statistics(model, 1, corpus=text)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("edit.statistics.moments.write_tensors", full)
    assert len(found.eigen()[0]) == 80


@pytest.mark.parametrize("energy", [1e-6, 1e-3, 0.1, 0.9])
def test_null_space_by_energy(energy):
    found = make(random_moment(40, 400), count=400)
    basis = found.null_space(energy=energy)
    rank = basis.shape[1]
    assert 0 < rank < 40
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
    projector = basis @ basis.T
    torch.testing.assert_close(projector @ projector, projector)
    trace = float(found.second_moment.trace())
    held = float((projector @ found.second_moment).trace())
    assert held <= energy * trace * (1 + 1e-9)
    # One more direction would be too many.
    values = torch.linalg.eigvalsh(found.second_moment)
    assert held + float(values[rank]) > energy * trace


def test_null_space_by_threshold():
    found = make(torch.diag(torch.tensor([4.0, 1e-3, 2.0, 3e-3], dtype=torch.float64)))
    basis = found.null_space(threshold=2e-2)
    torch.testing.assert_close(basis @ basis.T, torch.diag(torch.tensor([0.0, 1, 0, 1], dtype=torch.float64)))
    assert found.null_space(threshold=2e-3).shape == (4, 1)
    assert found.null_space(threshold=1e-3 + 1e-9).shape == (4, 1)


def test_null_space_refuses_what_makes_no_sense():
    found = make(random_moment(5, 400) + torch.eye(5, dtype=torch.float64), count=400)
    for options in ({}, {"energy": 0.1, "threshold": 0.1}):
        with pytest.raises(LocateError, match="Give either energy or threshold"):
            found.null_space(**options)
    for energy in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(LocateError, match="energy is a share of the trace"):
            found.null_space(energy=energy)
    for threshold in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LocateError, match="threshold must be a positive number"):
            found.null_space(threshold=threshold)
    with pytest.raises(NumericsError, match=r"of layer 2 is empty: the smallest of 5 .* Give a threshold above 1"):
        found.null_space(threshold=0.5)
    with pytest.raises(NumericsError, match=r"of layer 2 is empty: .* Give an energy above 0\.1"):
        found.null_space(energy=0.01)
    with pytest.raises(NumericsError, match=r"All 5 eigenvalues .* Give a smaller threshold, or energy"):
        found.null_space(threshold=100.0)
    few = make(random_moment(40, 30), count=30)
    with pytest.raises(NumericsError, match=r"30 keys of dimension 40 .* Collect more: at least 80, better 400"):
        few.null_space(energy=0.1)


def test_singular_statistics_are_an_error_with_the_numbers():
    ones = torch.ones(3, 3, dtype=torch.float64)
    message = r"of layer 2 are singular: 9 keys of dimension 3 from 'text.txt'. Collect more: at least 6, better 30"
    with pytest.raises(NumericsError, match=message):
        make(ones).solve(torch.ones(3, 1))
    silent = make(torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)))
    with pytest.raises(NumericsError, match=r"layer 2 are singular: 1 of 3 neurons were zero in all of 9 keys"):
        silent.solve(torch.ones(3, 1))
    indefinite = make(torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)))
    with pytest.raises(NumericsError, match="layer 2 are indefinite"):
        indefinite.solve(torch.ones(3, 1))
    few = make(torch.eye(10, dtype=torch.float64))
    with pytest.raises(NumericsError, match=r"9 keys of dimension 10 from 'text.txt' are too few\. Collect more"):
        few.solve(torch.ones(10, 1))
    broken = make(torch.full((3, 3), float("nan"), dtype=torch.float64))
    for use in (lambda: broken.solve(torch.ones(3, 1)), broken.eigen, lambda: broken.null_space(energy=0.1)):
        with pytest.raises(NumericsError, match="layer 2 are not finite"):
            use()


def test_save_and_load(tmp_path):
    kept = make(torch.randn(3, 3, dtype=torch.float64), dtype="bfloat16", parts=(Part("a", 1, 3), Part("b", 0, 1)))
    path = kept.save(tmp_path / "new" / "statistics.safetensors")
    loaded = load_statistics(path)
    assert torch.equal(loaded.second_moment, kept.second_moment)
    for name in ("count", "layer", "corpus", "seed", "fingerprint", "dtype", "parts"):
        assert getattr(loaded, name) == getattr(kept, name)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = make(torch.eye(3, dtype=torch.float64)).save(tmp_path / "statistics.safetensors")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("locate.store.tensors.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        make(2 * torch.eye(3, dtype=torch.float64)).save(path)
    assert torch.equal(load_statistics(path).second_moment, torch.eye(3, dtype=torch.float64))
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_files_that_are_no_statistics(tmp_path):
    path = make(torch.eye(3, dtype=torch.float64)).save(tmp_path / "statistics.safetensors")
    data = path.read_bytes()
    for damaged in (data[:100], data[:-1], b"", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"statistics.safetensors: damaged key statistics .*; delete the file"):
            load_statistics(path)
    moment = {"second_moment": torch.eye(3, dtype=torch.float64)}
    whole = {"count": 9, **KNOWN, "dtype": "float32", "parts": [["a", 0, 1]]}
    for content in (
        "nonsense", "{}", "[]", json.dumps({"count": 1}), json.dumps({**whole, "count": "9"}),
        json.dumps({**whole, "count": 0}), json.dumps({**whole, "parts": [["a", 0]]}),
    ):  # fmt: skip
        save_file(moment, path, metadata={"format": "2", "statistics": content})
        with pytest.raises(DataError, match="damaged key statistics"):
            load_statistics(path)
    for other in (torch.eye(3), torch.ones(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)):
        save_file({"second_moment": other}, path, metadata={"format": "2", "statistics": json.dumps(whole)})
        with pytest.raises(DataError, match="damaged key statistics"):
            load_statistics(path)
    for metadata, held in (
        (None, "something else"), ({"format": "2"}, "something else"), ({"format": "1", "statistics": "{}"}, "format 1")
    ):  # fmt: skip
        save_file(moment, path, metadata=metadata)
        with pytest.raises(DataError, match=rf"not key statistics of format 2 \(found {held}\); collect them again"):
            load_statistics(path)
    with pytest.raises(DataError, match="There is no statistics file"):
        load_statistics(tmp_path / "missing.safetensors")
    with pytest.raises(DataError, match="damaged key statistics"):
        load_statistics(tmp_path)


@pytest.mark.slow("thousands of keys of the default model, twice")
@pytest.mark.real_model
def test_the_default_model(smollm, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "ROWS", 16)
    text = write_text(tmp_path / "long.txt", 1500)
    found = collect_statistics(smollm, [3, 5], corpus=text, tokens=2048, progress=False)
    expected, count = moment_of(smollm, 5, itertools.islice(token_batches(smollm, text, rows=16), 1))
    assert found[3].count == found[5].count == count == 2048
    # In units of the neurons' own sizes, which differ by orders of magnitude.
    scale = expected.diagonal().sqrt()
    assert float(((found[5].second_moment - expected).abs() / scale / scale[:, None]).max()) < 1e-6
    basis = found[5].null_space(energy=0.02)
    assert 0 < basis.shape[1] < 1536
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


def test_a_text_that_ends_early_is_told(model, text):
    with pytest.warns(UserWarning, match=r"ended early: .* layer 1 have \d+ of the 9000 keys asked for"):
        collect_statistics(model, [1, 2], corpus=text, tokens=9000, progress=False)
    # Also where they come from the cache.
    with pytest.warns(UserWarning, match="ended early"):
        collect_statistics(model, [1], corpus=text, tokens=9000, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect_statistics(model, [1], corpus=text, tokens=1000, progress=False)


def test_a_ridge_is_added_and_its_factor_kept(model, text, monkeypatch):
    one = key_statistics(model, 1, corpus=text, tokens=1000, progress=False)
    columns = torch.randn(80, 2, dtype=torch.float64)
    factored, real = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: factored.append(1) or real(matrix))
    for ridge, count in ((0.0, 1), (0.0, 1), (0.5, 2), (0.5, 2), (0.0, 3)):
        wanted = torch.linalg.solve(one.second_moment + ridge * torch.eye(80, dtype=torch.float64), columns)
        torch.testing.assert_close(one.solve(columns, ridge=ridge), wanted, rtol=1e-6, atol=1e-9)
        assert len(factored) == count
