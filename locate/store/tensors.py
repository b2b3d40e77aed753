"""Tensors on disk with a JSON description: of a kind and a version, under a checksum, whole or not at all."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from locate.errors import DataError
from locate.store.files import whole_file


def raw_bytes(tensor: Tensor) -> Tensor:
    """Every byte of a tensor's values.

    >>> raw_bytes(torch.zeros(2)).shape
    torch.Size([8])
    """
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def tensor_hash(tensor: Tensor) -> str:
    """A SHA-256 hash of a tensor's dtype, shape and every bit of its values, wherever it is stored.

    >>> tensor_hash(torch.zeros(2)) == tensor_hash(-torch.zeros(2))
    False
    """
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(raw_bytes(tensor).cpu().numpy().data)
    return digest.hexdigest()


def tensor_sum(tensor: Tensor) -> str:
    """The same by CRC-32, five times as fast: it notices damage, and tells nothing apart on purpose.

    >>> tensor_sum(torch.zeros(2)) == tensor_sum(torch.ones(2))
    False
    """
    return f"{tensor.dtype} {tuple(tensor.shape)} {zlib.crc32(raw_bytes(tensor).cpu().numpy().data):08x}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a file holds, and how it is told when it does not.

    Attributes:
        name: as it stands in the file, such as ``"statistics"``.
        noun: as messages call it, such as ``"key statistics"`` or ``"a weight update"``.
        version: of the description.
        remedy: what to do where a file is of no use, such as ``"collect them again"``.
        digest: of each tensor, for the checksum.
        unmarked: whether files without version and checksum are read, which something else vouches for.
    """

    name: str
    noun: str
    version: int
    remedy: str
    digest: Callable[[Tensor], str] = tensor_hash
    unmarked: bool = False

    def checksum(self, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> str:
        """Over the description, as it will be read again, and all tensors."""
        described = json.loads(json.dumps(described))
        prints = {name: self.digest(tensor) for name, tensor in tensors.items()}
        return hashlib.sha256(json.dumps([described, prints], sort_keys=True).encode()).hexdigest()


def write_tensors(path: str | Path, kind: Kind, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Path:
    """Write a safetensors file that takes its place only once it is complete and on disk.

    Args:
        path: the file; its folder is made where there is none.
        kind: what it holds.
        tensors: by name.
        described: everything else, as plain data.

    >>> ones = Kind(name="ones", noun="ones", version=1, remedy="count again")
    >>> write_tensors("ones.safetensors", ones, {"ones": torch.ones(2)}, {}).name
    'ones.safetensors'
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = {"version": kind.version, **described, "checksum": kind.checksum(whole, described)}
    with whole_file(path) as partial:
        save_file(whole, partial, metadata={_key(kind): json.dumps(header)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    return Path(path)


def read_tensors(path: str | Path, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description that ``write_tensors`` wrote, or an earlier version of this program.

    Raises:
        DataError: the file is missing, damaged, of another kind, or of another format.

    >>> twos = Kind(name="twos", noun="twos", version=1, remedy="count again")
    >>> path = write_tensors("twos.safetensors", twos, {"twos": torch.ones(2) * 2}, {"of": "two"})
    >>> read_tensors(path, twos)
    ({'twos': tensor([2., 2.])}, {'of': 'two'})
    """
    plain = kind.noun.removeprefix("a ")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise DataError(f"There is no {kind.name} file {str(path)!r}.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: damaged {plain} (it is not a readable safetensors file: {error}); delete the file, and "
            f"{kind.remedy}."
        ) from error
    other = f"{path} is a safetensors file but not {kind.noun} of format {kind.version}"
    try:
        header = _header(metadata, kind)
    except (TypeError, ValueError) as error:
        raise DataError(f"{other} (damaged {plain}: {error}); delete the file, and {kind.remedy}.") from error
    if header is None:
        raise DataError(f"{other} (found something else); {kind.remedy}.")
    version, checksum = header.pop("version", None), header.pop("checksum", None)
    if version != kind.version and not (version is None and kind.unmarked):
        raise DataError(f"{other} (found format {version}); {kind.remedy}.")
    if checksum is None and version is not None:
        raise DataError(f"{other} (damaged {plain}: it has no checksum); delete the file, and {kind.remedy}.")
    if checksum not in (_OLD, None) and checksum != kind.checksum(tensors, header):
        raise DataError(f"{path} is damaged: its checksum does not match; delete the file, and {kind.remedy}.")
    return tensors, header


# In place of a checksum, of files from before there was one.
_OLD = object()


def _key(kind: Kind) -> str:
    return f"locate_edit_{kind.name}"


def _header(metadata: Mapping[str, str], kind: Kind) -> dict[str, Any] | None:
    """A file's description with version and checksum; None where it has none of this kind."""
    old = kind.name in metadata and _key(kind) not in metadata
    text = metadata.get(kind.name if old else _key(kind))
    if text is None:
        return None
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError(f"the description is a {type(header).__name__}")
    return {**header, "version": int(metadata.get("format", "0")), "checksum": _OLD} if old else header
