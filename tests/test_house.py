"""Rules of the house that a machine can check."""

import ast
import inspect
from pathlib import Path

import pytest

import edit
import locate

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted([*(ROOT / "locate").rglob("*.py"), *(ROOT / "edit").rglob("*.py")])


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_locate_never_imports_edit():
    for path in (ROOT / "locate").rglob("*.py"):
        assert not any(name.split(".")[0] == "edit" for name in imported(path)), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_documented_and_know_no_model_by_name(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))
    tree = ast.parse(text)
    compared = [n for node in ast.walk(tree) if isinstance(node, ast.Compare) for n in ast.walk(node)]
    strings = [n.value.lower() for n in compared if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    families = ("llama", "gpt", "gemma", "qwen", "olmo", "mistral", "bloom", "falcon", "phi")
    assert not [value for value in strings if any(family in value for family in families)]


@pytest.mark.parametrize("package", [locate, edit])
def test_every_public_name_has_a_docstring_with_an_example(package):
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, str) or (inspect.isclass(value) and issubclass(value, Exception)):
            continue
        assert value.__doc__, name
        assert ">>>" in value.__doc__, f"{package.__name__}.{name} has no example"
