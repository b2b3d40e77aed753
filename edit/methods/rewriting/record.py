"""What an update's file says of how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from edit.methods.rewriting.locate_then_edit import LocateThenEdit, Prepared
from edit.requests.requests import EditRequest
from edit.values.contexts import Contexts
from edit.values.objective import Value

# What is said in another way, or depends on the machine.
_APART = (
    "layer", "objective", "prefixes", "statistics", "stabilisers", "corpus", "statistics_tokens", "budget", "layers",
)  # fmt: skip


def record(method: LocateThenEdit, prepared: Prepared, edits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the whole update: the method's hyperparameters, and what they came to on this model."""
    one = next(iter(prepared.statistics.values()))
    own = {name: value for name, value in _plain(method).items() if name not in _APART}
    return {
        **own, "layers": list(prepared.statistics), "objective": _plain(method.value_objective()),
        "prefixes": list(prepared.prefixes[1:]),
        "stabilisers": [{"name": stabiliser.name, **_plain(stabiliser)} for stabiliser in method.stabilisers],
        "statistics": {"corpus": one.corpus, "count": one.count, "seed": one.seed, "shrinkage": one.shrinkage},
        "edits": list(edits),
    }  # fmt: skip


def described_edit(request: EditRequest, context: Contexts, value: Value) -> dict[str, Any]:
    """Of one request, and how its value was found."""
    return {
        "request": request.describe(), "prompt": request.fact.prompt, "subject": request.fact.subject,
        "target": request.fact.target, "target_new": request.target_new, "answer_tokens": list(context.spelled),
        "losses": value.losses, "stopped": value.stopped, "probability": value.probability, "end": value.end,
        "missed": value.missed, "value_norm": float(value.value.norm()), "initial_norm": float(value.initial.norm()),
    }  # fmt: skip


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
