"""Short names for facts, fit for files."""

import re
from collections import Counter
from collections.abc import Sequence

from locate.errors import DataError
from locate.facts.facts import Fact
from locate.store.hashes import fingerprint


def case_keys(facts: Sequence[Fact]) -> list[str]:
    """A short name for each fact, fit for a file: its id or, lacking it, its subject and a hash of its content.

    A fact's name is the same whatever stands before it, but that of equal facts without ids are counted.

    Raises:
        DataError: two facts share an id.

    >>> case_keys(facts[:1])
    ['eiffel-tower-city']
    >>> case_keys([locate.Fact(prompt="{} is in", subject="Rome", target="Italy")])
    ['Rome-...']
    """
    keys: list[str] = []
    alike: Counter[str] = Counter()
    first: dict[str, int] = {}
    for fact in facts:
        key = _key(fact)
        alike[key] += fact.id is None
        keys.append(f"{key}-{alike[key]}" if alike[key] > 1 else key)
    for index, key in enumerate(keys):
        # Some file systems do not tell capitals apart.
        other = first.setdefault(key.casefold(), index)
        if other != index:
            raise DataError(
                f"Two facts have the ids {facts[other].id!r} and {facts[index].id!r}. Ids name the files of results, "
                "so they must differ, and not in capitals alone."
            )
    return keys


def _key(fact: Fact) -> str:
    if fact.id and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fact.id):
        return fact.id
    name = re.sub(r"[^A-Za-z0-9]+", "-", fact.id or fact.subject).strip("-")[:60]
    return f"{name or 'fact'}-{fingerprint([fact])[:8]}"
