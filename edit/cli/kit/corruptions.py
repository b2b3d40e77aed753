"""The options of a corruption, and the corruption that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import typer

import locate
from edit.cli.kit.options import CORRUPTION
from locate.errors import DataError, LocateError

CorruptionName = Literal["gaussian", "uniform", "zero", "mean", "resample", "multivariate", "swap"]

# The public name of each.
_CLASSES: dict[CorruptionName, str] = {
    "gaussian": "GaussianNoise",
    "uniform": "UniformNoise",
    "zero": "ZeroEmbedding",
    "mean": "MeanEmbedding",
    "resample": "ResampledEmbedding",
    "multivariate": "MultivariateNoise",
    "swap": "TokenSwap",
}
_OF_FACTS = "facts"
# Fields with facts that it draws on.
_DRAWN = ("reference", "pool")


@dataclass(frozen=True, kw_only=True)
class CorruptionOptions:
    """What stands in the subject's place."""

    corruption: Annotated[
        CorruptionName | None,
        typer.Option(
            help="What stands in the subject's place: noise on its embeddings (gaussian, uniform, or multivariate, as "
            "the facts' own subjects spread), other embeddings (zero, mean, resample), or another subject (swap).",
            rich_help_panel=CORRUPTION,
        ),
    ] = None
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", "--noise", help="Noise, in standard deviations of the embeddings (3; multivariate 1).",
            rich_help_panel=CORRUPTION,
        ),
    ] = None  # fmt: skip
    std: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|facts",
            help="What the noise is scaled by: a number (1 makes --scale absolute), or facts for the standard "
            "deviation of all their subjects; by default that of each subject's own embeddings.",
            rich_help_panel=CORRUPTION,
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(help="Corrupted versions to average over (10; swap 1).", rich_help_panel=CORRUPTION),
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="Seed of the corruption (1; swap 0).", rich_help_panel=CORRUPTION)
    ] = None
    swap: Annotated[
        str | None,
        typer.Option(
            metavar="SUBJECT",
            help="The other subject, instead of one chosen among the facts.",
            rich_help_panel=CORRUPTION,
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether any of them is."""
        return any(value is not None for value in vars(self).values())

    def make(self, usual: CorruptionName, reference: Sequence[locate.Fact]) -> locate.Corruption:
        """The corruption that was asked for.

        Args:
            usual: which one where none was named, and no other subject either.
            reference: facts for the corruptions that need them.

        Raises:
            DataError: an option that this corruption does not have.
            LocateError: a value that it does not take.
        """
        name = self.corruption or (usual if self.swap is None else "swap")
        made = getattr(locate, _CLASSES[name])
        taken = {field.name for field in fields(made)}
        # Options have the names of the fields that they set, but for --swap, which sets a swap's subject.
        set_by = {
            "subject" if field == "swap" else field: field for field in ("scale", "std", "samples", "seed", "swap")
        }
        given: dict[str, Any] = {
            field: value for field, option in set_by.items() if (value := getattr(self, option)) is not None
        }
        for field in given:
            if field not in taken:
                raise DataError(f"--{set_by[field]} has no meaning for --corruption {name}; leave it out.")
        if self.std == _OF_FACTS:
            del given["std"]
        elif self.std is not None:
            given["std"] = _positive(self.std)
        if "reference" in taken:
            given["reference"] = tuple(reference)
        if "pool" in taken and self.swap is None:
            given["pool"] = (*reference, *(fact for fact in locate.bundled_facts() if fact not in reference))
        return made(**given)

    def described(self, made: Any) -> dict[str, Any]:
        """What was made, as plain data, without what it takes from facts: see ``drawn``."""
        from locate.contrast.corruption import describe

        plain = describe(made)
        return {name: _OF_FACTS if self.std == name == "std" else plain[name] for name in plain if name not in _DRAWN}

    def drawn(self, made: Any, model: Any, fact: locate.Fact) -> Any:
        """What a corruption takes from other facts for this one, as plain data; None where that is nothing.

        Of a subject that is swapped it is the other subject alone, so that more facts to choose from change nothing
        where they change no choice.
        """
        from locate.store.hashes import fingerprint

        if getattr(made, "pool", None) is not None:
            try:
                return made.corrupt(model, fact, locate.encode_fact(model, fact)).subjects
            except LocateError as error:
                return str(error)
        reference = getattr(made, "reference", None)
        std = made.std if self.std == _OF_FACTS else None
        return None if reference is None and std is None else [std, fingerprint(reference or ())]

    def over_facts(self, made: Any, model: Any, reference: Sequence[locate.Fact]) -> Any:
        """What was made, scaled by the standard deviation over all these facts' subjects where that was asked for."""
        return replace(made, std=locate.embedding_std(model, reference)) if self.std == _OF_FACTS else made


def _positive(std: str) -> float:
    try:
        number = float(std)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise DataError(f"--std: give a positive number, or {_OF_FACTS}; found {std!r}.")
    return number
