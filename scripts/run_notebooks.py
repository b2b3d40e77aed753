"""Execute the notebooks and keep their outputs.

python scripts/run_notebooks.py [notebooks/01_quickstart.ipynb …]
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def execute(path: Path) -> nbformat.NotebookNode:
    """Run one notebook in its own folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    return notebook


def main() -> None:
    """Execute the given notebooks, or all."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        print(path)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()
