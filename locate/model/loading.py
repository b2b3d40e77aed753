"""Loading a language model as a raw-mode TransformerLens bridge."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from locate.errors import ModelError, suggest
from locate.model.bundled import bundled_folder
from locate.model.copies import copied
from locate.model.wrapped import check_plain
from locate.names import DEFAULT_MODEL

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    model: str | Path | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    device_map: Any = None,
) -> TransformerBridge:
    """Load a causal language model as a plain raw-mode ``TransformerBridge``.

    Args:
        model: ``"smollm2-135m"`` (bundled, offline), any Hugging Face name, a local folder with
            safetensors or one GGUF file, a path of a GGUF file, or a loaded Hugging Face model
            (which is wrapped in place; its own dtype and device stay).
        tokenizer: needed with a loaded model; otherwise the model's own is used.
        device: where to put the model; by default CUDA where there is one, else the CPU.
        dtype: ``torch.float32`` (default), ``float16`` or ``bfloat16``, as dtype or name.
        device_map: placement over several devices through accelerate, instead of ``device``.

    Raises:
        ModelError: no such model, a folder without weights, an architecture that TransformerLens does
            not know, an adapter that is not merged, or weights that were offloaded.

    >>> import locate
    >>> model = locate.load_model("smollm2-135m")
    >>> model.cfg.n_layers, model.cfg.d_model
    (30, 576)
    """
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ModelError(
                "A loaded model needs its tokenizer: load_model(hf_model, tokenizer=AutoTokenizer.from_pretrained(…))."
            )
        return _bridge(model, tokenizer, getattr(model.config, "_name_or_path", "") or "in-memory")
    if isinstance(model, nn.Module):
        check_plain(model)
    if not isinstance(model, str | Path):
        raise ModelError(
            f"load_model takes a name, a folder or a Hugging Face model, found {type(model).__name__}. "
            "A bridge that is already loaded needs no loading."
        )
    wanted = _as_dtype(dtype)
    target = _as_device(device)
    if device is not None and device_map is not None:
        raise ModelError("Give either device or device_map, not both.")
    name = str(bundled_folder() if str(model) == DEFAULT_MODEL else model)
    source = _source(name)
    placement = {} if device_map is None else {"device_map": device_map}
    try:
        # Eager attention: the hook points inside attention only fire there.
        with _quiet():
            hf_model: Any = AutoModelForCausalLM.from_pretrained(
                **source, dtype=wanted, attn_implementation="eager", use_safetensors=True, **placement
            )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The model {str(model)!r} could not be loaded: {_first_line(error)} "
            f"Give {DEFAULT_MODEL!r}, a Hugging Face name that this machine can reach, "
            "or a folder with config.json, safetensors and tokenizer files."
        ) from error
    if device_map is None:
        hf_model.to(target)
    if "gguf_file" in source:
        hf_model.to(wanted)
    return _bridge(hf_model, tokenizer, str(model))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the weights' progress bar, which would flash by and stay in every notebook."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _source(name: str) -> dict[str, str]:
    """Arguments for ``from_pretrained``, with local folders checked before transformers sees them."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or path.is_file():
            raise ModelError(f"There is no model folder {name!r}. Give a folder or a Hugging Face name.")
        return {"pretrained_model_name_or_path": name}
    if list(path.glob("*.safetensors")):
        return {"pretrained_model_name_or_path": str(path)}
    gguf = sorted(path.glob("*.gguf"))
    if len(gguf) == 1:
        return {"pretrained_model_name_or_path": str(path), "gguf_file": gguf[0].name}
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    if gguf:
        raise ModelError(f"The folder {name!r} holds {len(gguf)} GGUF files; give the path of one of them.")
    raise ModelError(
        f"The folder {name!r} holds no weights: expected *.safetensors or one *.gguf, found {found}. "
        "Pickled weights (*.bin, *.pt) are not read; convert them with transformers' save_pretrained first."
    )


def _bridge(hf_model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> TransformerBridge:
    check_plain(hf_model)
    if hasattr(hf_model, "set_attn_implementation"):
        hf_model.set_attn_implementation("eager")
    hf_model.eval()
    config = copy.deepcopy(hf_model.config)
    if not config.architectures:  # a model made in memory does not say what it is
        config.architectures = [type(hf_model).__name__]
    kind = type(hf_model).__name__
    try:
        architecture = determine_architecture_from_hf_config(config)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} does not know the architecture {kind}. Use a model that it "
            "bridges: docs/architectures.md says which were tried."
        ) from error
    try:
        bridge = build_bridge_from_module(hf_model, architecture, hf_config=config, model_name=name)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} knows the architecture {kind}, but cannot bridge it as it "
            f"is configured ({type(error).__name__}: {_first_line(error)})."
        ) from error
    _check_parts(bridge, kind)
    copied(bridge)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Set afterwards and not at boot: TransformerLens would swap it for one that prepends BOS.
    bridge.tokenizer = tokenizer
    # Strings that a user gives to TransformerLens are then tokenised as the tokenizer does it; by default it
    # expects a leading BOS of every tokenizer, and cuts off the first token of a text without one.
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    bridge.cfg.tokenizer_prepends_bos = bridge.cfg.default_prepend_bos = special[:1] == [1]
    bridge.cfg.tokenizer_appends_eos = special[-1:] == [1]
    return bridge


# What every analysis reads a model by, in words.
_PARTS = {"blocks": "stack of blocks", "ln_final": "final norm", "unembed": "unembedding"}


def _check_parts(bridge: TransformerBridge, kind: str) -> None:
    missing = [words for part, words in _PARTS.items() if not hasattr(bridge, part)]
    if missing:
        found = ", ".join(name for name, _ in bridge.named_children() if not name.startswith("_"))
        raise ModelError(
            f"{kind}, as TransformerLens bridges it with this configuration, has no {' and no '.join(missing)}: it is "
            f"made of {found}. States are read out of one stream that blocks add to and a final norm reads, which a "
            "model does not have whose norms stand after its modules, or that projects what the norm gives. Use "
            "another model."
        )


def _as_device(device: str | torch.device | None) -> torch.device:
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(
            f"There is no device {device!r}: {_first_line(error)} Try 'cpu', 'cuda' or 'cuda:1'."
        ) from error


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}. {suggest(dtype, _DTYPES)}")
    return _DTYPES[dtype]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return shorten(text.splitlines()[0], width=300, placeholder=" …")
