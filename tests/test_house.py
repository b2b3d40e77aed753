"""Rules of the house that a machine can check."""

import ast
import inspect
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
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


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count as well."""
    graph = grimp.build_graph("locate", "edit", cache_dir=None)
    order = TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    assert len(list(order.static_order())) > 100


def test_names_are_imported_when_they_are_first_used():
    """Importing the packages imports no model library; every name that the stubs promise is there."""
    heavy = ("torch", "transformers", "transformer_lens", "xarray", "pandas", "matplotlib")
    code = (
        f"import sys, locate, edit; print([name for name in {heavy} if name in sys.modules]); "
        "[getattr(package, name) for package in (locate, edit) for name in package.__all__]"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_public_face_is_the_one_that_is_known():
    """What changed on purpose is accepted with ``make face``."""
    script = str(ROOT / "scripts" / "public_face.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, script, "--check"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"make face accepts this:\n{ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_documented_and_know_no_model_by_name(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text))
    tree = ast.parse(text)
    compared = [n for node in ast.walk(tree) if isinstance(node, ast.Compare) for n in ast.walk(node)]
    strings = [n.value.lower() for n in compared if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    families = ("llama", "gpt", "gemma", "qwen", "olmo", "mistral", "bloom", "falcon", "phi")
    assert not [value for value in strings if any(family in value for family in families)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_new_tensors_say_their_dtype(path):
    """Torch's default is the user's to set."""
    made = {f"torch.{name}" for name in ("zeros", "ones", "rand", "randn", "eye", "empty", "linspace", "logspace")}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func) in made]
    assert not [ast.unparse(call) for call in named if "dtype" not in {word.arg for word in call.keywords}]


@pytest.mark.parametrize("package", [locate, edit])
def test_every_public_name_has_a_docstring_with_an_example(package):
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, str) or (inspect.isclass(value) and issubclass(value, Exception)):
            continue
        assert value.__doc__, name
        assert ">>>" in value.__doc__, f"{package.__name__}.{name} has no example"
