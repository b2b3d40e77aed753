"""Circuits on disk: whole, as safetensors, or readable, as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from locate.errors import DataError
from locate.sites.components import Component
from locate.store.files import to_plain, whole_file
from locate.store.tensors import Kind, read_tensors, write_tensors

CIRCUIT = Kind(name="circuit", noun="a circuit", version=1, remedy="find the circuit again")
_FORMS = (".safetensors", ".json")
# Of the components, in the file.
_SIDES = ("writers", "readers")
Arrays = Mapping[str, np.ndarray]


def write_circuit(path: str | Path, arrays: Arrays, plain: Mapping[str, Any]) -> Path:
    """Write arrays and a description in the form that the file's name asks for.

    Args:
        path: ends in ``.safetensors`` or ``.json``.
        arrays: ``kept`` and ``scores``, and ``standard_error`` and ``by_position`` where there are.
        plain: ``writers``, ``readers`` and ``info``.

    Raises:
        DataError: another form.
    """
    form, described = _form(path), {**plain, **{side: [_row(one) for one in plain[side]] for side in _SIDES}}
    if form == ".json":
        with whole_file(path) as partial:
            partial.write_text(_as_text(arrays, described), encoding="utf-8")
        return Path(path)
    return write_tensors(path, CIRCUIT, {name: torch.from_numpy(one) for name, one in arrays.items()}, described)


def read_circuit(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description that ``write_circuit`` wrote.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    try:
        if _form(path) == ".json":
            return _from_text(path)
        tensors, described = read_tensors(path, CIRCUIT)
        return {name: one.numpy() for name, one in tensors.items()}, _with_components(described)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not {CIRCUIT.noun}: {error!r}; {CIRCUIT.remedy}.") from error


def _form(path: str | Path) -> str:
    form = Path(path).suffix
    if form not in _FORMS:
        raise DataError(f"{path}: a circuit's file ends in {' or '.join(_FORMS)}, found {form or 'no ending'!r}.")
    return form


def _row(one: Component) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if value is not None}


def _with_components(described: dict[str, Any]) -> dict[str, Any]:
    sides = {side: tuple(Component(**one) for one in described[side]) for side in _SIDES}
    return {"info": dict(described["info"]), **sides}


def _as_text(arrays: Arrays, described: Mapping[str, Any]) -> str:
    """JSON with a line for each component and edge; the largest edges first."""
    kept, scores, error = arrays["kept"], arrays["scores"], arrays.get("standard_error")
    writers, readers = ([one["name"] for one in described[side]] for side in _SIDES)
    places = sorted(map(tuple, np.argwhere(kept)), key=lambda at: -abs(scores[at]))
    edges = [[writers[at[0]], readers[at[1]], scores[at], *([] if error is None else [error[at]])] for at in places]
    whole = {
        "circuit": CIRCUIT.version, "info": described["info"],
        "columns": ["writer", "reader", "scores", *([] if error is None else ["standard_error"])], "edges": edges,
        **{side: described[side] for side in _SIDES},
    }  # fmt: skip
    parts = [f"{json.dumps(name)}: {_lines(to_plain(one))}" for name, one in whole.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    """JSON, of a list one item a line."""
    if not isinstance(value, list) or not value or isinstance(value[0], str):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "[\n" + ",\n".join("  " + json.dumps(one, ensure_ascii=False, allow_nan=False) for one in value) + "\n]"


def _from_text(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no circuit file {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}); {CIRCUIT.remedy}.") from error
    if not isinstance(read, dict) or read.get("circuit") != CIRCUIT.version:
        raise DataError(f"{path} is a JSON file but not {CIRCUIT.noun} of format {CIRCUIT.version}; {CIRCUIT.remedy}.")
    plain = _with_components(read)
    writers, readers = ({one.name: at for at, one in enumerate(plain[side])} for side in _SIDES)
    shape, columns = (len(writers), len(readers)), read["columns"][2:]
    places = tuple(
        np.array([side[edge[at]] for edge in read["edges"]], dtype=int) for at, side in enumerate((writers, readers))
    )
    arrays = {"kept": np.zeros(shape, dtype=bool)} | {name: np.full(shape, np.nan) for name in columns}
    arrays["kept"][places] = True
    for number, name in enumerate(columns, start=2):
        arrays[name][places] = [np.nan if edge[number] is None else float(edge[number]) for edge in read["edges"]]
    return arrays, plain
