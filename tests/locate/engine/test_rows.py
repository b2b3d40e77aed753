"""Grouping rows into passes: every item once, never over the budget, little padding."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locate.engine.rows import Budget, Extent, aligned, cut, in_parts, padded, passes
from tests import tiny

SIZES = st.integers(1, 40)
EXTENTS = st.lists(
    st.builds(Extent, length=SIZES, beside=st.integers(0, 9), rows=st.integers(1, 5), readouts=st.integers(0, 4)),
    max_size=30,
)
LIMITS = st.none() | st.integers(0, 50)
BUDGETS = st.builds(
    Budget, tokens=st.integers(1, 400), gradients=st.integers(1, 9), logits=SIZES,
    distributions=st.integers(1, 20), padding=LIMITS,
)  # fmt: skip


def fits(items, budget, gradients, most):
    """Whether these items may be one pass, said plainly."""
    rows, longest = sum(item.rows for item in items), max(item.length for item in items)
    tokens = rows * (longest + max(item.beside for item in items))
    steps = [(sum(one.rows for one in items[:n]), items[n - 1].length, items[n].length) for n in range(1, len(items))]
    return (
        tokens <= budget.tokens
        and (rows * longest * budget.gradients <= budget.tokens or not gradients)
        and sum(item.readouts for item in items) <= budget.distributions
        and len(items) <= (most or 10**9)
        and all(n * (after - before) <= (10**9 if budget.padding is None else budget.padding)
                for n, before, after in steps)
    )  # fmt: skip


@given(items=EXTENTS, budget=BUDGETS, gradients=st.booleans(), most=st.none() | st.integers(1, 6))
def test_every_item_is_in_one_pass_that_fits_and_no_pass_could_take_the_next(items, budget, gradients, most):
    groups = passes(items, budget, gradients=gradients, most=most)
    order = list(itertools.chain(*groups))
    assert sorted(order) == list(range(len(items)))
    assert [items[i].length for i in order] == sorted(item.length for item in items)
    for group in groups:
        assert group
        assert len(group) == 1 or fits([items[i] for i in group], budget, gradients, most)
    for group, following in itertools.pairwise(groups):
        assert not fits([items[i] for i in [*group, following[0]]], budget, gradients, most)
    assert groups == passes(items, budget, gradients=gradients, most=most)


@given(lengths=st.lists(SIZES, max_size=30), tokens=st.integers(1, 200))
def test_without_padding_rows_have_one_length_and_keep_their_order(lengths, tokens):
    for group in passes([Extent(length=length) for length in lengths], Budget(tokens=tokens).unpadded):
        assert len({lengths[i] for i in group}) == 1
        assert group == sorted(group)
        assert len(group) <= Budget(tokens=tokens).rows(lengths[group[0]])


def test_no_pass_is_larger_than_the_budget():
    lengths = [7, 40, 3, 12, 10, 5]
    items = [Extent(length=length) for length in lengths]
    groups = passes(items, Budget(tokens=30))
    assert sorted(index for group in groups for index in group) == list(range(6))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 30 for group in groups)
    assert max(len(group) for group in groups) == 3
    assert max(len(group) for group in passes(items, Budget(tokens=30), most=2)) == 2
    assert passes([], Budget()) == []


@given(budget=BUDGETS, length=SIZES, logits=st.booleans(), gradients=st.booleans())
def test_as_many_rows_as_fit_and_at_least_one(budget, length, logits, gradients):
    def taken(rows):
        each = max(length, budget.logits) if logits else length
        return rows * each * (budget.gradients if gradients else 1)

    rows = budget.rows(length, logits=logits, gradients=gradients)
    assert rows >= 1
    assert rows == 1 or taken(rows) <= budget.tokens
    assert taken(rows + 1) > budget.tokens


@given(sizes=st.lists(st.integers(0, 12), max_size=12), most=st.integers(-1, 9))
def test_items_are_cut_into_full_parts_in_order(sizes, most):
    parts = cut(sizes, most)
    rows = [[(item, row) for item, own in part for row in range(sizes[item])[own]] for part in parts]
    assert list(itertools.chain(*rows)) == [(item, row) for item, size in enumerate(sizes) for row in range(size)]
    assert all(len(part) == max(1, most) for part in rows[:-1])
    assert all(0 < len(part) <= max(1, most) for part in rows)
    # No item stands twice in a part, so that what is cut is cut as seldom as can be.
    assert all(len({item for item, _ in part}) == len(part) for part in parts)
    assert in_parts(range(sum(sizes)), most) == list(map(range, *_ends([len(part) for part in rows])))


def _ends(lengths):
    stops = list(itertools.accumulate(lengths))
    return [0, *stops[:-1]] if stops else [], stops


@given(rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=6), data=st.data())
def test_rows_stand_at_one_column_and_the_mask_covers_what_is_left_of_them(rows, data):
    columns = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    texts = [torch.tensor(row) for row in rows]
    tokens, mask = aligned(texts, columns)
    assert tokens[:, max(columns)].tolist() == [row[column] for row, column in zip(rows, columns, strict=True)]
    for row, found, own in zip(rows, tokens.tolist(), mask.tolist(), strict=True):
        assert [token for token in found if token] == row
        assert own == [int(any(found[: place + 1])) for place in range(len(found))]
    assert all(any(column) for column in tokens.T.tolist())
    assert torch.equal(
        padded([torch.tensor(row) for row in rows]), aligned(list(map(torch.tensor, rows)), [0] * len(rows))[0]
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_models_budget_counts_its_vocabulary_and_device(kind):
    model = tiny.bridge(kind)
    budget = Budget.of(model, 500)
    assert budget.tokens == 500
    assert budget.logits == -(-model.cfg.d_vocab // (8 * model.cfg.d_model))
    assert budget.distributions == 2**25 // model.cfg.d_vocab
    assert budget.padding == 64
