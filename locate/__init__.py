"""Find where a language model keeps a fact."""

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

__all__ = [
    "Consequence",
    "DataError",
    "Fact",
    "FactError",
    "LocateError",
    "ModelError",
    "NumericsError",
    "OtherRelation",
    "Prompt",
    "Site",
    "SiteError",
    "UpdateError",
    "bundled_facts",
    "encode_fact",
    "load_facts",
    "load_model",
]
