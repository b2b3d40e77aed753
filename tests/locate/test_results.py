"""What results share: their files stay readable, and their tables and figures come one way."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import locate
from edit.propagation.propagation import load_propagation
from locate import DataError, LocateError
from locate.results import place_of_largest
from locate.store.netcdf import save_result

ROOT = Path(__file__).resolve().parents[2]
INFO = {"model": "tiny", "tokens": ["a", "b"], "direction": "restore", "kinds": ["mlp"], "metrics": {"rank": "rank"}}
SCORES = np.arange(4.0).reshape(1, 2, 2)
BY_METRIC = {"clean": ("metric", [2.0]), "corrupted": ("metric", [0.0])}
SITES = {"position": [0, 1], "layer": [0, 1]}


def traced():
    values = (("metric", "kind", "position", "layer"), SCORES[None])
    data = {"scores": values, "standard_error": values, **BY_METRIC}
    return xr.Dataset(data, coords={"metric": ["rank"], "kind": ["mlp"], **SITES})


def averaged():
    values = (("kind", "role", "layer"), SCORES)
    coords = {"kind": ["mlp"], "role": ["last subject token", "last token"], "layer": [0, 1]}
    return xr.Dataset({"effect": values, "low": values, "high": values, "count": ("role", [1, 1])}, coords=coords)


def patched():
    values, dims = SCORES, ("metric", "position", "layer")
    data = {"values": (dims, values), "standard_error": (dims, values), **BY_METRIC}
    confirmed = (("position", "layer"), np.array([[1, 0], [0, 1]], dtype="int8"))
    return xr.Dataset({**data, "confirmed": confirmed}, coords={"metric": ["rank"], **SITES})


def knocked():
    data = {"values": (("metric", "source", "layer"), SCORES), "clean": ("metric", [2.0])}
    return xr.Dataset(data, coords={"metric": ["rank"], "source": ["subject", "last"], "layer": [0, 1]})


def attributed():
    dims = ("fact", "layer", "neuron")
    coords = {"fact": ["x"], "layer": [0, 1], "neuron": [0, 1]}
    return xr.Dataset({"scores": (dims, SCORES), "kept": (dims, SCORES)}, coords=coords)


def mediated():
    values = (("probe", "direction", "kind", "position", "layer"), np.stack([SCORES, SCORES])[None])
    coords = {"probe": [0], "direction": ["lost", "gained"], "kind": ["mlp"], **SITES}
    return xr.Dataset({"mediation": values}, coords=coords)


TOTALS = [{"role": "edit", "text": "t", "old": "a", "new": "b", "total_effect": 2.0}]
# By kind: how it is read, the format, the arrays and the description of files that were written before.
FILES = {
    "trace": (locate.load_trace, 2, traced(), {
        "metric": "rank", "answer": " x", "answer_rank": 1, "tokens": ["a", "b"], "subject_span": [0, 1], "info": INFO,
    }),
    "average": (locate.load_average, 1, averaged(), {"metric": "rank", "total_effect": [1.0, 0.5, 1.5], "info": INFO}),
    "patches": (locate.load_patches, 1, patched(), {"metric": "rank", "info": INFO}),
    "knockout": (locate.load_knockout, 1, knocked(), {"metric": "rank", "info": INFO}),
    "neurons": (locate.load_neurons, 1, attributed(), {"info": INFO}),
    "propagation": (load_propagation, 1, mediated(), {
        "totals": TOTALS, "tokens": [["a", "b"]], "layers": [1], "info": INFO,
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_of_before_are_read_and_written_again(kind, tmp_path):
    load, version, data, plain = FILES[kind]
    found = load(save_result(tmp_path / "old.nc", kind, version, data, plain))
    assert (found.stored_as, found.format) == (kind, version)
    again = load(found.save(tmp_path / "new.nc"))
    for result in (found, again):
        assert {name: type(value) for name, value in vars(result).items()} == {
            name: type(value) for name, value in vars(found).items()
        }
        for name in data:
            np.testing.assert_array_equal(result.data[name], data[name])
        assert result.info == INFO
    table = found.to_dataframe()
    pd.testing.assert_frame_equal(table, again.to_dataframe())
    assert len(table) == 4 * (2 if kind == "propagation" else 1)


def test_what_a_description_says_in_lists_comes_back_as_tuples(tmp_path):
    found = {}
    for kind, (load, version, data, plain) in FILES.items():
        found[kind] = load(save_result(tmp_path / f"{kind}.nc", kind, version, data, plain))
    assert (found["trace"].tokens, found["trace"].subject_span) == (("a", "b"), (0, 1))
    assert found["average"].total_effect == (1.0, 0.5, 1.5)
    assert (found["propagation"].tokens, found["propagation"].layers) == ((("a", "b"),), (1,))
    assert found["propagation"].totals.to_dict(orient="records") == TOTALS
    assert found["patches"].data["confirmed"].dtype == bool
    assert found["trace"].to_dataframe()["token"].tolist() == found["patches"].to_dataframe()["token"].tolist()
    assert found["propagation"].to_dataframe()["total_effect"].tolist() == [2.0] * 8


@pytest.mark.parametrize("change", [{"answer_rank": "first"}, {"tokens": None}, {"unknown": 1}])
def test_a_description_that_is_not_of_its_kind_is_refused(change, tmp_path):
    load, version, data, plain = FILES["trace"]
    path = save_result(tmp_path / "t.nc", "trace", version, data, {**plain, **change})
    with pytest.raises(DataError, match=r"t\.nc is not a saved trace: "):
        load(path)
    short = {name: value for name, value in plain.items() if name != "info"}
    with pytest.raises(DataError, match=r"t\.nc is not a saved trace: .*info"):
        load(save_result(path, "trace", version, data, short))
    with pytest.raises(DataError, match=r"t\.nc is not a saved patches"):
        locate.load_patches(path)


def test_results_are_read_without_what_draws_them():
    modules = ("tracing.trace", "tracing.average", "patching.patches", "patching.knockout", "neurons.knowledge")
    code = (
        f"import sys, {', '.join(f'locate.{name}' for name in modules)}, edit.propagation.propagation; "
        "print([name for name in ('matplotlib', 'seaborn') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_figure_that_there_is_not_is_refused(tmp_path):
    load, version, data, plain = FILES["average"]
    average = load(save_result(tmp_path / "a.nc", "average", version, data, plain))
    with pytest.raises(LocateError, match=r"AverageTrace has no figure 'plot_line'. Did you mean plot_lines"):
        average.draw("plot_line")


def test_the_place_of_the_largest_leaves_out_what_is_not_there():
    values = xr.DataArray([[1.0, np.nan], [np.nan, -2.0]], dims=("layer", "head"), coords={"layer": [3, 4]})
    assert place_of_largest(values) == {"layer": 3, "head": 0}
    assert place_of_largest(-values) == {"layer": 4, "head": 1}
