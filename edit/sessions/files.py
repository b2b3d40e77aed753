"""Batches of a session on disk: each in a safetensors file that its content names, and that names the one before it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edit.changes.lowrank import deltas_in, factors_of
from edit.methods import Written
from edit.requests.requests import EditRequest
from edit.sessions.batches import Batch
from locate.errors import DataError
from locate.store.hashes import sha256
from locate.store.tensors import Kind, read_tensors, write_tensors

# Without version and checksum it is one from before there were any, whose name vouches for it.
_BATCH = Kind(name="batch", noun="a batch of a session", version=1, remedy="begin the session again", unmarked=True)


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
    tensors = factors_of(batch.deltas)
    for layer, one in batch.written.items():
        tensors |= {f"written.{layer}.keys": one.keys, f"written.{layer}.values": one.values}
    described = {
        "requests": [asdict(request) for request in batch.requests], "info": batch.info, "before": batch.before,
        "anchors": {str(layer): norm for layer, norm in batch.anchors.items()},
        "parameters": list(batch.deltas), "layers": list(batch.written),
    }  # fmt: skip
    path = folder / f"{_named(_BATCH.checksum(tensors, described))}.safetensors"
    return write_tensors(path, _BATCH, tensors, described)


def load_batch(path: Path) -> Batch:
    """Read a batch back.

    Raises:
        DataError: the file is missing, damaged, or not what its name says.
    """
    if not path.is_file():
        raise DataError(f"There is no batch {str(path)!r}, of which the session tells. Begin it again.")
    tensors, described = read_tensors(path, _BATCH)
    # Files were named by a hash of themselves once.
    if path.stem not in (_named(_BATCH.checksum(tensors, described)), _named(sha256(path))):
        raise DataError(f"{path} is damaged: its content does not match its name. Begin the session again.")
    try:
        requests = TypeAdapter(list[EditRequest]).validate_python(described["requests"])
        written = {
            layer: Written(
                layer=layer, keys=tensors[f"written.{layer}.keys"], values=tensors[f"written.{layer}.values"]
            )
            for layer in described["layers"]
        }
        return Batch(
            requests=tuple(requests), file=path.name, before=described["before"], info=described["info"],
            anchors={int(layer): norm for layer, norm in described["anchors"].items()},
            deltas=deltas_in(tensors, described["parameters"]), written=written,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise DataError(f"{path} is not a batch of a session: {error}") from error


def _named(digest: str) -> str:
    return digest[:24]
