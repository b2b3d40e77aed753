"""Find where a language model keeps a fact."""

from locate.corruption import GaussianNoise, embedding_std
from locate.errors import (
    DataError,
    FactError,
    LocateError,
    ModelError,
    NumericsError,
    SiteError,
    UpdateError,
)
from locate.facts import Consequence, Fact, OtherRelation, bundled_facts, load_facts
from locate.loading import load_model
from locate.prompts import Prompt, encode_fact
from locate.sites import Site
from locate.tracing import Trace, causal_trace, load_trace

__all__ = [
    "Consequence",
    "DataError",
    "Fact",
    "FactError",
    "GaussianNoise",
    "LocateError",
    "ModelError",
    "NumericsError",
    "OtherRelation",
    "Prompt",
    "Site",
    "SiteError",
    "Trace",
    "UpdateError",
    "bundled_facts",
    "causal_trace",
    "embedding_std",
    "encode_fact",
    "load_facts",
    "load_model",
    "load_trace",
]
