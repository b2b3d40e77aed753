"""Reading saved key statistics."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edit.statistics.moments import STATISTICS, KeyStatistics, Part
from locate.errors import DataError
from locate.store.tensors import read_tensors

_TYPES = {"count": int, "layer": int, "corpus": str, "seed": int, "fingerprint": str, "dtype": str, "parts": list}


def load_statistics(path: str | Path) -> KeyStatistics:
    """Read statistics that were saved.

    Raises:
        DataError: the file is missing, damaged or of another format.

    >>> path = edit.key_statistics(model, layer=4).save("statistics.safetensors")
    >>> load_statistics(path).layer
    4
    """
    tensors, described = read_tensors(path, STATISTICS)
    try:
        return _made(tensors["second_moment"], described)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: damaged key statistics ({error!r}); delete the file to collect them again."
        ) from error


def _made(moment: Tensor, described: dict[str, Any]) -> KeyStatistics:
    for name, kind in _TYPES.items():
        if type(described[name]) is not kind:
            raise TypeError(f"{name} is {described[name]!r}")
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or moment.dtype != torch.float64:
        raise ValueError(f"the second moment is {moment.dtype} of shape {tuple(moment.shape)}")
    if described["count"] < 1:
        raise ValueError(f"count is {described['count']}")
    shrinkage = described.get("shrinkage", 0.0)  # files of before quick statistics have none
    if not isinstance(shrinkage, float) or not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage!r}")
    parts = tuple(Part(str(source), int(index), int(of)) for source, index, of in described["parts"])
    fields = {name: described[name] for name in _TYPES}
    return KeyStatistics(second_moment=moment, **{**fields, "parts": parts}, shrinkage=shrinkage)
