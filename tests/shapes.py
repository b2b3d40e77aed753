"""What the check of shapes makes of a nested function is kept: else it is made again whenever the function is.

The engine makes such functions by the thousand; a third of the tests' time went into checking them afresh.
"""

import functools
import inspect
from collections.abc import Callable
from types import CodeType

import jaxtyping


def keep(decorate: Callable) -> Callable:
    """``jaxtyped``, asked once for all functions that are made of the same nested ``def``."""
    made: dict[CodeType, tuple[Callable, list[Callable]]] = {}

    @functools.wraps(decorate)
    def jaxtyped(fn=None, **options):
        if fn is None:
            return functools.partial(jaxtyped, **options)
        if not inspect.isfunction(fn) or "<locals>" not in fn.__qualname__:
            return decorate(fn, **options)
        if fn.__code__ not in made:
            called: list[Callable] = []

            @functools.wraps(fn)
            def whichever(*args, **kwargs):
                return called.pop()(*args, **kwargs)

            made[fn.__code__] = decorate(whichever, **options), called
        check, called = made[fn.__code__]

        @functools.wraps(fn)
        def checked(*args, **kwargs):
            called.append(fn)
            return check(*args, **kwargs)

        return checked

    return jaxtyped


def install() -> None:
    """Before the packages are imported: their functions ask for it by this name."""
    jaxtyping.jaxtyped = keep(jaxtyping.jaxtyped)
