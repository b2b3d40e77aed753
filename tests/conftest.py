"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine makes no example wrong, and every run tries the same ones.
settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items):
    """Files that are slow throughout go first, so that no worker is left with one of them at the end."""

    def quick(item):
        marks = getattr(item.module, "pytestmark", [])
        return not any(mark.name == "slow" for mark in (marks if isinstance(marks, list) else [marks]))

    items.sort(key=quick)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public benchmark data, which is not part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"public benchmark data not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def smollm():
    """The bundled default model. Tests that change it must put it back."""
    import locate

    return locate.load_model()
