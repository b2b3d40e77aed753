"""From the options of the command line to a corruption."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from edit.cli.kit.options import CorruptionName
from locate.contrast.corruption import Corruption
from locate.contrast.noise import (
    GaussianNoise,
    MeanEmbedding,
    MultivariateNoise,
    ResampledEmbedding,
    UniformNoise,
    ZeroEmbedding,
    embedding_std,
)
from locate.contrast.swaps import TokenSwap
from locate.errors import DataError
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts

_CLASSES: dict[str, type] = {
    "gaussian": GaussianNoise,
    "uniform": UniformNoise,
    "zero": ZeroEmbedding,
    "mean": MeanEmbedding,
    "resample": ResampledEmbedding,
    "multivariate": MultivariateNoise,
    "swap": TokenSwap,
}
# Options by the field that they set.
_OPTIONS = {"scale": "--scale", "std": "--std", "samples": "--samples", "seed": "--seed", "subject": "--swap"}
_OF_FACTS = "facts"


def make_corruption(
    name: CorruptionName | None,
    *,
    usual: CorruptionName,
    scale: float | None,
    std: str | None,
    samples: int | None,
    seed: int | None,
    swap: str | None,
    reference: Sequence[Fact],
) -> Corruption:
    """The corruption that was asked for.

    Args:
        name: the option's value.
        usual: what it stands for where there is none, and no other subject either.
        scale: of noise.
        std: what it is scaled by: a number, or ``facts``, which ``over_facts`` fills in once there is a model.
        samples: to average over.
        seed: of the samples.
        swap: another subject.
        reference: facts for the corruptions that need them.

    Raises:
        DataError: an option that this corruption does not have.
        LocateError: a value that it does not take.
    """
    name = name or (usual if swap is None else "swap")
    made = _CLASSES[name]
    taken = {field.name for field in fields(made)}
    given: dict[str, Any] = {"scale": scale, "std": std, "samples": samples, "seed": seed, "subject": swap}
    given = {field: value for field, value in given.items() if value is not None}
    for field in given:
        if field not in taken:
            raise DataError(f"{_OPTIONS[field]} has no meaning for --corruption {name}; leave it out.")
    if std == _OF_FACTS:
        del given["std"]
    elif std is not None:
        given["std"] = _positive(std)
    if "reference" in taken:
        given["reference"] = tuple(reference)
    if "pool" in taken and swap is None:
        given["pool"] = (*reference, *(fact for fact in bundled_facts() if fact not in reference))
    return made(**given)


def over_facts(
    corruption: Corruption, std: str | None, model: TransformerBridge, reference: Sequence[Fact]
) -> Corruption:
    """The corruption, scaled by the standard deviation over all these facts' subjects where that was asked for."""
    if std != _OF_FACTS or not isinstance(corruption, GaussianNoise | UniformNoise):
        return corruption
    return replace(corruption, std=embedding_std(model, reference))


def _positive(std: str) -> float:
    try:
        number = float(std)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise DataError(f"--std: give a positive number, or {_OF_FACTS}; found {std!r}.")
    return number
