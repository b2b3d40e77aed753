"""From the options of the command line to an editing method."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from transformer_lens.model_bridge import TransformerBridge

from edit.cli.kit.options import METHOD, read_names, read_numbers
from edit.cli.kit.statistics import add_up, statistics_files
from edit.methods import EMMET, KN, MEMIT, PMET, ROME, AlphaEdit, EditingMethod
from edit.methods.rewriting.stabilisers import BLUE, ENCORE, NAS, PRUNE, RECT, Stabiliser
from edit.statistics.corpus import SAMPLED
from locate.errors import DataError, suggest
from locate.model.precision import Precision

MethodName = Literal["rome", "rome-original", "memit", "emmet", "pmet", "alphaedit", "kn"]

_METHODS: dict[str, type] = {
    "rome": ROME, "rome-original": ROME, "memit": MEMIT, "emmet": EMMET, "pmet": PMET, "alphaedit": AlphaEdit, "kn": KN,
}  # fmt: skip
_STABILISERS: dict[str, type[Stabiliser]] = {"nas": NAS, "encore": ENCORE, "blue": BLUE, "prune": PRUNE, "rect": RECT}

MethodOption = Annotated[
    MethodName,
    typer.Option(
        help="How to edit; rome is R-ROME, rome-original has the key of the original publication.",
        rich_help_panel=METHOD,
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        "--layer",
        help="Layers to edit, such as 4 or 3-7; by default the method's share of the depth.",
        rich_help_panel=METHOD,
    ),
]
StabiliseOption = Annotated[
    str | None,
    typer.Option(
        help=f"What keeps many edits from breaking the model: {', '.join(_STABILISERS)}, with commas between them.",
        rich_help_panel=METHOD,
    ),
]
CorpusOption = Annotated[
    str,
    typer.Option(
        help=f"Text for key statistics: {SAMPLED} (the model writes it), a text file, or the name of a data set.",
        rich_help_panel=METHOD,
    ),
]

StatisticsOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Key statistics to use, from `locate-edit stats`: a file or a folder; may be given several times.",
        rich_help_panel=METHOD,
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        help="Keys to collect, where none are given; by default 20 times their dimension (40 for alphaedit).",
        min=1,
        rich_help_panel=METHOD,
    ),
]
ValuePrecisionOption = Annotated[
    Precision, typer.Option(help="Of the matrix products while values are optimised.", rich_help_panel=METHOD)
]


def make_method(
    name: MethodName, *, layers: str | None, stabilise: str | None, given: bool, corpus: str, tokens: int | None,
    precision: Precision, seed: int,
) -> EditingMethod:  # fmt: skip
    """The method that was asked for; ``given`` says that there are statistics for it.

    Raises:
        DataError: an option that this method does not have, or a name that is not known.
    """
    assert name in get_args(MethodName)
    options: dict[str, Any] = {"seed": seed, "stabilisers": tuple(_stabilisers(stabilise))}
    chosen = None if layers is None else read_numbers(layers, "--layers")
    if name == "kn":
        if chosen is not None or given or tokens or corpus != SAMPLED or precision != "model":
            raise DataError(
                "--layers, --statistics, --corpus, --tokens and --precision have no meaning for --method kn; leave "
                "them out."
            )
        if unfit := [one for one in options["stabilisers"] if one.acts_on_values]:
            raise DataError(f"--stabilise: {unfit[0].name} has no meaning for --method kn; use prune or rect.")
        return KN(**options)
    if given and (corpus != SAMPLED or tokens):
        raise DataError("--statistics gives what --corpus and --tokens would collect; leave these out.")
    options |= {"corpus": corpus, "statistics_tokens": tokens, "precision": precision}
    if name in ("rome", "rome-original"):
        if chosen is not None and len(chosen) != 1:
            raise DataError(f"--layers: ROME edits one layer, found {layers!r}. Use emmet, memit or another method.")
        return ROME(layer=None if chosen is None else chosen[0], original=name == "rome-original", **options)
    return _METHODS[name](layers=chosen, **options)


def with_statistics(method: EditingMethod, model: TransformerBridge, files: list[Path] | None) -> EditingMethod:
    """The method with the statistics in these files, if there are any, of the layers that it edits.

    Raises:
        DataError: a file is not readable, shards do not go together, or a layer's statistics are missing or do not fit.
        NumericsError: there are too few keys.
    """
    if not files or not method.uses_statistics:
        return method
    known = add_up(statistics_files(files), layers=method.edited_layers(model))
    for layer, one in known.items():
        if missing := [part for part in one.parts if part.of > 1]:
            have = ", ".join(f"{part.index}/{part.of}" for part in missing)
            warnings.warn(f"The key statistics of layer {layer} are of shards {have} alone.", stacklevel=2)
    method = replace(method, statistics=known)
    method.statistics_for(model)
    return method


def _stabilisers(text: str | None) -> list[Stabiliser]:
    if text is None:
        return []
    names = read_names(text.casefold(), "--stabilise")
    for name in names:
        if name not in _STABILISERS:
            raise DataError(f"--stabilise: there is no {name!r}. {suggest(name, _STABILISERS)}")
    return [_STABILISERS[name]() for name in names]
