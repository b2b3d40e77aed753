"""Labelled arrays and their description in one netCDF file."""

import json
from pathlib import Path
from typing import Any

import xarray as xr

from locate.errors import DataError
from locate.store.files import whole_file


def save_result(path: str | Path, name: str, version: int, data: xr.Dataset, plain: dict[str, Any]) -> Path:
    """Write arrays and a JSON description as one file, whole or not at all.

    Args:
        path: the file; its folder is made where there is none.
        name: what the file holds, such as ``"trace"``.
        version: of its format.
        data: the arrays.
        plain: everything else, as JSON.
    """
    described = data.assign_attrs({name: json.dumps({**plain, "format": version})})
    with whole_file(path) as partial:
        described.to_netcdf(partial, engine="netcdf4")
    return Path(path)


def load_result(path: str | Path, name: str, version: int) -> tuple[xr.Dataset, dict[str, Any]]:
    """Read what ``save_result`` wrote.

    Raises:
        DataError: the file is missing, damaged, of another kind, or of another format.
    """
    article = "an" if name[0] in "aeiou" else "a"
    try:
        with xr.open_dataset(path, engine="netcdf4") as data:
            data.load()
        plain = json.loads(data.attrs.pop(name))
        found = plain.pop("format")
    except FileNotFoundError as error:
        raise DataError(f"There is no {name} file {str(path)!r}.") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a saved {name}: {error}") from error
    if found != version:
        raise DataError(
            f"{path}: {article} {name} of format {found}; this version reads format {version}. Make it again."
        )
    return data, plain
