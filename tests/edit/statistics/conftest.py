"""What tests of key statistics share: a cache of their own, and batches that are soon read."""

import pytest

from edit.statistics import collect


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of 8 sequences of 16 tokens, run 5 at a time."""
    monkeypatch.setattr(collect, "ROWS", 8)
    monkeypatch.setattr(collect, "LENGTH", 16)
    monkeypatch.setattr(collect, "WHOLE_BUDGET", 5 * 16)
