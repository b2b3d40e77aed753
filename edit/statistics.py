"""Second moments of the keys that a layer's MLP sees: the C in every locate-then-edit formula."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.corpus import SAMPLED, token_batches
from edit.hooks import key_hook
from edit.weights import model_fingerprint
from locate.bundled import cache_folder
from locate.devices import input_device
from locate.errors import DataError, NumericsError
from locate.sites import check_layer

_FORMAT = "1"
_TOKENS_PER_KEY_DIMENSION = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyStatistics:
    """The uncentred second moment C = E[k kᵀ] of the keys at one layer.

    Attributes:
        second_moment: float64, symmetric.
        count: how many keys were averaged.
        layer: whose down-projection they enter.
        corpus: where the text came from.
        seed: of sampled text.
        fingerprint: of the model they were collected on.

    >>> statistics = edit.key_statistics(model, layer=4)
    >>> statistics.solve(torch.ones(1536, 1)).shape
    torch.Size([1536, 1])
    """

    second_moment: Float[Tensor, "d_mlp d_mlp"]
    count: int
    layer: int
    corpus: str
    seed: int
    fingerprint: str
    _factor: list[Tensor] = field(init=False, default_factory=list, repr=False)

    def solve(self, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
        """C⁻¹ applied to columns of keys, in float64 through a Cholesky factor that is kept.

        Raises:
            NumericsError: C is singular, because too few keys were collected.
        """
        if not self._factor:
            factor, failed = torch.linalg.cholesky_ex(self.second_moment)
            if failed:
                size = len(self.second_moment)
                raise NumericsError(
                    f"The key statistics of layer {self.layer} are singular: {self.count} keys of dimension "
                    f"{size} from {self.corpus!r}. Collect more: at least {2 * size}, better {10 * size}."
                )
            self._factor.append(factor)
        return torch.cholesky_solve(keys.to(self.second_moment), self._factor[0])

    def save(self, path: str | Path) -> Path:
        """Write the statistics to a safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("count", "layer", "corpus", "seed", "fingerprint")
        metadata = {
            "format": _FORMAT,
            "statistics": json.dumps({name: getattr(self, name) for name in names}),
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"second_moment": self.second_moment}, partial, metadata=metadata)
        os.replace(partial, path)
        return path


def load_statistics(path: str | Path) -> KeyStatistics:
    """Read statistics that were saved.

    Raises:
        DataError: the file is missing, damaged or of another format.

    >>> path = edit.key_statistics(model, layer=4).save("statistics.safetensors")
    >>> load_statistics(path).layer
    4
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{path}: not key statistics of format {_FORMAT}; collect them again.")
            return KeyStatistics(second_moment=file.get_tensor("second_moment"), **json.loads(metadata["statistics"]))
    except FileNotFoundError as error:
        raise DataError(f"There is no statistics file {str(path)!r}.") from error
    except DataError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged key statistics ({error}); delete the file to collect them again.") from error


def key_statistics(
    model: TransformerBridge,
    layer: int,
    *,
    corpus: str = SAMPLED,
    tokens: int | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: bool = True,
) -> KeyStatistics:
    """Collect E[k kᵀ] at a layer, or read it from the cache of an earlier call.

    Only the blocks up to the layer run, except where the model writes the text itself.

    Args:
        model: a raw-mode bridge.
        layer: whose MLP's keys to collect.
        corpus: ``"sampled"`` from the model, a text file, or a ``datasets`` name.
        tokens: how many keys; by default 20 times their dimension.
        seed: of sampled text.
        cache: whether to keep the result in the user's cache folder.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        SiteError: the model has no such layer.
        DataError: the corpus cannot be read, or is too short.

    >>> statistics = edit.key_statistics(model, layer=4)
    >>> statistics.second_moment.shape
    torch.Size([1536, 1536])
    """
    layer = check_layer(model, layer)
    fingerprint = model_fingerprint(model)
    where = Path(corpus).expanduser()
    # A text file counts by what it says, not by where it lies.
    source = hashlib.sha256(where.read_bytes()).hexdigest() if where.is_file() else corpus
    label = f"{fingerprint}|{layer}|{source}|{tokens or _TOKENS_PER_KEY_DIMENSION}|{seed}|{_FORMAT}"
    path = cache_folder() / "statistics" / f"{hashlib.sha256(label.encode()).hexdigest()[:32]}.safetensors"
    if cache and path.is_file():
        return load_statistics(path)
    total, count = _accumulate(model, layer, corpus, tokens, seed, progress)
    statistics = KeyStatistics(
        second_moment=total / count,
        count=count,
        layer=layer,
        corpus=corpus,
        seed=seed,
        fingerprint=fingerprint,
    )
    if cache:
        statistics.save(path)
    return statistics


def _accumulate(
    model: TransformerBridge, layer: int, corpus: str, tokens: int | None, seed: int, progress: bool
) -> tuple[Float[Tensor, "d_mlp d_mlp"], int]:
    keys: list[Tensor] = []
    total: Tensor | None = None
    count = 0
    device = input_device(model)
    record = (key_hook(layer), lambda value, hook: keys.append(value.flatten(0, -2).float()))
    name = f"key statistics, layer {layer}"
    with tqdm(desc=name, total=tokens, unit="token", disable=not progress, delay=1) as bar:
        for batch in token_batches(model, corpus, seed=seed):
            with torch.no_grad(), model.hooks(fwd_hooks=[record]):
                model(batch.to(device), stop_at_layer=layer + 1)
            block = keys.pop()
            if total is None:
                total = torch.zeros(block.shape[1], block.shape[1], dtype=torch.float64, device=device)
                tokens = tokens or _TOKENS_PER_KEY_DIMENSION * block.shape[1]
                bar.total = tokens
            total += (block.T @ block).double()
            count += len(block)
            bar.update(len(block))
            if tokens is not None and count >= tokens:
                break
    if total is None or count < total.shape[0]:
        raise DataError(
            f"The corpus {corpus!r} gave only {count} keys; the statistics of layer {layer} need at least "
            f"{'one batch' if total is None else total.shape[0]}, better ten times as many."
        )
    return total.cpu(), count
