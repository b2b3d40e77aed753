"""A few types of models among the tests that are always run, the others among the slow ones."""

from collections.abc import Sequence

import pytest

# As unlike each other as they come: norms, grouped queries, parallel blocks, norms after, experts.
SAMPLE = ("gpt2", "llama", "gemma2", "cohere", "falcon", "granite", "llama4_text")
slow = pytest.mark.slow("a sample of the types stands for all")


def sampled(kinds: Sequence[str]) -> list:
    """Parameters for ``pytest.mark.parametrize``."""
    return [kind if kind in SAMPLE else pytest.param(kind, marks=slow) for kind in kinds]
