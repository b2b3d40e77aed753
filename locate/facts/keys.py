"""Short names for facts, fit for files."""

import re
from collections.abc import Sequence

from locate.errors import DataError
from locate.facts.facts import Fact
from locate.store.hashes import fingerprint


def case_keys(facts: Sequence[Fact]) -> list[str]:
    """A short name for each fact, fit for a file: its id or, lacking it, its index and a hash of its content.

    Raises:
        DataError: two facts share an id.

    >>> case_keys(facts[:1])
    ['eiffel-tower-city']
    >>> case_keys([locate.Fact(prompt="{} is in", subject="Rome", target="Italy")])
    ['0000-...']
    """
    keys = [_key(index, fact) for index, fact in enumerate(facts)]
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        # Some file systems do not tell capitals apart.
        other = first.setdefault(key.casefold(), index)
        if other != index:
            raise DataError(
                f"Records {other} and {index} have the ids {facts[other].id!r} and {facts[index].id!r}. Ids name the "
                "files of results, so they must differ, and not in capitals alone."
            )
    return keys


def _key(index: int, fact: Fact) -> str:
    if fact.id and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fact.id):
        return fact.id
    name = re.sub(r"[^A-Za-z0-9]+", "-", fact.id or "").strip("-")[:60]
    return f"{name or f'{index:04d}'}-{fingerprint([fact])[:8]}"
