"""Files of key statistics on the command line."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import edit
from locate.errors import DataError

SUFFIX = ".safetensors"


def statistics_files(given: Iterable[Path]) -> list[Path]:
    """Files of statistics, and those in folders.

    Raises:
        DataError: a folder has none.
    """
    files: list[Path] = []
    for path in given:
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"There are no {SUFFIX} files in the folder {str(path)!r}.")
        files += inside
    return files


def add_up(files: Iterable[Path], layers: Container[int] | None = None) -> dict[int, edit.KeyStatistics]:
    """The statistics in some files, by layer, with shards of a layer added up; of some layers, or of all.

    Raises:
        DataError: a file is not readable, or does not go with the others; the message names it.
    """
    found: dict[int, edit.KeyStatistics] = {}
    for path in files:
        statistics = edit.load_statistics(path)
        if layers is not None and statistics.layer not in layers:
            continue
        try:
            so_far = found.get(statistics.layer)
            found[statistics.layer] = statistics if so_far is None else so_far.merge(statistics)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return dict(sorted(found.items()))
