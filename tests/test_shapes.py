"""Nested functions are checked as others are, each with what it closes over."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from tests import shapes


@pytest.fixture
def decorate():
    calls = []

    def counted(fn, **options):
        calls.append(fn)
        return jaxtyping.jaxtyped.__wrapped__(fn, **options)

    keep = shapes.keep(counted)
    return lambda fn: keep(typechecker=beartype)(fn), calls


def test_it_is_asked_once_for_functions_of_one_def(decorate):
    checked, calls = decorate

    def scaled(by, bias=0.0):
        @checked
        def scale(x: Float[Tensor, "row column"], plus: float = bias) -> Float[Tensor, "column row"]:
            return by * x.T + plus

        return scale

    twice, thrice = scaled(2), scaled(3, 1.0)
    assert len(calls) == 1
    ones = torch.ones(2, 3)
    assert float(twice(ones)[0, 0]) == 2
    assert float(thrice(ones)[0, 0]) == 4
    assert float(thrice(twice(ones), plus=2.0)[0, 0]) == 8
    for function in (twice, thrice):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters of"):
            function(torch.ones(2))
        assert function.__name__ == "scale"
    assert float(twice(ones)[0, 0]) == 2


def test_what_is_returned_is_checked(decorate):
    checked, _ = decorate

    def make(columns):
        @checked
        def f(x: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
            return x[:columns]

        return f

    make(3)(torch.ones(3))
    with pytest.raises(jaxtyping.TypeCheckError, match="return value of"):
        make(2)(torch.ones(3))


def test_recursion_generators_and_context_managers(decorate):
    checked, _ = decorate

    def counter(step):
        @checked
        def down(n: int) -> int:
            return 0 if n <= 0 else 1 + counter(step)(n - step)

        return down

    assert counter(2)(5) == 3

    def counting(end):
        @contextlib.contextmanager
        @checked
        def within(start: int) -> Iterator[list[int]]:
            yield list(range(start, end))

        return within

    with counting(3)(1) as inner, counting(5)(2) as outer:
        assert (inner, outer) == ([1, 2], [2, 3, 4])


def test_functions_of_a_module_and_classes_are_left_to_it(decorate):
    checked, calls = decorate
    assert checked(counting_none) is not counting_none
    checked(counting_none)
    assert len(calls) == 2


def counting_none(x: int) -> int:
    return x
