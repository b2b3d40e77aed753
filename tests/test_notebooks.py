"""The notebooks run, draw what they show, and keep the outputs of the default model."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# In place of the notebooks' own, on a small model.
SMALL = {
    "03_editing_family.ipynb": {"FACTS": ["germany-capital"], "MORE": 1, "TOKENS": 2_000},
    "06_location_report.ipynb": {"LAYERS": [2, 4]},
}
# Always run; the others are tried among the slow tests.
SAMPLE = ("01_quickstart",)
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
slow = pytest.mark.slow("one notebook stands for all")
some = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[] if path.stem in SAMPLE else slow) for path in NOTEBOOKS]
)


@pytest.fixture
def execute(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows figures as outputs
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))["execute"]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


def check(ran, path):
    assert not [output for cell in code(ran) for output in cell.outputs if output.output_type == "error"]
    assert pictures(ran) == pictures(nbformat.read(path, as_version=4)) >= 2


@some
@pytest.mark.budget(60, "a notebook stands for many, in a process of its own")
def test_notebooks_run(path, execute, stand_in, cache_apart):
    check(execute(path, {"MODEL": str(stand_in), **SMALL.get(path.name, {})}), path)


@each
@pytest.mark.real_model
@pytest.mark.slow("minutes of the default model")
def test_notebooks_run_on_the_default_model(path, execute):
    check(execute(path), path)


@each
def test_notebooks_keep_the_outputs_of_the_default_model(path):
    cells = code(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    assert 'MODEL = "smollm2-135m"' in parameters.source
    assert not [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    assert not [output for cell in cells for output in cell.outputs if "%|" in str(output)]  # bars that stand still
    # A reader copies what stands here: public names alone.
    imported = re.findall(r"from ((?:edit|locate)[.\w]*) import", "\n".join(cell.source for cell in cells))
    assert set(imported) <= {"edit", "locate", "locate.plots"}


def test_parameters_that_a_notebook_does_not_set_are_refused(execute):
    with pytest.raises(ValueError, match=r"01_quickstart\.ipynb has no parameter SAMPLES"):
        execute(NOTEBOOKS[0], {"SAMPLES": 2})
