"""Text for key statistics: sampling with a cache, text files and data sets."""

import itertools

import datasets
import pytest
import torch

from edit.statistics.corpus import token_batches
from locate import DataError, NumericsError
from locate.engine.decode import Sampler, SharedDraws, continued, greedy
from tests import tiny

KINDS = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampler(top_k):
    return Sampler(generator=generator(), top_k=top_k, forbidden=tiny.tokenizer().all_special_ids)


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


@torch.no_grad()
def without_cache(model, tokens, length, top_k):
    """Sampling by whole passes of plain text, one token at a time."""
    draw = generator()
    for _ in range(length):
        logits = model(tokens)[:, -1]
        logits[:, tiny.tokenizer().all_special_ids] = -torch.inf
        order = torch.arange(logits.shape[1]).expand_as(logits)
        if top_k is not None:
            order = logits.argsort(-1, descending=True)[:, :top_k]
        chosen = torch.multinomial(logits.gather(1, order).softmax(-1), 1, generator=draw)
        tokens = torch.cat([tokens, order.gather(1, chosen)], 1)
    return tokens


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_with_the_cache_equals_sampling_without(kind, top_k):
    model = tiny.bridge(kind)
    start = torch.tensor([[5, 9, 20], [31, 4, 7]])
    found = continued(model, start, 12, sampler(top_k))
    assert torch.equal(found, without_cache(model, start, 12, top_k))


def test_special_tokens_are_never_sampled(model):
    (special,) = set(tiny.tokenizer().all_special_ids)

    def insist(logits, hook):
        logits = logits.clone()
        logits[..., special] += 100
        return logits

    with model.hooks(fwd_hooks=[("unembed.hook_out", insist)]):
        batch = next(token_batches(model, "sampled", length=8, rows=50))
    assert not (batch == special).any()


def test_sampled_text_is_endless_and_comes_from_the_seed(model):
    def two(seed):
        return list(itertools.islice(token_batches(model, "sampled", length=6, rows=4, seed=seed), 2))

    first, second = two(0)
    assert first.shape == second.shape == (4, 6)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(two(0), (first, second), strict=True))
    assert not torch.equal(two(1)[0], first)


def test_a_text_file_is_cut_into_sequences_in_order(model, tmp_path):
    path = tmp_path / "text.txt"
    lines = [f"Zürich has {n} trams.\n" for n in range(40)]
    path.write_text("".join(lines), encoding="utf-8")
    stream = [token for line in lines for token in tiny.tokenizer()(line)["input_ids"]]
    batches = list(token_batches(model, str(path), length=16, rows=4))
    whole, rest = divmod(len(stream), 16)
    assert rest
    assert [len(batch) for batch in batches] == [4] * (whole // 4) + [whole % 4] * bool(whole % 4)
    assert torch.cat(batches).flatten().tolist() == stream[: whole * 16]


def test_text_shorter_than_one_sequence_gives_nothing(model, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Rome")
    assert list(token_batches(model, str(path), length=16)) == []


def test_a_data_set_is_read_by_name_and_configuration(model, monkeypatch):
    seen = []

    def load(*args, **kwargs):
        seen.append((args, kwargs))
        return [{"text": "The Colosseum stands in Rome."}] * 10

    monkeypatch.setattr(datasets, "load_dataset", load)
    (batch,) = token_batches(model, "some/set:small", length=8, rows=100)
    ids = tiny.tokenizer()("The Colosseum stands in Rome.")["input_ids"] * 10
    assert batch.flatten().tolist() == ids[: len(ids) // 8 * 8]
    assert seen == [(("some/set", "small"), {"split": "train", "streaming": True})]


@pytest.mark.parametrize("corpus", ["wikimedia/wikipedia:20231101.en", "some/data.v2"])
def test_names_of_data_sets_may_have_dots(corpus, model, monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **_: asked.append(names) or [])
    assert list(token_batches(model, corpus)) == []
    assert asked == [(corpus.partition(":")[0], corpus.partition(":")[2] or None)]


def test_refuses_corpora_that_cannot_be_read(model, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    def read(corpus):
        list(token_batches(model, corpus))

    for name in (str(tmp_path / "none"), "missing.txt", "./missing"):
        with pytest.raises(DataError, match=f"There is no text file '{name}'"):
            read(name)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary.txt: is not a UTF-8 text file"):
        read(str(binary))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'wikitext' could not be loaded \(no route\). Give a text file"):
        read("wikitext")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"content": "", "id": 1}])
    with pytest.raises(DataError, match=r"has no column 'text'; found \['content', 'id'\]"):
        read("wikitext")


def test_a_batch_depends_on_its_number_alone(model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Zürich has {n} trams.\n" for n in range(700)), encoding="utf-8")
    for corpus, take in ((str(path), None), ("sampled", 9)):
        options = {"length": 8, "rows": 3, "seed": 5}
        everything = list(itertools.islice(token_batches(model, corpus, **options), take))
        for first, step in ((0, 2), (1, 2), (3, 4), (2, 1)):
            wanted = everything[first::step]
            found = list(itertools.islice(token_batches(model, corpus, first=first, step=step, **options), len(wanted)))
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
            assert len(wanted) > 1
    assert list(token_batches(model, str(path), first=10**6)) == []


def test_other_batches_of_sampled_text_are_other_text(model):
    def batches(seed):
        return list(itertools.islice(token_batches(model, "sampled", length=6, rows=4, seed=seed), 3))

    texts = [tuple(batch.flatten().tolist()) for seed in (0, 1) for batch in batches(seed)]
    assert len(set(texts)) == 6


@pytest.mark.parametrize("choose", [sampler(5), greedy, SharedDraws(draws=torch.rand(1, 3), top=5)])
def test_predictions_that_are_not_finite_make_no_text(choose, model):
    def spoil(logits, hook):
        return logits * float("nan")

    with (
        model.hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
        pytest.raises(NumericsError, match="predictions are not finite, so no text can be sampled from it"),
    ):
        continued(model, torch.tensor([[5, 9]]), 3, choose)
