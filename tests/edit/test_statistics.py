"""Key statistics: the second moment itself, its cache, its file and its errors."""

import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import save_file

from edit import statistics
from edit.corpus import token_batches
from edit.statistics import KeyStatistics, key_statistics, load_statistics
from edit.weights import down_projection, model_fingerprint
from locate import DataError, NumericsError, SiteError
from tests import tiny

KINDS = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]


def write_text(path, words, seed=0):
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    path.write_text("".join("".join(draw.choices(letters, k=4)) + draw.choice(" \n") for _ in range(words)))
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


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
    real = statistics._accumulate

    def count(model, layer, *rest):
        made.append(layer)
        return real(model, layer, *rest)

    monkeypatch.setattr(statistics, "_accumulate", count)
    return made


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_loop_over_single_keys(kind, layer, text):
    model = tiny.bridge(kind)
    keys = []
    for batch in token_batches(model, text):
        for row in batch:
            _, cache = model.run_with_cache(row[None])
            keys.extend(cache[f"blocks.{layer}.mlp.out.hook_in"][0])
    expected = sum(torch.outer(key.double(), key.double()) for key in keys) / len(keys)
    found = key_statistics(model, layer, corpus=text)
    assert found.count == len(keys)
    assert found.second_moment.dtype == torch.float64
    torch.testing.assert_close(found.second_moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    assert (found.layer, found.corpus, found.fingerprint) == (layer, text, model_fingerprint(model))


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
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        key_statistics(model, 1, corpus=text)
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) == {0, 1}


def test_the_sampled_corpus_is_the_default_and_comes_from_the_seed():
    model = tiny.bridge("gpt_neox")
    found = key_statistics(model, 0, cache=False)
    again = key_statistics(model, 0, cache=False)
    assert (found.corpus, found.count, found.seed) == ("sampled", 256 * 128, 0)
    assert torch.equal(found.second_moment, again.second_moment)
    other = key_statistics(model, 0, seed=1, cache=False)
    assert not torch.equal(found.second_moment, other.second_moment)


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
    key_statistics(model, 1, corpus=text, tokens=600)
    key_statistics(model, 1, corpus=write_text(tmp_path / "other.txt", 500, seed=1))
    with torch.no_grad():
        down_projection(model, 0).parameter[3, 4] += 0.5
    changed = key_statistics(model, 1, corpus=text)
    assert changed.fingerprint == model_fingerprint(model)
    assert len(calls) == len(list(cache.iterdir())) == 6


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
    with pytest.raises(DataError, match=r"gave only 0 keys; the statistics of layer 1 need at least one batch"):
        key_statistics(model, 1, corpus=write_text(tmp_path / "short.txt", 3))
    row = torch.arange(20)[None]
    monkeypatch.setattr(statistics, "token_batches", lambda *_, **__: iter([row]))
    with pytest.raises(DataError, match=r"gave only 20 keys; the statistics of layer 1 need at least 80,"):
        key_statistics(model, 1, corpus="sampled")
    assert not cache.exists()


def make(second_moment):
    return KeyStatistics(second_moment=second_moment, count=9, layer=2, corpus="text.txt", seed=0, fingerprint="abc")


def test_singular_statistics_are_an_error_with_the_numbers():
    singular = make(torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)))
    message = r"of layer 2 are singular: 9 keys of dimension 3 from 'text.txt'. Collect more: at least 6, better 30"
    with pytest.raises(NumericsError, match=message):
        singular.solve(torch.ones(3, 1))


def test_save_and_load(tmp_path):
    kept = make(torch.randn(3, 3, dtype=torch.float64))
    path = kept.save(tmp_path / "new" / "statistics.safetensors")
    loaded = load_statistics(path)
    assert torch.equal(loaded.second_moment, kept.second_moment)
    for name in ("count", "layer", "corpus", "seed", "fingerprint"):
        assert getattr(loaded, name) == getattr(kept, name)
    assert list(path.parent.iterdir()) == [path]


def test_refuses_files_that_are_no_statistics(tmp_path):
    path = make(torch.eye(3, dtype=torch.float64)).save(tmp_path / "statistics.safetensors")
    data = path.read_bytes()
    for damaged in (data[:100], data[:-1], b"", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"statistics.safetensors: damaged key statistics .*; delete the file"):
            load_statistics(path)
    moment = {"second_moment": torch.eye(3, dtype=torch.float64)}
    for content in ("nonsense", "{}", json.dumps({"count": 1})):
        save_file(moment, path, metadata={"format": "1", "statistics": content})
        with pytest.raises(DataError, match="damaged key statistics"):
            load_statistics(path)
    for metadata in (None, {"format": "2"}):
        save_file(moment, path, metadata=metadata)
        with pytest.raises(DataError, match=r"^\S+: not key statistics of format 1; collect them again"):
            load_statistics(path)
    with pytest.raises(DataError, match="There is no statistics file"):
        load_statistics(tmp_path / "missing.safetensors")
    with pytest.raises(DataError, match="damaged key statistics"):
        load_statistics(tmp_path)
