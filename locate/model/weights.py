"""Where the weights are: original names, the down projection of a layer, and what identifies values.

The one place that knows how a bridge wraps a Hugging Face model and how an MLP down projection is stored.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from locate.errors import ModelError
from locate.model.anatomy import check_layer, down_module
from locate.store.tensors import raw_bytes, tensor_hash

_WRAPPED = "_original_component"
_SAMPLES = 4096
_NOT_ARCHITECTURE = {"architectures", "dtype", "transformers_version"}


@dataclass(frozen=True, kw_only=True)
class DownProjection:
    """The matrix that writes a layer's MLP activations to the residual stream, and how it is stored.

    ``name`` is the parameter's original Hugging Face name. ``transposed`` is False for a matrix stored
    ``d_model × d_mlp`` (as ``nn.Linear`` does) and True for ``d_mlp × d_model`` (as GPT-2's Conv1D does).
    """

    layer: int
    name: str
    parameter: nn.Parameter
    transposed: bool

    @property
    def key_size(self) -> int:
        """The dimension of the keys that it reads."""
        return self.parameter.shape[0 if self.transposed else 1]


def down_projection(model: TransformerBridge, layer: int) -> DownProjection:
    """Find the MLP down projection of a layer.

    Raises:
        SiteError: the model has no such layer.
        ModelError: the layer has no single down projection, or not one that can be edited.

    >>> down = down_projection(model, 5)
    >>> down.name, tuple(down.parameter.shape), down.transposed
    ('model.layers.5.mlp.down_proj.weight', (576, 1536), False)
    """
    layer = check_layer(model, layer)
    module = down_module(model.blocks[layer])
    if module is None:
        raise ModelError(_no_down_projection(model, layer))
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or not weight.is_floating_point():
        raise ModelError(
            f"The down projection of layer {layer} ({type(module).__name__}) does not store a plain matrix "
            "of floating-point numbers. Load the model without quantisation."
        )
    names = [name for name, parameter in hf_parameters(model).items() if parameter is weight]
    if not names:
        raise ModelError(
            f"The down projection of layer {layer} is not among the parameters of the Hugging Face model. "
            "Load the model again without compatibility mode."
        )
    transposed = _is_transposed(module, weight, model.cfg.d_model)
    return DownProjection(layer=layer, name=names[0], parameter=weight, transposed=transposed)


def check_down_projections(model: TransformerBridge) -> None:
    """Whether every layer has one MLP that writes through one matrix.

    Raises:
        ModelError: some have not, with those that have.

    >>> check_down_projections(model)
    """
    for layer, block in enumerate(model.blocks):
        if down_module(block) is None:
            raise ModelError(_no_down_projection(model, layer))


def _no_down_projection(model: TransformerBridge, layer: int) -> str:
    kind = type(model.original_model).__name__
    having = [str(one) for one, block in enumerate(model.blocks) if down_module(block) is not None]
    where = f"Layers that have one: {', '.join(having)}." if having else f"No layer of {kind} has one."
    mlp: Any = getattr(model.blocks[layer], "mlp", None)
    if mlp is None:
        return f"Layer {layer} has no MLP. {where}"
    return (
        f"Layer {layer} has no single MLP down projection that can be read and written: "
        f"found {type(mlp.original_component).__name__}. In a mixture of experts every expert has its own, and "
        f"TransformerLens wraps the dense layers of such a model like the others. {where}"
    )


def written_by(module: nn.Module, d_model: int) -> Float[Tensor, "into d_model"]:
    """The weights of a module that writes to the stream, as ``x @ W`` has them.

    >>> written_by(model.blocks[5].mlp.out.original_component, model.cfg.d_model).shape
    torch.Size([1536, 576])
    """
    weight: Any = module.weight
    return weight if _is_transposed(module, weight, d_model) else weight.T


def read_by(module: nn.Module, d_model: int) -> Float[Tensor, "d_model into"]:
    """The weights of a module that reads the stream, as ``x @ W`` has them.

    >>> read_by(model.blocks[0].attn.k.original_component, model.cfg.d_model).shape
    torch.Size([576, 192])
    """
    weight: Any = module.weight
    return weight if _is_transposed(module, weight, weight.numel() // d_model) else weight.T


def stored_transposed(model: TransformerBridge, name: str) -> bool:
    """Whether a parameter of an original name is stored as ``x @ W`` has it, ``in × out``, and not ``out × in``.

    Raises:
        ModelError: it is no matrix that is read from or written to the stream, so that its sides are not told apart.

    >>> stored_transposed(model, "model.layers.5.mlp.down_proj.weight")
    False
    """
    path, _, leaf = name.rpartition(".")
    module = next(one for prefix, one in hf_modules(model) if prefix == f"{path}." * bool(path))
    weight: Any = getattr(module, leaf)
    return _is_transposed(module, weight, model.cfg.d_model)


def hf_parameters(model: TransformerBridge) -> dict[str, nn.Parameter]:
    """The live parameters under their original Hugging Face names, as before the bridge wrapped the model.

    Tied parameters appear once. An in-place change takes effect, but for one exception: where the model
    stores query, key and value interleaved in one matrix (GPT-NeoX, BLOOM, Falcon), the bridge computes
    with copies of the three, and the fused matrix is only what an export saves.

    >>> list(hf_parameters(model))[:2]
    ['model.embed_tokens.weight', 'model.layers.0.self_attn.q_proj.weight']
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[nn.Parameter] = set()
    for path, module in hf_modules(model):
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                found[path + leaf] = parameter
    return found


def edited_layers(model: TransformerBridge, names: Sequence[str]) -> list[int]:
    """The layers whose blocks hold any of these parameters, in order.

    >>> edited_layers(model, ["model.layers.5.mlp.down_proj.weight"])
    [5]
    """
    parameters = hf_parameters(model)
    wanted = {id(parameters[name]) for name in names if name in parameters}
    return [layer for layer, block in enumerate(model.blocks) if wanted & {id(p) for p in block.parameters()}]


def hf_modules(model: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the Hugging Face model, each with the original prefix of its parameters' names.

    >>> [prefix for prefix, _ in hf_modules(model)][:3]
    ['', 'model.', 'model.embed_tokens.']
    """
    original: Any = model.original_model
    return _unwrapped(original, "")


def _unwrapped(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    # A bridge component keeps the original as one child; its other children are aliases and copies.
    inner = module._modules.get(_WRAPPED)
    if inner is not None:
        yield from _unwrapped(inner, prefix)
        return
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _unwrapped(child, f"{prefix}{name}.")


@torch.no_grad()
def _is_transposed(module: nn.Module, weight: Tensor, d_model: int) -> bool:
    """Whether the module computes x @ W (stored ``in × out``) and not x @ W.T (stored ``out × in``)."""
    if isinstance(module, nn.Linear):
        return False
    if isinstance(module, Conv1D):
        return True
    rows, columns = weight.shape
    if rows != columns and d_model in (rows, columns):
        return columns == d_model
    if rows != columns:
        raise ModelError(
            f"The down projection ({type(module).__name__}) is stored as {rows} × {columns}, and neither is "
            f"the model's width {d_model}. This way of storing it is not supported."
        )
    # A square matrix does not show which side is which, but the module does: a one-hot input reads out
    # a row or a column. The entry for which the two differ most gives the clearest answer.
    entry = (weight - weight.T).float().norm(dim=0).argmax()
    one_hot = torch.zeros(rows, dtype=weight.dtype, device=weight.device)
    zeros = one_hot.clone()
    one_hot[entry] = 1
    read = (module(one_hot[None]) - module(zeros[None]))[0].float()
    to_row, to_column = (read - weight[entry].float()).norm(), (read - weight[:, entry].float()).norm()
    return bool(to_row < to_column)


def fingerprint(tensor: Tensor) -> str:
    """A hash of a tensor's dtype, shape and every bit of its values, wherever it is stored.

    Raises:
        ModelError: the tensor holds no values because they were offloaded.

    >>> fingerprint(torch.zeros(2)) == fingerprint(-torch.zeros(2))
    False
    """
    _check_present(tensor)
    return tensor_hash(tensor)


def model_fingerprint(model: TransformerBridge) -> str:
    """A hash that tells models apart cheaply: the configuration, and per parameter a sample and a sum.

    The sample is every k-th word of the raw bytes, at most 4096. The sum runs over the bits of all
    values at the speed of memory, so that a change of very few entries is noticed as well.

    Raises:
        ModelError: a parameter holds no values because they were offloaded.

    >>> model_fingerprint(model) == model_fingerprint(model)
    True
    """
    original: Any = model.original_model
    config = original.config.to_dict()
    described = {k: v for k, v in config.items() if not k.startswith("_") and k not in _NOT_ARCHITECTURE}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, parameter in hf_parameters(model).items():
        _check_present(parameter, name)
        digest.update(name.encode())
        digest.update(hashlib.sha256(f"{parameter.dtype} {tuple(parameter.shape)}".encode()).digest())
        raw = raw_bytes(parameter)
        if raw.storage_offset() % 8:  # eight bytes can be read as one word only where a word begins
            raw = raw.clone()
        whole = raw.numel() // 8 * 8
        words = raw[:whole].view(torch.int64)
        step = -(-words.numel() // _SAMPLES) or 1
        digest.update(words[::step].cpu().numpy().tobytes())
        digest.update(words.sum().cpu().numpy().tobytes())
        digest.update(raw[whole:].cpu().numpy().data)
    return digest.hexdigest()


def _check_present(tensor: Tensor, name: str = "a parameter") -> None:
    if tensor.is_meta:
        raise ModelError(
            f"The values of {name} are not in memory: they were offloaded. "
            "Load the model on a device that holds all of it."
        )
