"""Warnings stand at the line of the user's that led to them."""

import pytest
import torch

from locate.errors import tell


@pytest.mark.parametrize("room", ["edit", "locate"])
def test_a_warning_is_at_the_line_that_called_the_toolkit(room):
    inside = {"__name__": f"{room}.inside", "tell": tell, "torch": torch}
    source = """
def noticed():
    tell("so it is")
@torch.inference_mode(False)
def one_by_one():
    yield noticed()
@torch.no_grad()
def fit():
    list(one_by_one())
"""
    exec(compile(source, "inside.py", "exec"), inside)
    for call in (inside["noticed"], inside["fit"], lambda: next(inside["one_by_one"]())):
        with pytest.warns(UserWarning, match="so it is") as caught:
            call()
        assert [one.filename for one in caught] == [__file__]
