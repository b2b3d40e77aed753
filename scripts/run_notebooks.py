"""Execute the notebooks and keep their outputs, but not their bars: they would stand where they were first drawn.

python scripts/run_notebooks.py [notebooks/01_quickstart.ipynb …]
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def execute(path: Path, parameters: Mapping[str, object] | None = None) -> nbformat.NotebookNode:
    """Run one notebook in its own folder; an error in a cell is raised.

    Parameters take the place of those in the cell tagged so. One that the cell does not set is refused.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        for name in parameters:
            if f"{name} = " not in notebook.cells[place].source:
                raise ValueError(f"{path.name} has no parameter {name}.")
        given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given, metadata={"tags": ["injected-parameters"]}))
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if not _bars(one)]
    return notebook


def _bars(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a bar: a widget, whose state is not kept."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main() -> None:
    """Execute the given notebooks, or all."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        print(path)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()
