"""Results on disk: labelled arrays and their description in one netCDF file, and plain data as JSON."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from locate.errors import DataError


def save_json(path: str | Path, value: Any) -> Path:
    """Write plain data as a JSON file, whole or not at all.

    >>> save_json("summary.json", {"clean": 0.7}).name
    'summary.json'
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def load_json(path: str | Path) -> Any:
    """Plain data from a JSON file.

    Raises:
        DataError: there is no such file, or it is not JSON.

    >>> load_json(save_json("summary.json", {"clean": 0.7}))
    {'clean': 0.7}
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def to_plain(value: Any) -> Any:
    """The same with plain numbers, and None for those that JSON does not have.

    >>> to_plain({"effect": np.float32(0.5), "low": float("nan")})
    {'effect': 0.5, 'low': None}
    """
    if isinstance(value, dict):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` once it is complete; its folder is made if need be.

    >>> with whole_file("numbers.txt") as partial:
    ...     _ = partial.write_text("1 2 3")
    >>> Path("numbers.txt").read_text()
    '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
