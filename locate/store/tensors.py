"""Tensors on disk with a JSON description, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from locate.errors import DataError
from locate.store.files import whole_file


def write_tensors(
    path: str | Path, tensors: dict[str, Tensor], kind: str, version: str, described: dict[str, Any]
) -> Path:
    """Write a safetensors file that takes its place only once it is complete and on disk.

    Args:
        path: the file; its folder is made where there is none.
        tensors: by name.
        kind: what they are, such as ``"statistics"``.
        version: of the format.
        described: everything else, as plain data.

    >>> import torch
    >>> write_tensors("ones.safetensors", {"ones": torch.ones(2)}, "ones", "1", {}).name
    'ones.safetensors'
    """
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"format": version, kind: json.dumps(described)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    return Path(path)


def read_tensors(path: str | Path, kind: str, version: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description that ``write_tensors`` wrote.

    Raises:
        DataError: the file is missing, damaged, of another kind, or of another format.

    >>> import torch
    >>> path = write_tensors("twos.safetensors", {"twos": torch.ones(2) * 2}, "twos", "1", {"of": "two"})
    >>> read_tensors(path, "twos", "1")
    ({'twos': tensor([2., 2.])}, {'of': 'two'})
    """
    name = f"key {kind}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found != version or kind not in metadata:
                held = f"found format {found}" if kind in metadata else "found something else"
                raise DataError(f"{path}: not {name} of format {version} ({held}); collect them again.")
            described = json.loads(metadata[kind])
            if not isinstance(described, dict):
                raise ValueError(f"the description is a {type(described).__name__}")
            return {key: file.get_tensor(key) for key in file.keys()}, described  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise DataError(f"There is no {kind} file {str(path)!r}.") from error
    except DataError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged {name} ({error}); delete the file to collect them again.") from error
