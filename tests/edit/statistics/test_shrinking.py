"""Quick key statistics: the intensity by its definition, what it is good for, and what tells them from full ones."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.covariance import ledoit_wolf
from tqdm.auto import tqdm

import edit
import locate
from edit.statistics import collect, collect_statistics, key_statistics, load_statistics
from edit.statistics.accumulate import MomentSum
from edit.statistics.corpus import token_batches
from edit.statistics.moments import STATISTICS
from edit.statistics.shrinking import intensity, shrunk
from locate import DataError, LocateError, NumericsError
from locate.sites.table import hook_name
from tests import tiny

pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def drawn(rows, length, size, seed=0, alike=0.8):
    """Rows of keys, each like the one before it, of neurons whose sizes differ by a thousand."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(size, size, generator=draw, dtype=torch.float64) / size**0.5 + torch.eye(size)
    scale = torch.logspace(0, 3, size, dtype=torch.float64)
    noise = torch.randn(rows, length, size, generator=draw, dtype=torch.float64)
    for at in range(1, length):
        noise[:, at] = alike * noise[:, at - 1] + (1 - alike**2) ** 0.5 * noise[:, at]
    return (noise @ mixed + 0.3) * scale


def added(keys):
    moments = MomentSum(layer=1, size=keys.shape[-1], wanted=1, shrinks=True)
    for part in keys.split(3):
        moments.add(part)
    return moments


def literal(keys):
    """λ row by row and neuron by neuron."""
    rows, length, _ = keys.shape
    keys = keys.double()
    sizes = (keys.flatten(0, 1) ** 2).mean(0).sqrt()
    own = keys / torch.where(sizes > 0, sizes, 1)
    each = torch.stack([row.T @ row / length for row in own])
    noise = ((each - each.mean(0)) ** 2).sum() / (rows - 1) / rows
    apart = ((each.mean(0) - torch.diag(each.mean(0).diagonal())) ** 2).sum()
    return min(1.0, float(noise / apart))


def test_equals_sklearn_on_keys_in_units_of_their_neurons_where_each_is_a_row():
    keys = drawn(60, 1, 12)
    moments = added(keys)
    mean = moments.finished()
    sizes = mean.diagonal().sqrt()
    covariance, found = ledoit_wolf((keys[:, 0] / sizes).numpy(), assume_centered=True)
    assert 0.05 < found < 0.9
    own = moments.shrinkage(mean)
    # sklearn divides by the number of samples where one less is without bias.
    assert own == pytest.approx(found * 60 / 59, rel=1e-5)
    expected = torch.tensor(covariance) * torch.outer(sizes, sizes)
    torch.testing.assert_close(shrunk(mean, found), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("silent", [False, True])
def test_equals_a_loop_over_rows(silent):
    keys = drawn(40, 7, 12)
    if silent:
        keys[..., 4] = 0
    moments = added(keys)
    found = moments.shrinkage(moments.finished())
    assert found == pytest.approx(literal(keys), rel=1e-4)
    assert 0.05 < found < 0.9


def test_rows_that_say_the_same_are_not_shrunk_and_one_row_is_its_diagonal():
    keys = drawn(1, 30, 6)
    alike = added(keys.expand(5, -1, -1))
    assert alike.shrinkage(alike.finished()) == pytest.approx(0, abs=1e-6)
    one = added(keys)
    assert one.shrinkage(one.finished()) == 1.0
    with pytest.raises(NumericsError, match="too large to square"):
        intensity(torch.eye(2), torch.full((2, 2), torch.inf), 3, 1)


def test_shrunk_statistics_of_few_keys_disturb_other_text_less():
    size = 40
    rows = drawn(2000, 8, size, seed=1)
    wide = rows.flatten(0, 1).T @ rows.flatten(0, 1) / 16_000
    few, key = added(rows[:20]), rows[-30:, 3].T  # four keys for each dimension
    mean = few.finished()

    def disturbed(moment):
        """uᵀCu / (kᵀu)² with u = M⁻¹k: what an edit at k does to other keys."""
        own = torch.linalg.solve(moment, key)
        return float((((own * (wide @ own)).sum(0)) / (key * own).sum(0) ** 2).mean())

    best = disturbed(wide)
    raw, quick = disturbed(mean) / best, disturbed(shrunk(mean, few.shrinkage(mean))) / best
    assert raw > 1.5
    assert quick < 0.85 * raw


def test_collected_ones_equal_the_definition():
    model = tiny.bridge("gemma3_text")
    found = collect_statistics(model, [1, 3], tokens=250, shrink=True, cache=False, progress=False)
    batches = list(itertools.islice(token_batches(model, "sampled", length=16, rows=8), 2))
    for layer, own in found.items():
        name = hook_name("down_in", layer)
        keys = torch.cat([model.run_with_cache(batch, names_filter=name)[1][name] for batch in batches]).double()
        mean = keys.flatten(0, 1).T @ keys.flatten(0, 1) / keys.shape[0] / keys.shape[1]
        by = literal(keys)
        assert own.shrinkage == pytest.approx(by, rel=1e-3)
        assert 0 < by < 1
        expected = (1 - by) * mean + by * torch.diag(mean.diagonal())
        torch.testing.assert_close(own.second_moment, expected, atol=1e-4 * float(mean.abs().max()), rtol=1e-3)
        assert own.count == 256


def test_quick_and_full_are_files_apart_and_neither_changes_the_other(model, cache, monkeypatch):
    alone = edit.ROME(layer=1, statistics="quick").statistics_for(model, progress=False)[1]
    before = {path.name for path in cache.glob("*.safetensors")}
    full = edit.ROME(layer=1, statistics="full").statistics_for(model, progress=False)[1]
    assert full.shrinkage == 0 < alone.shrinkage
    assert (alone.count, full.count) == (384, 1664)  # 4 and 20 times 80, in whole batches
    assert len(before) == 1
    assert len(set(cache.glob("*.safetensors"))) == 2
    monkeypatch.setattr(collect, "_accumulate", lambda *_: pytest.fail("collected again"))
    again = edit.ROME(layer=1, statistics="quick").statistics_for(model, progress=False)[1]
    assert torch.equal(again.second_moment, alone.second_moment)
    assert again.shrinkage == alone.shrinkage
    # What was collected by the number of keys, as every default was before, is neither shrunk nor another file.
    assert torch.equal(key_statistics(model, 1, progress=False).second_moment, full.second_moment)


def test_a_killed_collection_goes_on_bit_for_bit(model, cache, monkeypatch):
    options = {"tokens": 600, "shrink": True, "checkpoint_seconds": 0.0, "progress": False}
    whole = collect_statistics(model, [1], cache=False, **options)[1]
    real, left = collect._run, iter(range(3))

    def run(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(collect, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        collect_statistics(model, [1], **options)
    monkeypatch.setattr(collect, "_run", real)
    found = collect_statistics(model, [1], **options)[1]
    assert found.shrinkage == whole.shrinkage
    assert torch.equal(found.second_moment, whole.second_moment)
    assert not list(cache.glob("*partial*"))


def test_files_keep_the_shrinkage_and_those_of_before_have_none(model, tmp_path):
    quick = key_statistics(model, 1, tokens=250, shrink=True, cache=False, progress=False)
    path = quick.save(tmp_path / "quick.safetensors")
    assert load_statistics(path).shrinkage == quick.shrinkage > 0
    full = key_statistics(model, 1, tokens=250, cache=False, progress=False).save(tmp_path / "full.safetensors")
    with safe_open(full, framework="pt") as file:
        metadata, moment = file.metadata(), file.get_tensor("second_moment")
    ((name, header),) = metadata.items()
    described = {key: value for key, value in json.loads(header).items() if key not in ("shrinkage", "checksum")}
    described.pop("version")
    kind = STATISTICS
    described["checksum"] = kind.checksum({"second_moment": moment}, described)
    save_file({"second_moment": moment}, full, {name: json.dumps({"version": kind.version, **described})})
    assert load_statistics(full).shrinkage == 0


def test_shrunk_ones_do_not_add_up(model):
    quick = key_statistics(model, 1, tokens=250, shrink=True, cache=False, progress=False)
    plain = replace(quick, shrinkage=0.0)
    for one, other in ((quick, plain), (plain, quick)):
        with pytest.raises(DataError, match="shrunk do not add up"):
            one.merge(other)
    with pytest.raises(LocateError, match=r"shrink=True does not go with shard=\(0, 2\)"):
        collect_statistics(model, [1], tokens=250, shrink=True, shard=(0, 2))


@pytest.mark.parametrize(
    ("method", "amount"),
    [
        (edit.ROME(), "full"), (edit.AlphaEdit(), "full"), (edit.ROME(statistics="full"), "full"),
        (edit.AlphaEdit(statistics="quick"), "quick"), (edit.ROME(corpus="a.txt", statistics="quick"), "quick"),
    ],
)  # fmt: skip
def test_each_method_asks_for_what_it_needs(method, amount, model):
    assert method.amount == amount
    assert method.described(model).get("statistics") == ("quick" if amount == "quick" else None)


def test_another_word_is_refused():
    word: Any = "slow"
    with pytest.raises(NumericsError, match='statistics: give "quick", "full", or key statistics, found \'slow\''):
        edit.ROME(statistics=word)


class Bar(tqdm):
    """What a bar was told."""

    def __init__(self, *, desc, total, **_):
        super().__init__(disable=True)
        self.name, self.total, self.moves = desc, total, []

    def update(self, by=1):
        self.n += by
        self.moves.append(by)


@pytest.fixture
def bars(monkeypatch):
    made = []

    def make(**options):
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr(collect, "tqdm", make)
    monkeypatch.setattr("edit.values.progress.tqdm", make)
    return made


def test_progress_moves_with_every_token_that_is_written_and_every_block_that_is_read(model, bars):
    collect_statistics(model, [2], tokens=250)
    text, keys = bars
    assert (text.name, text.total, text.n) == ("text for key statistics", 256, 256)
    assert text.moves == [8] * 32
    assert (keys.total, keys.n) == (256, 256)
    assert len(keys.moves) == 4 * 3  # two batches in two passes, of three blocks each
    assert max(keys.moves) <= 80 / 3 + 1
    collect_statistics(model, [1], tokens=250)  # the text is kept
    assert (bars[2].n, bars[2].moves) == (256, [128, 128])


FACT = locate.Fact(prompt="{} stands in", subject="The Louvre", target="Paris", target_new="Rome")


@pytest.mark.parametrize(("threshold", "steps"), [(-1.0, 6), (1e9, 0)])
def test_an_edit_moves_with_every_step_of_its_value_and_forgets_those_it_spares(threshold, steps, model, bars):
    objective = edit.ValueObjective(steps=6, stop="loss", loss_threshold=threshold)
    method = edit.ROME(layer=1, objective=objective, prefixes=("I am. ",), openings=(), statistics_tokens=250)
    method.fit(model, [edit.EditRequest(FACT)])
    *_, bar = bars
    assert bar.name == "value"
    assert bar.moves == [1] * steps
    assert bar.total == bar.n == steps


def test_several_edits_move_one_bar(model, bars):
    objective = edit.ValueObjective(steps=3, stop="loss", loss_threshold=-1.0)
    requests = [edit.EditRequest(FACT), edit.EditRequest(replace(FACT, subject="Big Ben", target="London"))]
    for method in (edit.ROME(layer=1), edit.EMMET(layers=(1,))):
        method = replace(method, objective=objective, prefixes=("I am. ",), statistics_tokens=250)
        method.fit(model, requests)
        assert (bars[-1].name, bars[-1].n, bars[-1].total) == ("values of 2 requests", 6, 6)
