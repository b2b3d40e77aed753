"""What the tests of docs/transformer_lens.md share."""

import pytest

from tests.transformer_lens.page import Library


@pytest.fixture
def library(request):
    """``with library:`` stands around what a library does: where it no longer does, the row to mend is named."""
    return Library(request.node.originalname)
