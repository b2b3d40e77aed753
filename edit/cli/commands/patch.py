"""``locate-edit patch``: activation patching of one fact or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from rich.table import Table

import locate
from edit.cli.kit.command import command
from edit.cli.kit.corruptions import CorruptionOptions
from edit.cli.kit.facts import Facts, read_fact
from edit.cli.kit.jobs import Job, Together
from edit.cli.kit.models import load_model
from edit.cli.kit.options import (
    CORRUPTION,
    METHOD,
    DirectionOption,
    MetricOption,
    Place,
    PositionsOption,
    PrecisionOption,
    read_amount,
    read_names,
    read_numbers,
    read_positions,
)
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import shown
from locate.errors import DataError, LocateError, counted
from locate.sites.table import PATCH_SITES

_TOP = 5


@command
def run(
    which: Facts,
    sites: Annotated[
        str,
        typer.Option(help=f"{', '.join(PATCH_SITES)}, or a hook point within a block.", rich_help_panel=METHOD),
    ] = "resid_pre",
    by: Annotated[
        str | None,
        typer.Option(
            help="What sites are told apart by, such as layer,position,head; by default layer and position, or layer "
            "and head or neuron.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    metric: MetricOption = None,
    direction: DirectionOption = "restore",
    layers: Annotated[str | None, typer.Option(help="Such as 0-5,7; by default all.", rich_help_panel=METHOD)] = None,
    positions: PositionsOption = "all",
    units: Annotated[
        str | None, typer.Option(help="Heads or neurons, such as 0-5,7; by default all.", rich_help_panel=METHOD)
    ] = None,
    screen: Annotated[
        float | None,
        typer.Option(
            help="Patch only this many sites (or, below 1, this share), the first by a first-order estimate, which "
            "the others keep.",
            min=0,
            rich_help_panel=METHOD,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Of that estimate: atp, atp*, relp, relp-ig, gim or ig (the default).", rich_help_panel=METHOD
        ),
    ] = None,
    precision: PrecisionOption = "model",
    corrupt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Another prompt, of as many tokens. Where both are written out, --subject is what only the first has.",
            rich_help_panel=CORRUPTION,
        ),
    ] = None,
    corrupt_fact: Annotated[
        str | None,
        typer.Option(metavar="FACT", help="Another fact, as in --fact, of as many tokens.", rich_help_panel=CORRUPTION),
    ] = None,
    *,
    corrupted: CorruptionOptions,
    place: Place,
    console: Voice,
) -> Outcome:
    """Patch states of a clean run into a corrupted one (or the other way), one site at a time.

    The corrupted prompt is by default about another subject of as many tokens. One fact gives patches.nc and a
    figure. Several facts (--facts or --shipped) give patches/NAME.nc each, the mean over facts where sites are
    the same in all of them (mean.csv and a figure), and summary.json. A run that was stopped goes on where it was
    when the same command is given again.
    """
    chosen = which.choose(place.model, console, against=corrupt)

    from locate.contrast.measures import as_metrics
    from locate.model.anatomy import check_layer
    from locate.patching.estimating import estimator
    from locate.patching.sites import patch_site

    against = _against(corrupt, corrupt_fact, corrupted, chosen.reference)
    options: dict[str, Any] = {
        "sites": sites, "by": None if by is None else read_names(by, "--by"), "metric": metric,
        "direction": direction, "layers": None if layers is None else read_numbers(layers, "--layers"),
        "positions": read_positions(positions), "precision": precision,
        "screen": None if screen is None else read_amount(screen, "--screen", "sites"), "method": method,
        "units": None if units is None else read_numbers(units, "--units"),
    }  # fmt: skip
    if method is not None:
        if screen is None:
            raise DataError(
                "--method is of the estimate that --screen chooses sites by; give --screen, or leave it out."
            )
        estimator(method)
    if metric is not None:
        as_metrics(metric)
    model = load_model(place.model, console)
    patch_site(model, sites, options["by"])
    for layer in options["layers"] or ():
        check_layer(model, layer)
    against = corrupted.over_facts(against, model, chosen.reference)
    job = _Patching(
        model=model, described={**options, "corruption": _describe(against, corrupted)}, console=console,
        against=against, corrupted=corrupted, how={**options, "budget": place.budget},
    )  # fmt: skip
    return job.run(chosen, which, model=place.model, out=place.out)


def _against(
    corrupt: str | None, corrupt_fact: str | None, corrupted: CorruptionOptions, reference: Sequence[locate.Fact]
) -> Any:
    """What the clean run is patched against: another prompt, another fact, or a corruption of the subject."""
    if (corrupt is not None) + (corrupt_fact is not None) + corrupted.given > 1:
        raise DataError(
            "--corrupt, --corrupt-fact and the options of a corruption (--corruption, --scale, --std, --samples, "
            "--seed, --swap) exclude each other; give one kind of them."
        )
    if corrupt_fact is not None:
        return read_fact(corrupt_fact, "--corrupt-fact")
    return corrupted.make("swap", reference) if corrupt is None else corrupt


def _describe(against: Any, corrupted: CorruptionOptions) -> dict[str, Any]:
    if isinstance(against, str):
        return {"prompt": against}
    return {"fact": asdict(against)} if isinstance(against, locate.Fact) else corrupted.described(against)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Patching(Job):
    name: ClassVar[str] = "patch"
    file: ClassVar[str] = "patches"
    folder: ClassVar[str] = "patches"

    against: Any
    corrupted: CorruptionOptions
    how: dict[str, Any]

    @property
    def label(self) -> str:
        return f"patching {self.how['sites']}"

    def depends(self, fact: locate.Fact) -> Any:
        return self.corrupted.drawn(self.against, self.model, fact)

    def compute(self, facts: list[locate.Fact], *, progress: bool) -> Sequence[locate.Patches]:
        return [locate.patch(self.model, fact, self.against, **self.how, progress=progress) for fact in facts]

    def load(self, path: Path) -> locate.Patches:
        return locate.load_patches(path)

    def found(self, result: locate.Patches) -> dict[str, Any]:
        table = result.top(_TOP)
        shown = [name for name in (*result.info["by"], "token", "value", "score") if name in table]
        return {
            "prompt": result.info["prompt"], "answer": result.info["answer"],
            "corrupt_prompt": "".join(result.info["corrupt_tokens"]), "metric": result.metric,
            "clean": result.clean, "corrupted": result.corrupted, "top": table[shown].to_dict(orient="records"),
        }  # fmt: skip

    def lines(self, result: locate.Patches, found: dict[str, Any]) -> Iterator[str]:
        from locate.figures.style import metric_label

        label = metric_label(result.metric, result.info, result.info["answer"])
        yield f"{label} {result.clean:.3f}, corrupted {result.corrupted:.3f}; the largest effects:"
        for site in found["top"]:
            where = ", ".join(f"{dim} {site[dim]}" for dim in result.info["by"])
            token = f" ({site['token'].strip()!r})" if "token" in site else ""
            yield f"  {where}{token}: {_scored(site)}"

    def draw(self, result: locate.Patches, folder: Path, name: str) -> None:
        from locate.plots import save_figure

        by = result.info["by"]
        # Where position is one of three, the figure is of one token: that of the largest effect.
        place = {"position": int(result.top(1)["position"][0])} if "position" in by and len(by) > 2 else {}
        save_figure(result.plot(**place), folder, name)

    def together(self, results: list[locate.Patches], folder: Path) -> Together:
        try:
            average = locate.average_patches(results)
        except LocateError as error:
            self.console.print(f"No mean: {error}", soft_wrap=True)
            return Together(summary={"mean_score": None})
        from locate.plots import save_figure

        average.data.to_dataframe().to_csv(folder / "mean.csv")
        save_figure(average.plot(), folder, "mean")
        dims = [str(dim) for dim in average.data["score"].dims]
        values = {name: average.data[name].values for name in (*dims, *map(str, average.data.data_vars))}
        summary = {"facts": average.n_facts, "dims": dims, **values}
        return Together(summary={"mean_score": summary}, shown=[_table(average, dims)])


def _scored(site: dict[str, Any]) -> str:
    """The normalised score; the value itself where clean and corrupted are equal, so that there is none."""
    return f"value {site['value']:.3f}" if site["score"] is None else f"score {site['score']:.3f}"


def _table(average: locate.AveragePatches, dims: list[str]) -> Table:
    table = Table(*dims, "score", "standard error", title=f"Largest mean scores, {counted(average.n_facts, 'fact')}")
    for row in average.top(_TOP).to_dict(orient="records"):
        places = [str(row[dim]) for dim in dims]
        table.add_row(*places, f"{row['score']:.3f}", shown(row["standard_error"]))
    return table
