"""Writing an edited model to a folder that plain ``transformers`` loads."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from edit.changes.change import Change, check_in_weights, within
from locate.errors import ModelError, UpdateError
from locate.model.copies import copied
from locate.model.weights import hf_modules
from locate.model.wrapped import adapted_layers

_RECORD = "edit.json"


def export(
    model: TransformerBridge,
    update: Change | None,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write the edited model, its tokenizer and a record of the edit to a folder.

    ``AutoModelForCausalLM.from_pretrained(folder)`` loads it. The model stays as it was: an update that
    is not applied is applied for the export only. The folder appears whole or not at all.

    Args:
        model: the model that the update was made for.
        update: the edit, or None to export the model as it is.
        folder: where to write; it must not exist, or be empty.
        overwrite: replace a folder that already holds a model.

    Raises:
        UpdateError: the folder is in the way, or the update does not fit the model, or is not one of its weights.
        ModelError: the model cannot be written in its original form.

    >>> sorted(path.name for path in export(model, update, folder / "edited").glob("*.json"))[:2]
    ['config.json', 'edit.json']
    """
    if update is not None:
        check_in_weights(update, "An export")
    target = check_target(folder, overwrite)
    edited = nullcontext() if update is None else within(model, update)
    record = {"method": None, "parameters": [], "info": {}} if update is None else update.describe()
    with _appearing_whole(target) as workplace, edited:
        plain = _plain_model(model)
        try:
            plain.save_pretrained(workplace)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(workplace)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise ModelError(f"transformers could not save the model: {error}") from error
        (workplace / _RECORD).write_text(json.dumps(record, indent=2))
    return target


def _plain_model(model: TransformerBridge) -> PreTrainedModel:
    """A Hugging Face model without bridge modules, sharing the live weights."""
    if model.compatibility_mode:
        raise ModelError(
            "A model in compatibility mode cannot be exported: its weights are folded. "
            "Load it again with load_model, which leaves the weights as they are."
        )
    original: Any = model.original_model
    with torch.device("meta"):
        plain = type(original)(copy.deepcopy(original.config))
    state = _state(model)
    wanted = plain.state_dict()
    missing = sorted(name for name in wanted if name not in state or state[name].is_meta)
    if missing:
        raise ModelError(
            f"{len(missing)} weights are not in memory as the model names them, {missing[0]} among them. "
            f"{_cause(model, any(name in state for name in missing))}"
        )
    # The bridge gives an output layer without bias one of zeros, for which the original has no place.
    added = [name for name in state if name not in wanted and state[name].any()]
    if added:
        raise ModelError(
            f"{type(original).__name__} has no place for {', '.join(added)}. Set it back to zero, or load "
            "the model again."
        )
    state |= {one.name: one.effective() for one in copied(model)}
    plain.load_state_dict({name: state[name] for name in wanted}, assign=True)
    if _held_apart(plain):
        plain.config.get_text_config().tie_word_embeddings = plain.config.tie_word_embeddings = False
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(original.generation_config)
    return plain


def _cause(model: TransformerBridge, without_values: bool) -> str:
    """Why weights are missing, and what to do."""
    layers = adapted_layers(hf_modules(model))
    if layers:
        return (
            f"A peft adapter stands around {len(layers)} layers, {layers[0]} among them. Merge it into the weights "
            "(merge_and_unload()), load the merged model and edit that."
        )
    if without_values:
        return "They were offloaded and hold no values. Load the model on a device that holds all of it."
    return "Other modules stand in their place, as quantisation puts them there. Load the model without quantisation."


def _held_apart(plain: PreTrainedModel) -> bool:
    """Whether the embedding and the unembedding have other values than each other."""
    ends: list[Any] = [plain.get_input_embeddings(), plain.get_output_embeddings()]
    if None in ends or ends[0].weight.shape != ends[1].weight.shape:
        return False
    return not torch.equal(ends[0].weight, ends[1].weight)


def _state(model: TransformerBridge) -> dict[str, Tensor]:
    """The original state dict; ``state_dict`` itself lists the bridge's aliases and copies too."""
    state: dict[str, Tensor] = {}
    for path, module in hf_modules(model):
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and leaf not in module._non_persistent_buffers_set:
                # Detached: loading a live parameter into another model would reset its requires_grad.
                state[path + leaf] = tensor.detach()
    return state


def check_target(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """The folder to write to, if nothing is in the way.

    Raises:
        UpdateError: something is.
    """
    target = Path(folder).expanduser().absolute()
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return target
    if not target.is_dir():
        raise UpdateError(f"{target} is a file. Give the name of a new folder.")
    if not overwrite:
        raise UpdateError(
            f"The folder {target} is not empty. Choose another, or overwrite it (overwrite=True, or --overwrite)."
        )
    if not (target / "config.json").is_file():
        raise UpdateError(
            f"The folder {target} does not hold a model (no config.json), so it is not overwritten. "
            "Choose another folder, or delete it yourself."
        )
    return target


@contextmanager
def _appearing_whole(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, which takes its place when the block ends without error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shelter = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            # Inside a private one, so that the new folder has ordinary permissions.
            workplace, old = shelter / "new", shelter / "old"
            workplace.mkdir()
            yield workplace
            try:
                if target.is_dir():
                    target.rename(old)
                workplace.rename(target)
            except BaseException:
                if old.is_dir() and not target.exists():
                    old.rename(target)
                raise
        finally:
            shutil.rmtree(shelter, ignore_errors=True)
    except OSError as error:
        raise UpdateError(f"The model could not be written to {target}: {error}.") from error
