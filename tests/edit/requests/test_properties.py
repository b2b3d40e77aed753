"""What holds of any requests: conflicts are between two, whichever comes first."""

from hypothesis import given, settings
from hypothesis import strategies as st

import edit
import locate

REQUESTS = st.builds(
    lambda subject, prompt, target, new: edit.EditRequest(
        locate.Fact(prompt=prompt, subject=subject, target=target), new
    ),
    st.sampled_from(["The Louvre", "the louvre", "Big Ben"]),
    st.sampled_from(["{} is in", "{} stands in", "Where is {}? In"]),
    st.sampled_from(["Paris", "London"]),
    st.sampled_from(["Rome", "Oslo", "rome"]),
)
quickly = settings(max_examples=60)


def told(requests):
    """How many pairs are told, and the requests in them."""
    found = edit.find_conflicts(requests)
    return len(found), {id(one) for pair in found for one in pair}


@quickly
@given(requests=st.lists(REQUESTS, max_size=6), data=st.data())
def test_conflicts_do_not_depend_on_the_order(requests, data):
    assert told(data.draw(st.permutations(requests))) == told(requests)


@quickly
@given(one=REQUESTS, other=REQUESTS)
def test_a_conflict_is_told_whichever_comes_first(one, other):
    assert edit.find_conflicts([one, other]) == [pair[::-1] for pair in edit.find_conflicts([other, one])]
    assert edit.find_conflicts([one], earlier=[other]) == edit.find_conflicts([other, one])
    assert edit.find_conflicts([one, one])  # it would count twice in every solve
