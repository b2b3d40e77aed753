"""What may be asked for."""

import pytest

import edit
import locate

FACT = locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris", target_new="Rome")


def test_the_facts_own_counterfactual_is_the_default():
    assert edit.EditRequest(FACT).target_new == "Rome"
    assert edit.EditRequest(FACT, target_new="Oslo").describe() == "The Louvre is in: Paris → Oslo"


@pytest.mark.parametrize(
    ("target_new", "message"),
    [("Paris", "is the present answer"), (" Rome", "has space around it"), ("  ", "has no new target")],
)
def test_unusable_targets_are_refused(target_new, message):
    with pytest.raises(locate.FactError, match=message):
        edit.EditRequest(FACT, target_new=target_new)


def test_a_fact_without_counterfactual_needs_a_target():
    with pytest.raises(locate.FactError, match="has no new target"):
        edit.EditRequest(locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris"))
