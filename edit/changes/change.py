"""What every edit leaves behind, whatever it changes: one life cycle, in and out of a model and a file."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from locate.errors import UpdateError


class Change(ABC):
    """A change of a model that can be put in, taken out again bit for bit, and kept in a file.

    Attributes:
        method: that found it.
        info: what a reader wants to know of how it was found, as plain JSON values.
    """

    method: str
    info: Mapping[str, Any]

    @property
    @abstractmethod
    def parameters(self) -> list[str]:
        """The original Hugging Face names of the parameters that change; none where the weights stay as they are."""

    def factors(self, name: str) -> LowRank | None:
        """What is added to a parameter as a product of thin matrices; None where the change does not have it so.

        >>> update.factors(update.parameters[0]).rank
        1
        """
        return None

    @abstractmethod
    def is_applied(self, model: TransformerBridge) -> bool:
        """Whether the model has this change now."""

    @abstractmethod
    def apply(self, model: TransformerBridge) -> None:
        """Put the change into the model: all of it, or none.

        Raises:
            UpdateError: it is there already, or was made for another model.
        """

    @abstractmethod
    def revert(self, model: TransformerBridge) -> None:
        """Make the model what it was before, bit for bit.

        Raises:
            UpdateError: it is not there, or something else was changed on top of it.
        """

    @abstractmethod
    def save(self, path: str | Path) -> Path:
        """Write the change to one file, whole or not at all.

        Raises:
            UpdateError: the file cannot be written.
        """

    @contextmanager
    def applied(self, model: TransformerBridge) -> Iterator[TransformerBridge]:
        """The model with the change, for the length of a ``with`` block.

        Raises:
            UpdateError: as ``apply`` and ``revert`` do.
        """
        self.apply(model)
        try:
            yield model
        finally:
            if self.is_applied(model):
                self.revert(model)

    def describe(self) -> dict[str, Any]:
        """What a record of an edited model says of the change.

        >>> update.describe()["method"]
        'ROME'
        """
        return {"method": self.method, "parameters": self.parameters, "info": dict(self.info)}


def check_in_weights(change: Change, what: str) -> None:
    """Whether a change is one of the weights, where nothing else will do.

    Args:
        change: to be looked at.
        what: cannot be done otherwise, as the message names it.

    Raises:
        UpdateError: the weights stay as they are under it.

    >>> check_in_weights(update, "An export")
    """
    if not change.parameters:
        raise UpdateError(
            f"{what} takes the weights of a model, and this change by {change.method} leaves them as they are. Use a "
            "method that changes weights."
        )


@contextmanager
def within(model: TransformerBridge, change: Change) -> Iterator[None]:
    """The model with the change, whether or not it is applied now; as it was afterwards."""
    if change.is_applied(model):
        yield
    else:
        with change.applied(model):
            yield


@contextmanager
def without(model: TransformerBridge, change: Change) -> Iterator[None]:
    """The model without the change, whether or not it is applied now; as it was afterwards."""
    if not change.is_applied(model):
        yield
        return
    change.revert(model)
    try:
        yield
    finally:
        change.apply(model)
