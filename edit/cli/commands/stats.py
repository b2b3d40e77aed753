"""``locate-edit stats``: collect key statistics, or add up those of shards."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import edit
from edit.cli.kit.command import command
from edit.cli.kit.models import load_model
from edit.cli.kit.options import METHOD, RUN, CorpusOption, ModelOption, TokensOption, read_numbers
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.statistics import SUFFIX, add_up, statistics_files
from edit.names import SAMPLED
from locate.errors import DataError
from locate.names import DEFAULT_MODEL


@command
def run(
    files: Annotated[
        list[Path] | None, typer.Argument(help="With --merge: files of statistics, or folders of them.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, such as 3-7 or 3,5.", rich_help_panel=METHOD)] = None,
    corpus: CorpusOption = SAMPLED,
    tokens: TokensOption = None,
    seed: Annotated[int, typer.Option(help="Seed of sampled text.", rich_help_panel=METHOD)] = 0,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only one of N shards of the text: 0/4 to 3/4.", rich_help_panel=METHOD),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add up the statistics in FILES, layer by layer.", rich_help_panel=METHOD)
    ] = False,
    spectrum: Annotated[
        bool,
        typer.Option(help="Describe the eigenvalues, which takes minutes for wide models.", rich_help_panel=RUN),
    ] = True,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"A file ({SUFFIX}, for one layer) or a folder for the statistics; the cache has them in any case.",
            rich_help_panel=RUN,
        ),
    ] = None,
    *,
    console: Voice,
) -> Outcome:
    """Collect the key statistics of layers (the C of ROME, MEMIT and AlphaEdit), or add up shards of them.

    Several layers are collected in one pass over the text. A collection that was stopped goes on where it was when
    the same command is given again. Shards can be collected on several machines and added up with --merge FILES.
    """
    if merge:
        if layers is not None or shard is not None:
            raise DataError("--merge adds up files; it does not go with --layers or --shard.")
        if corpus != SAMPLED or tokens is not None or seed != 0:
            raise DataError("--merge adds up files; it does not go with --corpus, --tokens or --seed.")
        found = add_up(_to_merge(files, out))
    else:
        if files:
            raise DataError(f"Files are only read with --merge; found {str(files[0])!r}.")
        if layers is None:
            raise DataError("Give the layers to collect key statistics of, such as --layers 3-7.")
        if shard is not None and out is None:
            raise DataError("--shard needs --out: a file or folder to merge the shards from.")
        chosen, part = read_numbers(layers, "--layers"), _read_shard(shard)
        _check_out(out, len(set(chosen)))
        bridge = load_model(model, console)
        console.kept = "What is collected is kept, and the same command goes on."
        found = edit.collect_statistics(bridge, chosen, corpus=corpus, tokens=tokens, seed=seed, shard=part)
    _check_out(out, len(found))
    saved = {layer: one.save(path) for layer, one in found.items() if (path := _place(out, one)) is not None}
    rows: list[dict[str, Any]] = []
    console.doing = "eigenvalues"
    for layer in found:
        file = str(saved[layer]) if saved else None
        described = asdict(edit.spectrum(found[layer])) if spectrum else {}
        rows.append({**_row(found[layer]), **described, "file": file})
    return Outcome(value=rows, shown=[_table(rows, spectrum)], results=list(saved.values()))


def _to_merge(files: list[Path] | None, out: Path | None) -> list[Path]:
    """The files to add up, if their sum has another place than they have."""
    if out is None:
        raise DataError("--merge needs --out: a file or folder for the sums.")
    if not files:
        raise DataError("--merge needs files to add up: locate-edit stats --merge FILES --out FILE.")
    place = out.resolve()
    taken = {place, place.parent} if out.suffix == SUFFIX else {place}
    if any(one in taken or one.parent == place for one in map(Path.resolve, files)):
        raise DataError(f"--out {out} is among what is merged, and would count itself next time. Give another.")
    return statistics_files(files)


def _read_shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    parts = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if parts is None or int(parts[1]) >= int(parts[2]):
        raise DataError(f"--shard: expected I/N with I from 0 to N − 1, such as 0/4; found {text!r}.")
    return int(parts[1]), int(parts[2])


def _check_out(out: Path | None, layers: int) -> None:
    if out is not None and out.suffix == SUFFIX and layers > 1:
        raise DataError(f"--out {out} is one file, and there are {layers} layers. Give a folder.")
    if out is not None and out.suffix != SUFFIX and out.is_file():
        raise DataError(f"--out {out} is a file that is no {SUFFIX} file. Give a folder, or a name that ends so.")


def _place(out: Path | None, statistics: edit.KeyStatistics) -> Path | None:
    if out is None or out.suffix == SUFFIX:
        return out
    shards = "".join(f"-shard-{part.index}-of-{part.of}" for part in statistics.parts if part.of > 1)
    return out / f"layer-{statistics.layer}{shards}{SUFFIX}"


def _row(one: edit.KeyStatistics) -> dict[str, Any]:
    return {
        "layer": one.layer, "keys": one.count, "dimension": len(one.second_moment), "corpus": one.corpus,
        "seed": one.seed, "dtype": one.dtype,
        "shards": ["all" if part.of == 1 else f"{part.index}/{part.of}" for part in one.parts],
    }  # fmt: skip


def _table(rows: list[dict[str, Any]], spectrum: bool) -> Table:
    extra = ["rank", "condition", "effective rank", "in the largest 10%"] if spectrum else []
    table = Table("layer", "keys", "dimension", "shards", *extra, title=f"Key statistics on {rows[0]['corpus']}")
    for row in rows:
        cells = [str(row["layer"]), str(row["keys"]), str(row["dimension"]), ", ".join(row["shards"])]
        if spectrum:
            cells += [
                str(row["rank"]), f"{row['condition']:.2g}", f"{row['effective_rank']:.0f}",
                f"{row['share_of_largest_tenth']:.1%}",
            ]  # fmt: skip
        table.add_row(*cells)
    return table
