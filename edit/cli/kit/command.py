"""A command: a function of groups of options that tells what it found."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

from edit.cli.kit.options import JsonOption
from edit.cli.kit.output import Outcome, readable_errors
from edit.cli.kit.speaking import Voice


def command(run: Callable[..., Outcome]) -> Callable[..., None]:
    """The function as Typer takes it: each group of options spread out, ``--json`` added, its outcome told.

    Args:
        run: takes options, groups of them (dataclasses whose fields are options), and a console for what it says on
            the way; its docstring is the help.
    """
    hints = get_type_hints(run, include_extras=True)
    groups: dict[str, type] = {}
    consoles: list[str] = []
    options: list[Parameter] = []
    for name, parameter in signature(run).parameters.items():
        if hints[name] is Voice:
            consoles.append(name)
        elif is_dataclass(hints[name]):
            groups[name] = hints[name]
            options += _options(hints[name])
        else:
            options.append(_option(name, hints[name], parameter.default))
    options.append(_option("as_json", JsonOption, False))

    def told(*, as_json: bool, **given: Any) -> None:
        with readable_errors() as console:
            # Each group takes its own options out; what is left are the command's own.
            own: dict[str, Any] = dict.fromkeys(consoles, console)
            for name, group in groups.items():
                own[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            outcome = run(**own, **given)
            console.settle()
            outcome.tell(console, as_json=as_json)

    # Typer reads a command's options off its signature.
    told.__signature__ = Signature(options)  # type: ignore[attr-defined]
    told.__annotations__ = {option.name: option.annotation for option in options}
    told.__doc__ = run.__doc__
    return told


def command_line() -> str:
    """What was typed, for pages to say what they were made by."""
    return shlex.join(["locate-edit", *sys.argv[1:]])


def _options(group: type) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [_option(field.name, hints[field.name], field.default) for field in fields(group)]


def _option(name: str, hint: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
