"""What to change: a fact and its new object."""

from dataclasses import dataclass

from locate.errors import FactError
from locate.facts import Fact


@dataclass(frozen=True)
class EditRequest:
    """Make the model answer ``fact`` with ``target_new``.

    Args:
        fact: the fact to change.
        target_new: the new object, without a leading space; by default the fact's own counterfactual.

    Raises:
        FactError: there is no new target, or it equals the old one.

    >>> request = EditRequest(fact, target_new="Rome")
    >>> request.describe()
    'The Eiffel Tower is located in the city of: Paris → Rome'
    """

    fact: Fact
    target_new: str = ""

    def __post_init__(self) -> None:
        new = self.target_new or self.fact.target_new or ""
        if not new.strip():
            raise FactError(
                f"target_new: the request for {self.fact.text!r} has no new target. "
                "Give target_new=…, or a fact that carries one."
            )
        if new != new.strip():
            raise FactError(f"target_new: {new!r} has space around it; give it bare.")
        if new == self.fact.target:
            raise FactError(f"target_new: {new!r} is the present answer, so there is nothing to change.")
        object.__setattr__(self, "target_new", new)

    def describe(self) -> str:
        """One line that says what changes."""
        return f"{self.fact.text}: {self.fact.target} → {self.target_new}"
