"""Hyperparameters that are checked as they are given: their ranges stand in their types, and errors name the field."""

import inspect
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.dataclasses import dataclass as validated
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from torch import Tensor

from locate.errors import LocateError, NumericsError

_Owner = TypeVar("_Owner")
# Of errors whose message is a sentence of ours, with {} for what was found.
_TOLD = "told"


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def hyperparameters(cls: type[_Owner]) -> type[_Owner]:
    """Make a class a frozen, keyword-only dataclass whose fields are checked against their types.

    Numbers of NumPy and PyTorch become Python's own, and lists become tuples: a sweep takes its numbers from arrays,
    and files and the names of session folders need plain ones.

    Raises:
        NumericsError: (when an instance is made) a field is not as its type says; the message names it.

    >>> edit.MEMIT(weight=np.float64(30)).weight
    30.0
    """
    config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
    made: Any = validated(cls, frozen=True, kw_only=True, config=config)
    check = made.__init__

    @wraps(check)
    def __init__(self: Any, *positional: Any, **given: Any) -> None:
        try:
            check(self, *positional, **{name: plain(value) for name, value in given.items()})
        except ValidationError as error:
            raise _readable(made.__name__, error) from None

    made.__init__ = __init__
    # Of plain types, for those who read it: what is checked stands in the docstring.
    hints, signature = get_type_hints(made), inspect.signature(made)
    parameters = [one.replace(annotation=hints[one.name]) for one in signature.parameters.values()]
    made.__signature__ = signature.replace(parameters=parameters)
    return made


@dataclass(frozen=True)
class Told:
    """In a field's type: what is said where a value does not pass, with {} for the value.

    >>> Share = Annotated[float, Field(ge=0, le=1), Told("must be from 0 to 1, found {}.")]
    """

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(handler(source), _TOLD, custom_error_message=self.words)


class Unchecked:
    """In a field's type: that its value is looked at only where it is used."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.any_schema()


def refused(words: str) -> PydanticCustomError:
    """What a field's own check raises: words with {} for what was found.

    >>> str(refused("must be even, found {}."))
    'must be even, found {}.'
    """
    return PydanticCustomError(_TOLD, words)  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """Python's own number or tuple for those of NumPy and PyTorch.

    >>> plain([np.int64(3), torch.tensor(0.5)])
    (3, 0.5)
    """
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    return tuple(plain(one) for one in value) if isinstance(value, list | tuple | range) else value


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as an integer, whatever its type.

    Raises:
        NumericsError: it is not a whole number, or is below the least that makes sense.

    >>> whole("tokens", 1e5)
    100000
    """
    value = plain(value)
    try:
        value = _whole(value)
    except PydanticCustomError as error:
        raise NumericsError(f"{name}: {str(error).format(repr(value))}") from None
    if least is not None and value < least:
        raise NumericsError(f"{name}: must be {least} or more, found {value}.")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int):
        raise refused("must be a whole number, found {}.")
    return int(value)


def _readable(owner: str, error: ValidationError) -> Exception:
    """The first of pydantic's complaints, as this project tells it."""
    first = error.errors(include_url=False)[0]
    name, words, found = first["loc"][0], first["msg"], first["input"]
    if first["type"].startswith("unexpected_"):
        return TypeError(f"{owner}: {words[0].lower()}{words[1:]} {name!r}.")
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, LocateError):
        return raised
    if first["type"] != _TOLD:
        words = f"{words[0].lower()}{words[1:]}, found {{}}."
    return NumericsError(f"{name}: {words.format(repr(found))}")


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Told("must be positive, found {}.")]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Told("must be 0 or more, found {}.")]
Finite = Annotated[float, Field(allow_inf_nan=False), Told("must be finite, found {}.")]
Share = Annotated[float, Field(ge=0, le=1), Told("must be from 0 to 1, found {}.")]
Whole = Annotated[int, BeforeValidator(_whole)]
Natural = Annotated[int, Field(ge=0), Told("must be 0 or more, found {}."), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1), Told("must be 1 or more, found {}."), BeforeValidator(_whole)]
