"""What can stand between a model and its weights: adapters that are not merged, values that were offloaded."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from locate.errors import ModelError

_BASE = "base_layer"


def adapted_layers(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """The names of the layers that a peft adapter stands around, among named modules.

    >>> adapted_layers(model.original_model.named_modules())
    []
    """
    return [name.removesuffix(".") for name, module in modules if module._modules.get(_BASE) is not None]


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose weights are not its own parameters in memory.

    Raises:
        ModelError: adapters are not merged, or parameters hold no values.

    >>> check_plain(model.original_model)
    """
    # A merged model may keep the configuration of its adapter, so that only a wrapper is known by it.
    if not isinstance(model, PreTrainedModel) and getattr(model, "peft_config", None):
        found = f"The model is wrapped by a peft adapter (found {type(model).__name__}). "
        if callable(getattr(model, "merge_and_unload", None)):
            raise ModelError(f"{found}Merge first: load_model(model.merge_and_unload(), tokenizer=…).{_twice(model)}")
        raise ModelError(
            f"{found}This kind has nothing to merge into the weights: only its base model can be loaded, "
            "from the name or folder that the adapter was made for."
        )
    layers = adapted_layers(model.named_modules())
    if layers:
        raise ModelError(
            f"The model holds {len(layers)} layers with a peft adapter that is not merged, {layers[0]} among them. "
            "Merge first: load_model(peft_model.merge_and_unload(), tokenizer=…), where peft_model is the "
            "wrapper around it, or PeftModel.from_pretrained(base_model, adapter_folder)."
        )
    parameters = dict(model.named_parameters())
    absent = [name for name, parameter in parameters.items() if parameter.is_meta]
    if not absent:
        return
    found = f"{len(absent)} of {len(parameters)} parameters hold no values, {absent[0]} among them: "
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ModelError(
            f"{found}accelerate offloaded them to disk or CPU, and loads them only within a forward pass. Load the "
            "model where it fits whole: load_model(name, device='cpu'), or a device_map that leaves nothing "
            "on 'disk', nor on 'cpu' beside a GPU. dtype='bfloat16' halves what it needs."
        )
    raise ModelError(
        f"{found}it was made on the meta device. Load it with its weights: load_model(name), or from_pretrained."
    )


def _twice(wrapper: nn.Module) -> str:
    """A warning, where merging may give another model than the adapted one."""
    configs = getattr(wrapper, "peft_config", None)
    own = configs.values() if isinstance(configs, dict) else ()
    if not any(getattr(one, "ensure_weight_tying", False) for one in own):
        return ""
    return (
        " The adapter has ensure_weight_tying=True, and peft merges twice what it adds to a tied embedding: compare "
        "the logits of the merged model with the adapted one's (docs/transformer_lens.md)."
    )
