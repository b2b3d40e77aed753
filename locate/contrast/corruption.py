"""Ways to make a model forget its subject.

A corruption says what stands in the subject's place: other embeddings, or another subject's tokens. A new
one is a class here with a ``corrupt`` method; everything else follows from the protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import Hook
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt
from locate.sites.table import hook_name
from locate.store.hashes import fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted:
    """A prompt's corrupted versions.

    Attributes:
        tokens: what is run, one row per sample.
        embeddings: what stands in place of the subject's embeddings; None where the tokens say it all.
        beside: the same of the other modules that look tokens up, by name, in models that have any.
        subjects: the subjects that stand there, where they are subjects.
    """

    tokens: Int[Tensor, "sample position"]
    embeddings: Float[Tensor, "sample span d_model"] | None = None
    beside: Mapping[str, Float[Tensor, "sample span _"]] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()


@runtime_checkable
class Corruption(Protocol):
    """How the subject is corrupted.

    >>> isinstance(locate.GaussianNoise(), Corruption)
    True
    """

    @property
    def samples(self) -> int:
        """How many corrupted versions each prompt gets."""
        ...

    def corrupt(self, model: TransformerBridge, fact: Fact, prompt: Prompt) -> Corrupted:
        """The prompt's corrupted versions."""
        ...


def describe(corruption: Corruption) -> dict[str, Any]:
    """What a corruption is, as plain data for a result's record; of facts it draws on, their number and a hash.

    >>> describe(locate.GaussianNoise(samples=3))["corruption"]
    'GaussianNoise'
    """
    plain: dict[str, Any] = {}
    for name, value in vars(corruption).items():
        if name in ("reference", "pool"):
            plain |= {} if value is None else {name: f"{len(value)} facts ({fingerprint(value)[:12]})"}
        else:  # a swap's subject is not the prompt's own, of which a record tells as well
            plain["other_subject" if name == "subject" else name] = value
    return {"corruption": type(corruption).__name__, "samples": corruption.samples, **plain}


def run_corrupted(
    parts: Sequence[Corrupted], prompts: Sequence[Prompt]
) -> tuple[Int[Tensor, "row position"], list[Hook]]:
    """The rows to run for several corrupted prompts of one length, and the hooks that corrupt them."""
    tokens = torch.cat([part.tokens for part in parts])
    places: dict[str, list[tuple[slice, slice, Tensor]]] = {}
    first = 0
    for part, prompt in zip(parts, prompts, strict=True):
        rows = slice(first, first + len(part.tokens))
        first = rows.stop
        if part.embeddings is not None:
            for name, made in {hook_name("embed"): part.embeddings, **part.beside}.items():
                places.setdefault(name, []).append((rows, slice(*prompt.subject_span), made))
    return tokens, [(name, partial(_replace, own)) for name, own in places.items()]


def _replace(places: Sequence[tuple[slice, slice, Tensor]], value: Tensor, hook: object = None) -> Tensor:
    value = value.clone()
    for rows, span, embeddings in places:
        value[rows, span] = embeddings.to(value)
    return value
