"""Models as peft and accelerate leave them, made by hand."""

from typing import Any

import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it, under the names that peft gives them."""

    lora_A: Any
    lora_B: Any

    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def adapted(model, layer=1):
    """A llama-like model whose down projection of one layer is adapted."""
    mlp = model.model.layers[layer].mlp
    mlp.down_proj = Adapted(mlp.down_proj)
    return model


class PeftWrapper(nn.Module):
    """What stands around a model with adapters; it merges where the adapter is one of weights."""

    base_model: Any
    peft_config: Any

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.base_model = inner
        self.peft_config = {"default": object()}

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)


class MergingPeftWrapper(PeftWrapper):
    def merge_and_unload(self):
        for mlp in (layer.mlp for layer in self.base_model.model.layers):
            if isinstance(mlp.down_proj, Adapted):
                base, adapter = mlp.down_proj.base_layer, mlp.down_proj
                with torch.no_grad():
                    base.weight += adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
                mlp.down_proj = base
        self.base_model.peft_config = self.peft_config  # as some versions leave it
        return self.base_model


class OffloadHook:
    """What accelerate puts on a module whose values it fetches for a forward pass only."""


def offloaded(model, path="model.layers.1"):
    """The model with one part's parameters on the meta device, and its hook."""
    part: Any = model.get_submodule(path).to("meta")
    part._hf_hook = OffloadHook()
    return model
