"""Tuned lenses: for each layer an affine map from its stream to one that the final readout understands."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET
from locate.errors import DataError, ModelError
from locate.lens.tuning import tune
from locate.store.files import save_json, whole_file

_CONFIG, _TENSORS, _PUBLISHED = "config.json", "params.safetensors", "params.pt"
_TYPE = "linear_tuned_lens"


class _Config(BaseModel):
    """What stands beside the parameters; a later field of the format is let pass."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    base_model_name_or_path: str = ""
    d_model: PositiveInt
    num_hidden_layers: PositiveInt
    bias: bool = True
    lens_type: str = _TYPE


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLens:
    """For each layer l, stream + A_l · stream + b_l of the stream that enters it (Belrose et al. 2023).

    Attributes:
        weights: A, one for each layer.
        biases: b.
        model: whose.
        info: how it came about.

    >>> lens = locate.TunedLens.fit(model, ["The Eiffel Tower is in Paris."], steps=1, progress=False)
    >>> lens(3, torch.zeros(2, model.cfg.d_model)).shape == (2, model.cfg.d_model)
    True
    """

    weights: Float[Tensor, "layer d_model into"]
    biases: Float[Tensor, "layer d_model"]
    model: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, layer: int, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The stream that enters a layer, translated.

        Raises:
            ModelError: this lens is of fewer layers, or of another width.
        """
        if not 0 <= layer < len(self.weights) or stream.shape[-1] != self.weights.shape[-1]:
            raise ModelError(
                f"This lens, of {self.model or 'a model'}, is for layers 0 to {len(self.weights) - 1} and width "
                f"{self.weights.shape[-1]}; found layer {layer} and width {stream.shape[-1]}."
            )
        return stream + stream @ self.weights[layer].T.to(stream) + self.biases[layer].to(stream)

    def check(self, model: TransformerBridge) -> None:
        """Whether the lens can be one of this model.

        Raises:
            ModelError: it has not as many layers, or another width.

        >>> lens = locate.TunedLens.fit(model, ["The Eiffel Tower is in Paris."], steps=1, progress=False)
        >>> lens.check(model)
        """
        own, its = (len(self.weights), self.weights.shape[-1]), (model.cfg.n_layers, model.cfg.d_model)
        if own != its:
            raise ModelError(
                f"This lens, of {self.model or 'another model'}, is for {own[0]} layers of width {own[1]}; "
                f"{model.cfg.model_name} has {its[0]} of width {its[1]}. Load the lens of this model, or fit one."
            )

    @classmethod
    def fit(
        cls,
        model: TransformerBridge,
        texts: Sequence[str],
        *,
        steps: int = 100,
        rate: float = 1e-3,
        batch: int = 64,
        length: int = 256,
        seed: int = 0,
        budget: int = DEFAULT_BUDGET,
        progress: bool = True,
    ) -> "TunedLens":
        """Train a lens on texts, from the logit lens on, by the divergence KL(model's output ‖ lens) of each layer.

        The published lenses have seen some 65 million tokens; this is enough to try one.

        Args:
            model: a raw-mode bridge, which stays as it is.
            texts: whose tokens' streams are translated.
            steps: of Adam, whose rate falls to 0 over them.
            rate: at the beginning.
            batch: tokens for each step.
            length: the most tokens of each text.
            seed: of which tokens are drawn.
            budget: the most tokens in one pass.
            progress: whether to show a bar.

        Raises:
            FactError: there are no texts.
            LocateError: no step, batch or length.
            NumericsError: the training went wrong.

        >>> lens = locate.TunedLens.fit(model, ["The Eiffel Tower is in Paris."], steps=1, progress=False)
        >>> len(lens.info["kl"]) == model.cfg.n_layers
        True
        """
        made = tune(
            model, texts, steps=steps, rate=rate, batch=batch, length=length, seed=seed, budget=budget,
            progress=progress,
        )  # fmt: skip
        info = {"texts": len(texts), "tokens": made.tokens, "steps": steps, "kl": made.divergences}
        return cls(weights=made.weights, biases=made.biases, model=str(model.cfg.model_name), info=info)

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``params.safetensors``, which ``load`` reads.

        >>> lens = locate.TunedLens.fit(model, ["The Eiffel Tower is in Paris."], steps=1, progress=False)
        >>> locate.TunedLens.load(lens.save("lens")).weights.equal(lens.weights)
        True
        """
        folder = Path(folder)
        tensors: dict[str, Tensor] = {}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"{layer}.weight": weight.contiguous().clone(), f"{layer}.bias": bias.contiguous().clone()}
        with whole_file(folder / _TENSORS) as partial:
            save_file(tensors, partial)
        config = _Config(
            base_model_name_or_path=self.model, d_model=self.weights.shape[-1], num_hidden_layers=len(self.weights)
        )
        save_json(folder / _CONFIG, {**config.model_dump(), "info": dict(self.info)})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "TunedLens":
        """Read a lens as the tuned-lens package publishes them, or as ``save`` writes them.

        The folder holds ``config.json`` (``d_model``, ``num_hidden_layers``, ``bias``, ``lens_type`` of
        ``linear_tuned_lens``) and the parameters of one affine map for each layer, ``0.weight`` (d_model × d_model) and
        ``0.bias`` (d_model) for the stream that enters layer 0 and so on: as ``params.safetensors``, or as the
        published ``params.pt``. Published lenses have no other form than this pickle, the only one that is read
        anywhere here, by torch's loader of weights alone (``weights_only=True``): it makes tensors, their containers
        and plain values, and refuses whatever else a pickle may ask for before anything of it is run.

        Raises:
            DataError: a file is missing or damaged, of another form, or asks for more than tensors.

        >>> locate.TunedLens.load("nowhere")
        Traceback (most recent call last):
        ...
        locate.errors.DataError: There is no tuned lens in 'nowhere': it has no config.json.
        """
        folder = Path(folder)
        config, read = _config(folder), _parameters(folder)
        maps, n, width = range(config.num_hidden_layers), config.num_hidden_layers, config.d_model
        expected = {f"{layer}.weight": (width, width) for layer in maps}
        if config.bias:
            expected |= {f"{layer}.bias": (width,) for layer in maps}
        found = {name: tuple(tensor.shape) for name, tensor in read.items()}
        if found != expected:
            names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
            raise DataError(
                f"{folder}: a tuned lens of {n} layers of width {width} has other parameters: {names[0]!r} should have "
                f"shape {expected.get(names[0])}, found {found.get(names[0])}."
            )
        biases = [read[f"{layer}.bias"] if config.bias else torch.zeros(width, dtype=torch.float32) for layer in maps]
        weights = torch.stack([read[f"{layer}.weight"] for layer in maps]).float()
        return cls(weights=weights, biases=torch.stack(biases).float(), model=config.base_model_name_or_path)


def _config(folder: Path) -> _Config:
    try:
        config = _Config.model_validate(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"There is no tuned lens in {str(folder)!r}: it has no {_CONFIG}.") from error
    except (ValueError, ValidationError) as error:
        raise DataError(f"{folder / _CONFIG} is not the description of a tuned lens: {error}") from error
    if config.lens_type != _TYPE:
        raise DataError(f"{folder / _CONFIG}: lens_type must be {_TYPE!r}, found {config.lens_type!r}.")
    return config


def _parameters(folder: Path) -> dict[str, Tensor]:
    own, published = folder / _TENSORS, folder / _PUBLISHED
    try:
        if own.exists():
            return load_file(own)
        read = torch.load(published, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"There is no tuned lens in {str(folder)!r}: no {_TENSORS}, and no {_PUBLISHED}.") from error
    except pickle.UnpicklingError as error:
        # Torch's own message tells how to run it all the same.
        raise DataError(
            f"{published} is not a file of tensors alone: it is damaged, or asks for other things to be made or run. "
            f"Nothing of it was run. Take the lens from where it was published, or save it as {_TENSORS}."
        ) from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(f"{folder}: the parameters of the tuned lens cannot be read: {error}") from error
    named = isinstance(read, dict) and all(isinstance(name, str) for name in read)
    if not named or not all(isinstance(one, Tensor) for one in read.values()):
        raise DataError(f"{published} holds something else than the named tensors of a tuned lens.")
    return read
