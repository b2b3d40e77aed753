"""Batches of a session on disk: each in a safetensors file that its content names, and that names the one before it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from edit.changes.lowrank import LowRank
from edit.methods import Written
from edit.requests.requests import EditRequest
from edit.sessions.batches import Batch
from locate.errors import DataError
from locate.store.files import write_whole

_KEY = "locate_edit_batch"
_SIDES = ("left", "right")


def save_chain(batches: Sequence[Batch], folder: Path) -> list[Batch]:
    """Write what is not on disk of batches that follow each other; each names the one before it.

    So the last one stands for all, and a session's notes do not grow with its length.

    >>> save_chain([batch], folder)[0].before is None                               # doctest: +SKIP
    True
    """
    chain: list[Batch] = []
    for batch in batches:
        before = chain[-1].file if chain else None
        if batch.file is None or batch.before != before:
            batch = replace(batch, before=before)
            batch = replace(batch, file=save_batch(batch, folder).name)
        chain.append(batch)
    return chain


def load_chain(last: str | None, folder: Path) -> list[Batch]:
    """The batches that end with this file, the first one first.

    Raises:
        DataError: a file is missing, damaged, or not what its name says.

    >>> load_chain(None, Path("batches"))
    []
    """
    chain: list[Batch] = []
    while last is not None:
        chain.append(load_batch(folder / last))
        last = chain[-1].before
    return chain[::-1]


def save_batch(batch: Batch, folder: Path) -> Path:
    """Write a batch to a file that is named by its content, whole or not at all.

    >>> save_batch(batch, folder).suffix                                            # doctest: +SKIP
    '.safetensors'
    """
    tensors = {f"{name}.{side}": getattr(delta, side) for name, delta in batch.deltas.items() for side in _SIDES}
    for layer, one in batch.written.items():
        tensors |= {f"written.{layer}.keys": one.keys, f"written.{layer}.values": one.values}
    described = {
        "requests": [asdict(request) for request in batch.requests], "anchors": dict(batch.anchors), "info": batch.info,
        "parameters": list(batch.deltas), "layers": list(batch.written), "before": batch.before,
    }  # fmt: skip
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_KEY: json.dumps(described)})
    path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
    return write_whole(path, content)


def load_batch(path: Path) -> Batch:
    """Read a batch back.

    Raises:
        DataError: the file is missing, damaged, or not what its name says.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:24] != path.stem:
            raise DataError(f"{path} is damaged: its content does not match its name. Begin the session again.")
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        requests = TypeAdapter(list[EditRequest]).validate_python(described["requests"])
    except FileNotFoundError as error:
        raise DataError(f"There is no batch {str(path)!r}, of which the session tells. Begin it again.") from error
    except (SafetensorError, OSError, KeyError, ValueError, ValidationError) as error:
        raise DataError(f"{path} is not a batch of a session: {error}") from error
    return Batch(
        requests=tuple(requests), file=path.name, before=described["before"], info=described["info"],
        anchors={int(layer): norm for layer, norm in described["anchors"].items()},
        deltas={n: LowRank(**{s: tensors[f"{n}.{s}"] for s in _SIDES}) for n in described["parameters"]},
        written={
            n: Written(layer=n, keys=tensors[f"written.{n}.keys"], values=tensors[f"written.{n}.values"])
            for n in described["layers"]
        },
    )  # fmt: skip
