"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import shapes

# A busy machine makes no example wrong, and every run tries the same ones.
settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")
os.environ.setdefault("MPLBACKEND", "Agg")

pytest_plugins = ["pytester", "tests.budget"]
shapes.install()


def pytest_collection_modifyitems(items):
    """The slow ones go first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A small model in place of the default one, as a folder."""
    from tests import tiny

    return tiny.stand_in(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture
def not_resumed(monkeypatch):
    """Blocks that give something else when they are called alone, so that every run falls back to whole passes."""
    from locate.engine.calls import BlockCall

    replay = BlockCall.replay
    monkeypatch.setattr(BlockCall, "replay", lambda *args: 1.01 * replay(*args))


@pytest.fixture
def cache_apart(tmp_path_factory, monkeypatch):
    """Key statistics of the small model are kept while the tests run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"  # workers share one
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(folder))
