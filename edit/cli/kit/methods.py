"""The options of an editing method, and the method that they make."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import edit
from edit.cli.kit.options import METHOD, CorpusOption, TokensOption, read_names, read_numbers
from edit.cli.kit.statistics import add_up, statistics_files
from edit.names import AMOUNTS, SAMPLED
from locate.errors import DataError, suggest
from locate.names import Precision

MethodName = Literal["rome", "rome-original", "memit", "emmet", "pmet", "alphaedit", "kn", "ft"]

# The public name of each.
_METHODS: dict[MethodName, str] = {
    "rome": "ROME", "rome-original": "ROME", "memit": "MEMIT", "emmet": "EMMET", "pmet": "PMET",
    "alphaedit": "AlphaEdit", "kn": "KN", "ft": "FineTuning",
}  # fmt: skip
_STABILISERS = {"nas": "NAS", "encore": "ENCORE", "blue": "BLUE", "prune": "PRUNE", "rect": "RECT"}
_TRACED = "traced"
# By option, the field that it sets; methods that edit one layer have a field for one.
_SETS = {
    "--layers": ("layers", "layer"), "--statistics": ("statistics",), "--corpus": ("corpus",),
    "--tokens": ("statistics_tokens",), "--precision": ("precision",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How to edit."""

    method: Annotated[
        MethodName,
        typer.Option(
            help="How to edit; rome is R-ROME, rome-original has the key of the original publication; ft is "
            "fine-tuning of one matrix.",
            rich_help_panel=METHOD,
        ),
    ] = "rome"
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Layers to edit, such as 4 or 3-7; by default the method's share of the depth. `edit` also takes "
            "traced: each fact is edited by itself, where its own trace says.",
            rich_help_panel=METHOD,
        ),
    ] = None
    stabilise: Annotated[
        str | None,
        typer.Option(
            help=f"What keeps many edits from breaking the model: {', '.join(_STABILISERS)}, with commas between them.",
            rich_help_panel=METHOD,
        ),
    ] = None
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            help="Key statistics to use, from `locate-edit stats`: a file or a folder; may be given several times. Or "
            "how many to collect: full (the default), or quick (4 a dimension, shrunk).",
            rich_help_panel=METHOD,
        ),
    ] = None
    corpus: CorpusOption = SAMPLED
    tokens: TokensOption = None
    precision: Annotated[
        Precision, typer.Option(help="Of the matrix products while values are optimised.", rich_help_panel=METHOD)
    ] = "model"
    seed: Annotated[int, typer.Option(help="Of sampled prefixes and text.", rich_help_panel=METHOD)] = 0

    @property
    def traced(self) -> bool:
        """Whether each fact shall be edited where its own trace says."""
        return self.layers == _TRACED

    def make(self, *, traced: bool = False) -> Any:
        """The method that was asked for.

        Args:
            traced: whether the command can edit each fact at its own traced layer.

        Raises:
            DataError: an option that this method does not have, or a name that is not known.
        """
        names = self._stabilisers()
        given: dict[str, Any] = {
            "--layers": None
            if self.layers is None or (traced and self.traced)
            else read_numbers(self.layers, "--layers"),
            "--statistics": self._amount() or self.statistics or None,
            "--corpus": None if self.corpus == SAMPLED else self.corpus,
            "--tokens": self.tokens,
            "--precision": None if self.precision == "model" else self.precision,
        }
        given = {option: value for option, value in given.items() if value is not None}
        made = getattr(edit, _METHODS[self.method])
        taken = {field.name for field in fields(made)}
        lacking = [option for option, its in _SETS.items() if not taken & {*its}]
        if any(option in given for option in lacking):
            listed = " and ".join(filter(None, (", ".join(lacking[:-1]), lacking[-1])))
            raise DataError(f"{listed} have no meaning for --method {self.method}; leave them out.")
        known = {name: getattr(edit, stabiliser) for name, stabiliser in _STABILISERS.items()}
        if names and "stabilisers" not in taken:
            raise DataError(f"--stabilise has no meaning for --method {self.method}; leave it out.")
        if "--precision" in lacking and (unfit := [name for name in names if known[name].acts_on_values]):
            others = " or ".join(name for name, stabiliser in known.items() if not stabiliser.acts_on_values)
            raise DataError(
                f"--stabilise: {_STABILISERS[unfit[0]]} has no meaning for --method {self.method}; use {others}."
            )
        amount = given.pop("--statistics", None)
        if isinstance(amount, str):
            given["--statistics"] = amount
        elif amount and ("--corpus" in given or "--tokens" in given):
            raise DataError("--statistics gives what --corpus and --tokens would collect; leave these out.")
        if "layer" in taken and "--layers" in given:
            if len(given["--layers"]) != 1:
                raise DataError(
                    f"--layers: {_METHODS[self.method]} edits one layer, found {self.layers!r}. Use emmet, memit or "
                    "another method."
                )
            (given["--layers"],) = given["--layers"]
        settings = {next(name for name in _SETS[option] if name in taken): value for option, value in given.items()}
        if self.method == "rome-original":
            settings["original"] = True
        if names:
            settings["stabilisers"] = tuple(known[name]() for name in names)
        return made(seed=self.seed, **settings)

    def with_statistics(self, method: Any, model: Any) -> Any:
        """The method with the statistics in the files given, if there are any, of the layers that it edits.

        Raises:
            DataError: a file is not readable, shards do not go together, or a layer's statistics are missing or do not
                fit.
            NumericsError: there are too few keys.
        """
        if not self.statistics or self._amount():
            return method
        layers = None if self.traced else method.edited_layers(model)
        known = add_up(statistics_files(self.statistics), layers=layers)
        for layer, one in known.items():
            if missing := [part for part in one.parts if part.of > 1]:
                have = ", ".join(f"{part.index}/{part.of}" for part in missing)
                warnings.warn(f"The key statistics of layer {layer} are of shards {have} alone.", stacklevel=2)
        method = replace(method, statistics=known)
        if layers is not None:
            method.statistics_for(model)
        return method

    def _amount(self) -> str | None:
        """``quick`` or ``full``, where that is what was given for the statistics."""
        words = [str(one) for one in self.statistics or () if str(one) in AMOUNTS]
        if words and len(self.statistics or ()) > 1:
            raise DataError(f"--statistics {words[0]} stands for itself; leave the others out.")
        return words[0] if words else None

    def _stabilisers(self) -> tuple[str, ...]:
        names = () if self.stabilise is None else read_names(self.stabilise.casefold(), "--stabilise")
        for name in names:
            if name not in _STABILISERS:
                raise DataError(f"--stabilise: there is no {name!r}. {suggest(name, _STABILISERS)}")
        return names
