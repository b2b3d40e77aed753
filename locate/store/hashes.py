"""Hashes of plain data and of files."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(facts: Iterable[Any]) -> str:
    """A hash of the content of facts, or of other plain dataclasses.

    >>> fingerprint(facts[:1]) == fingerprint(facts[:2])
    False
    """
    content = json.dumps([asdict(fact) for fact in facts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
