"""The parts of a propagation report: what each is called, what it needs, and where it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from edit.names import HEADS
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
        progress: whether to show bars.
    """

    sides: Sides
    probes: Sequence[Probe]
    request: EditRequest | None
    flow: Propagation
    options: Mapping[str, Any]
    progress: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: its function is called with the model, the sides and what it is about.

    Attributes:
        title: what it tells, in words.
        function: that makes it, as ``"module:name"`` within this room.
        result: what it gives, likewise.
        about: ``probes`` (all of them), ``edit`` (those of the edit itself), ``request``, or ``weights`` (no probes).
        flowing: of which kind of state it takes the mediation, where that was measured.
        usual: options that a report asks for.
        quick: whether its function has no bar to show.
        file: the ending of its file.
    """

    title: str
    function: str
    result: str
    about: str
    flowing: str | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
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
        measured = self.flowing in given.flow.info["kinds"] and given.flow.mediated
        # What was not mediated is not looked at either.
        flowing = {"flow": given.flow, "roles": given.flow.info["roles"]} if self.flowing and measured else {}
        bars = {} if self.quick else {"progress": given.progress}
        options = {**bars, **self.usual, **flowing, **given.options}
        return _named(self.function)(given.sides.model, given.sides, *about, **options)

    def load(self, path: Any) -> Any:
        """The part that was saved."""
        return _named(self.result).load(path)


def _named(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    return getattr(import_module(f"edit.propagation.{module}"), attribute)


# In the order of the report: first what carries the edit, then what it moved and left.
PARTS: dict[str, Part] = {
    "map": Part(
        title="The way it takes, layer by layer and token by token", function="flowing:flow_map",
        result="flowing:FlowMap", about="probes", flowing="mlp",
    ),
    "circuit": Part(
        title="The edit's circuit: the fewest edges found that carry it", function="circuit_search:edit_circuit",
        result="circuit:EditCircuit", about="edit",
    ),
    "contributions": Part(
        title="What writes the new answer, and what the old one", function="contributions:contribution_shift",
        result="contributions:ContributionShift", about="probes", quick=True,
    ),
    "reuse": Part(
        title="Whether what carries it to its own prompt carries it further", function="reuse:mediator_reuse",
        result="reused:MediatorReuse", about="probes", flowing=HEADS,
    ),
    "attention": Part(
        title="Where attention looks now", function="attention:attention_drift", result="attention:AttentionDrift",
        about="request", usual={"roles": "edit"},
    ),
    "residue": Part(
        title="What is left of the old answer", function="residue:old_fact_residue", result="residue:OldFactResidue",
        about="request",
    ),
    "traces": Part(
        title="Whether the new answer is found where the old one was", function="traces:trace_shift",
        result="traces:TraceShift", about="request",
    ),
    "circuits": Part(
        title="The circuit of the fact before and after", function="circuits:circuit_shift",
        result="circuits:CircuitShift", about="request",
    ),
    "footprint": Part(
        title="What was done to the weights", function="footprint:weight_footprint",
        result="footprint:WeightFootprint", about="weights", quick=True,
    ),
    "reversal": Part(
        title="Whether it can be undone", function="reversal:reversibility", result="reversal:Reversal", about="edit",
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
