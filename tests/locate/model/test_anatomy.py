"""What is found about a model once."""

from locate.model.anatomy import once
from tests import tiny


def test_it_is_found_once_for_each_model_and_goes_with_it():
    one, other = tiny.bridge("llama"), tiny.bridge("llama")
    asked = []

    def find():
        asked.append(1)
        return len(asked)

    assert [once(one, "a", find), once(one, "a", find), once(other, "a", find), once(one, "b", find)] == [1, 1, 2, 3]
    assert not any("_locate_found" in name for name in one.state_dict())
