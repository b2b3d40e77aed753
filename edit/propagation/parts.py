"""The parts of a propagation report: what each is called, what it needs, and where it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from edit.propagation.propagation import Propagation
from edit.propagation.sides import Sides
from edit.requests.probes import Probe
from edit.requests.requests import EditRequest
from locate.errors import FactError, suggest


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a report is made of.

    Attributes:
        sides: base and edited weights.
        probes: what is asked.
        request: the edit, where it is known.
        flow: totals and mediation.
        options: of this part, as its function takes them.
    """

    sides: Sides
    probes: Sequence[Probe]
    request: EditRequest | None
    flow: Propagation
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: its function is called with the model, the sides and what it is about.

    Attributes:
        title: what it tells, in words.
        function: that makes it, as ``"module:name"`` within this room.
        result: what it gives, likewise.
        about: ``probes`` (all of them), ``edit`` (those of the edit itself), ``request``, or ``weights`` (no probes).
        flowing: whether it takes the mediation that was measured.
        file: the ending of its file.
    """

    title: str
    function: str
    result: str
    about: str
    flowing: bool = False
    file: str = "nc"

    def make(self, given: Given) -> Any:
        """The part.

        Raises:
            LocateError: it cannot be made of what is given.
        """
        about: tuple[Any, ...] = ()
        if self.about == "request":
            if given.request is None:
                raise FactError("It is about the edited fact: give a request, beside probes as request=….")
            about = (given.request,)
        elif self.about != "weights":
            asked = [one for one in given.probes if self.about == "probes" or one.role == "edit"]
            if not asked:
                raise FactError("It is about the edit's own prompt: give a probe of role 'edit'.")
            about = (asked,)
        if self.flowing and self.about == "probes" and not given.flow.mediated:
            raise FactError("It is about what was mediated: give a role that there are probes of to mediate=….")
        flowing = {"flow": given.flow} if self.flowing else {}
        return _named(self.function)(given.sides.model, given.sides, *about, **flowing, **given.options)

    def load(self, path: Any) -> Any:
        """The part that was saved."""
        return _named(self.result).load(path)


def _named(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    return getattr(import_module(f"edit.propagation.{module}"), attribute)


PARTS: dict[str, Part] = {
    "map": Part(
        title="The way it takes, layer by layer and token by token", function="flowing:flow_map",
        result="flowing:FlowMap", about="probes", flowing=True,
    ),
    "contributions": Part(
        title="What writes the new answer, and what the old one", function="contributions:contribution_shift",
        result="contributions:ContributionShift", about="probes",
    ),
}  # fmt: skip


def wanted_parts(names: Sequence[str] | str) -> tuple[str, ...]:
    """The parts of these names, in the report's order; ``"all"`` for all of them.

    Raises:
        FactError: there is no such part.

    >>> wanted_parts("all") == tuple(PARTS)
    True
    """
    if names == "all":
        return tuple(PARTS)
    asked = [names] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in PARTS:
            raise FactError(f"parts: there is no {name!r}. {suggest(name, PARTS)}")
    return tuple(name for name in PARTS if name in asked)
