"""Run folders: a run over many cases that may be killed at any time, and goes on where it stopped."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from locate.errors import DataError
from locate.store.files import save_json

_FORMAT = 1
_DESCRIPTION, _CASES, _LOCK = "run.json", "cases.jsonl", ".lock"


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What is known of a case that was worked on.

    Attributes:
        case: its key.
        file: its result's file, relative to the run folder.
        found: what was found, as plain data.
        error: why it failed, where it did.
        of: a fingerprint of what was worked on, where it may be changed from one run to the next.

    >>> CaseRecord(case="louvre-city", found={"clean": 0.7}).failed
    False
    """

    case: str
    file: str | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    of: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is an error instead of a result."""
        return self.error is not None


class RunFolder:
    """A folder with the results of a run over many cases, which knows the cases that are finished.

    ``run.json`` says what the run is; ``cases.jsonl`` has a line for each finished case, which is on disk when
    ``record`` returns. Files with results are the caller's to write, before the case is recorded.

    >>> from locate.facts.keys import case_keys
    >>> with RunFolder.open("runs/lengths", {"command": "lengths"}) as run:
    ...     for fact, key in zip(facts[:2], case_keys(facts[:2])):
    ...         if key in run.pending([key]):
    ...             run.record(key, {"length": len(fact.text)})
    >>> run.done["eiffel-tower-city"].found["length"]
    42
    """

    def __init__(self, path: Path, lock: FileLock, records: dict[str, CaseRecord]) -> None:
        self.path = path
        self._lock = lock
        self._records = records

    @classmethod
    def open(cls, path: str | Path, description: Mapping[str, Any]) -> "RunFolder":
        """Begin a run in a folder, or go on with the one that is there.

        Args:
            path: the folder; it is made where there is none.
            description: what the run is, as plain data: everything that its results depend on.

        Raises:
            DataError: the folder belongs to another run that has finished something, is in use, or is damaged.

        >>> with RunFolder.open("runs/one", {"model": "smollm2-135m"}) as run:
        ...     run.record("a")
        >>> RunFolder.open("runs/one", {"model": "gpt2"})
        Traceback (most recent call last):
        locate.errors.DataError: runs/one belongs to another run: model was "smollm2-135m" and is "gpt2" now...
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is a file; a run needs a folder. Give another path.")
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(
                f"{path} is in use by a run that is still going. Wait until it ends, or give another folder."
            ) from error
        try:
            _begin(path, json.loads(json.dumps(description)))
            return cls(path, lock, _read_cases(path / _CASES))
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others open the folder."""
        self._lock.release()

    @property
    def done(self) -> dict[str, CaseRecord]:
        """The cases with a result, by key."""
        return {key: record for key, record in self._records.items() if not record.failed}

    @property
    def failed(self) -> dict[str, CaseRecord]:
        """The cases that failed, by key."""
        return {key: record for key, record in self._records.items() if record.failed}

    def pending(self, keys: Iterable[str] | Mapping[str, str], *, retry_failed: bool = False) -> list[str]:
        """The cases that are still to be worked on: not recorded, recorded of something else, or without their file.

        Args:
            keys: of all cases; with the fingerprint of each, where cases may be changed from one run to the next.
            retry_failed: whether those that failed count.

        >>> with RunFolder.open("runs/pending", {}) as run:
        ...     run.record("a")
        ...     run.pending(["a", "b"])
        ['b']
        """
        of = keys if isinstance(keys, Mapping) else dict.fromkeys(keys)
        return [key for key in of if not self._settled(key, of[key], retry_failed)]

    def changed(self, of: Mapping[str, str]) -> list[str]:
        """The cases that are recorded of something else than these fingerprints say.

        >>> with RunFolder.open("runs/changed", {}) as run:
        ...     run.record("a", of="1")
        ...     run.changed({"a": "2"}), run.changed({"a": "1", "b": "1"})
        (['a'], [])
        """
        return [key for key, one in of.items() if key in self._records and self._records[key].of != one]

    def dropped(self, keys: Iterable[str]) -> list[str]:
        """The cases that are recorded and not among these.

        >>> with RunFolder.open("runs/dropped", {}) as run:
        ...     run.record("a")
        ...     run.dropped(["b"])
        ['a']
        """
        wanted = set(keys)
        return [key for key in self._records if key not in wanted]

    def record(
        self,
        key: str,
        found: Mapping[str, Any] | None = None,
        *,
        file: str | Path | None = None,
        of: str | None = None,
    ) -> None:
        """Note that a case is finished. Its file reaches the disk before the note does.

        Args:
            key: of the case.
            found: what was found, as plain data.
            file: with its result, within the run folder.
            of: a fingerprint of the case; see ``pending``.

        Raises:
            DataError: the file is not within the run folder, or is not there.

        >>> with RunFolder.open("runs/record", {}) as run:
        ...     run.record("a", {"clean": 0.7}, file=trace.save(run.path / "traces" / "a.nc"))
        >>> run.done["a"].file
        'traces/a.nc'
        """
        name: str | None = None
        if file is not None:
            if not Path(file).is_file() or not Path(file).is_relative_to(self.path):
                raise DataError(f"The result of {key!r} must be a file within {self.path}, found {str(file)!r}.")
            name = Path(file).relative_to(self.path).as_posix()
            _sync(Path(file))
        self._append(CaseRecord(case=key, file=name, found=dict(found or {}), of=of))

    def record_failure(self, key: str, error: Exception, *, of: str | None = None) -> None:
        """Note that a case failed, and why.

        >>> with RunFolder.open("runs/failure", {}) as run:
        ...     run.record_failure("a", locate.FactError("The subject covers no token."))
        >>> run.failed["a"].error
        'FactError: The subject covers no token.'
        """
        self._append(CaseRecord(case=key, error=f"{type(error).__name__}: {error}", of=of))

    def _settled(self, key: str, of: str | None, retry_failed: bool) -> bool:
        record = self._records.get(key)
        if record is None or (of is not None and record.of != of):
            return False
        if record.failed:
            return not retry_failed
        return record.file is None or (self.path / record.file).is_file()

    def _append(self, record: CaseRecord) -> None:
        line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        path = self.path / _CASES
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            # A line that a full disk cut short must not be the beginning of the next one.
            if path.exists():
                os.truncate(path, size)
            raise
        self._records[record.case] = record


def _begin(path: Path, description: dict[str, Any]) -> None:
    """Write what the run is, or check that the folder's run is the same."""
    target = path / _DESCRIPTION
    if not target.exists():
        if (path / _CASES).exists():
            raise DataError(f"{path} has finished cases but no {_DESCRIPTION} to say of what. Give another folder.")
        save_json(target, {"format": _FORMAT, **description})
        _sync(target)
        return
    try:
        found = json.loads(target.read_text(encoding="utf-8"))
        version = found.pop("format")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{target} does not describe a run: {error!r}. Give another folder.") from error
    if found != description and not any(path.rglob(_CASES)):
        # Nothing was finished there, so nothing is lost: a run that a mistake ended is begun again.
        target.unlink()
        _begin(path, description)
        return
    if version != _FORMAT:
        raise DataError(f"{path} is a run of format {version}; this version goes on with format {_FORMAT}.")
    if differences := _differences(found, description):
        raise DataError(
            f"{path} belongs to another run: {'; '.join(differences)}. Give another folder, or what that run was "
            "given to go on with it."
        )


def _differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = _flat(there), _flat(now)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} was {_shown(old, name)} and is {_shown(new, name)} now"
        for name in names
        if _number(old.get(name)) != _number(new.get(name))
    ]


def _number(value: Any) -> Any:
    """A number that was noted as text as one, so that 30 is 30.0."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, one in value.items():
        flat |= _flat(one, f"{prefix}{name}.") if isinstance(one, dict) else {f"{prefix}{name}": one}
    return flat


def _shown(values: dict[str, Any], name: str) -> str:
    text = json.dumps(values[name], ensure_ascii=False) if name in values else "not given"
    return text if len(text) <= 40 else f"{text[:20]}…{text[-8:]}"


def _read_cases(path: Path) -> dict[str, CaseRecord]:
    if not path.exists():
        return {}
    content = path.read_bytes()
    # A run that was killed while it wrote a line leaves it without an end; that case was not finished.
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    records: dict[str, CaseRecord] = {}
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            record = CaseRecord(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not the record of a case: {error}. Delete the line to run that case again."
            ) from error
        records[record.case] = record
    return records


def _sync(path: Path) -> None:
    """Wait until a file and its name are on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    # Not every system lets a folder be opened; one that does not has no such step.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
