"""Every type of model does what docs/architectures.md says of it, against whole passes."""

import warnings

import pytest

from tests.architectures.document import PAGE, outcome, page, read
from tests.architectures.table import TYPES

# As unlike each other as they come: the others are tried among the slow tests.
SAMPLE = [
    "bloom", "deepseek_v3", "falcon:alibi", "gemma4_text", "granitemoe", "mamba",
    "opt:norms after, embeddings projected", "persimmon",
]  # fmt: skip
slow = pytest.mark.slow("a sample of the types stands for all")


@pytest.mark.budget(12, "every kind of site in all layers, against whole passes")
@pytest.mark.parametrize("kind", [kind if kind in SAMPLE else pytest.param(kind, marks=slow) for kind in TYPES])
def test_a_type_does_what_the_page_says(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outcome(kind) == read()["types"][kind]


def test_the_page_has_every_type():
    """``make architectures`` writes it again."""
    kept = read()
    assert list(kept["types"]) == list(TYPES)
    assert len(TYPES) >= 50
    assert page(kept) == PAGE.read_text(encoding="utf-8")
