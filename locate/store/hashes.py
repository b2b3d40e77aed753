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


def fingerprint(facts: Iterable[Any], beside: Any = None) -> str:
    """A hash of the content of facts, or of other plain dataclasses; with plain data beside them, where there is any.

    >>> fingerprint(facts[:1]) == fingerprint(facts[:2])
    False
    """
    plain: list[Any] = [asdict(fact) for fact in facts]
    content = json.dumps(plain if beside is None else [*plain, beside], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
