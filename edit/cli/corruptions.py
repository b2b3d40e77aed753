"""From the options of the command line to a corruption."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from edit.cli.options import CorruptionName
from locate.corruption import (
    Corruption,
    GaussianNoise,
    MeanEmbedding,
    MultivariateNoise,
    ResampledEmbedding,
    TokenSwap,
    UniformNoise,
    ZeroEmbedding,
    describe,
)
from locate.errors import DataError
from locate.facts import Fact, bundled_facts
from locate.runs import fingerprint

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
_OPTIONS = {"scale": "--scale", "samples": "--samples", "seed": "--seed", "subject": "--swap"}


def make_corruption(
    name: CorruptionName | None,
    *,
    usual: CorruptionName,
    scale: float | None,
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
    given: dict[str, Any] = {"scale": scale, "samples": samples, "seed": seed, "subject": swap}
    given = {field: value for field, value in given.items() if value is not None}
    for field in given:
        if field not in taken:
            raise DataError(f"{_OPTIONS[field]} has no meaning for --corruption {name}; leave it out.")
    if "reference" in taken:
        given["reference"] = tuple(reference)
    if "pool" in taken and swap is None:
        given["pool"] = (*reference, *(fact for fact in bundled_facts() if fact not in reference))
    return made(**given)


def describe_corruption(corruption: Corruption) -> dict[str, Any]:
    """The corruption as plain data, with a hash of the facts that it draws on."""
    drawn = {name: getattr(corruption, name, None) for name in ("reference", "pool")}
    return {**describe(corruption), **{name: fingerprint(facts) for name, facts in drawn.items() if facts is not None}}
