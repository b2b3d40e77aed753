"""Help and mistakes are told at once: no model library is imported before a command needs one."""

import subprocess
import sys
from importlib.metadata import version

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "xarray", "matplotlib", "numpy")
# Runs the command line, and prints what it has imported of these.
SCRIPT = f"""
import sys
from edit.cli import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def run(*arguments):
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True)


# Every command there is asks for its help, one after the other.
HELP = f"""
import sys
from edit.cli import app
for name in [command.name for command in app.registered_commands]:
    app([name, "--help"], standalone_mode=False)
print("imported:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def test_help_imports_no_model_library():
    ran = run("--help")
    assert "Usage:" in ran.stdout
    assert ran.stderr.split() == ["imported:"]
    every = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert every.stdout.count("Usage:") >= 11, every.stderr
    assert every.stderr.split() == ["imported:"]


def test_the_version_imports_no_model_library():
    ran = run("--version")
    assert (ran.returncode, ran.stdout) == (0, f"locate-edit {version('locate-edit')}\n")
    assert ran.stderr.split() == ["imported:"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "--corruption", "noise"], "Invalid value for '--corruption'"),
        (["trace", "--limit", "2"], "--relation and --limit choose among several facts"),
        (["edit", "--stabilise", "nase"], "Did you mean nas?"),
        (["stats"], "Give the layers to collect key statistics of"),
        (["demo", "--prompt", "{} is"], "--subject and --target missing"),
    ],
)
def test_a_mistake_is_told_without_any(arguments, message):
    ran = run(*arguments)
    assert ran.returncode == 2
    assert message in " ".join(ran.stderr.replace("│", " ").split())
    assert ran.stderr.split("imported:")[1].split() == []
