"""Write the public face to tests/public_face.txt: names, parameters and the options of commands.

    python scripts/public_face.py [--check]

With --check nothing is written; what differs is printed, and the exit code says whether anything does.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import typer

import edit
import locate
from edit.cli import app

FACE = Path(__file__).resolve().parents[1] / "tests" / "public_face.txt"


def parameters(function: object) -> str:
    """A function's parameters with their defaults: types are the type checker's to compare."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", text)


def of_class(name: str, kind: type) -> Iterator[str]:
    """A class with its fields or parameters, and its public methods and properties."""
    if issubclass(kind, Exception):
        yield f"{name}: {', '.join(base.__name__ for base in kind.__bases__)}"
        return
    yield name + (parameters(kind) if "__init__" in vars(kind) else "")
    for member in sorted(set(dir(kind)) - set(dir(object))):
        value = inspect.getattr_static(kind, member)
        if member.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        yield f"{name}.{member}" + (parameters(value) if inspect.isfunction(value) else "")


def of_module(module: ModuleType) -> Iterator[str]:
    """The names that a module or package offers."""
    for name in sorted(module.__all__):
        value, whole = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.isclass(value):
            yield from of_class(whole, value)
        elif inspect.ismodule(value):
            yield from of_module(value)
        else:
            yield whole + (parameters(value) if callable(value) else "")


def face() -> str:
    """All of it, one line a name."""
    lines = [*of_module(locate), *of_module(edit)]
    for name, command in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]
        lines += [f"locate-edit {name} {' '.join([*option.opts, *option.secondary_opts])}" for option in command.params]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check."""
    now = face()
    if "--check" not in sys.argv[1:]:
        FACE.write_text(now, encoding="utf-8")
        return 0
    before = FACE.read_text(encoding="utf-8")
    difference = difflib.unified_diff(before.splitlines(), now.splitlines(), "known", "now", n=0, lineterm="")
    print("\n".join(difference))
    return int(before != now)


if __name__ == "__main__":
    sys.exit(main())
