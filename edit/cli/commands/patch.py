"""``locate-edit patch``: activation patching of one fact or many."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from rich.console import Console
from rich.table import Table
from transformer_lens.model_bridge import TransformerBridge

from edit.cli.kit.corruptions import make_corruption, over_facts
from edit.cli.kit.facts import Case, choose_facts, read_fact
from edit.cli.kit.jobs import describe_run, end, load_results, pending_cases, summarise, work_off
from edit.cli.kit.options import (
    CORRUPTION,
    METHOD,
    BudgetOption,
    CorruptionName,
    CorruptionOption,
    DirectionOption,
    FactOption,
    FactsOption,
    FiguresOption,
    JsonOption,
    LimitOption,
    MetricOption,
    ModelOption,
    OtherOption,
    OutOption,
    PositionsOption,
    PrecisionOption,
    PromptOption,
    RelationOption,
    RetryOption,
    SamplesOption,
    ScaleOption,
    SeedOption,
    ShippedOption,
    StdOption,
    SubjectOption,
    SwapOption,
    TargetOption,
    read_names,
    read_numbers,
    read_positions,
)
from edit.cli.kit.output import print_json, readable_errors
from locate.contrast.corruption import Corruption, describe
from locate.contrast.measures import as_metrics
from locate.contrast.metrics import hardly_differ
from locate.engine import DEFAULT_BUDGET
from locate.errors import DataError
from locate.facts.facts import Fact
from locate.figures.style import metric_label
from locate.model.anatomy import check_layer
from locate.model.bundled import DEFAULT_MODEL
from locate.model.loading import load_model
from locate.patching.patch import patch
from locate.patching.patches import Patches, load_patches
from locate.patching.sites import patch_site
from locate.plots import save_figure
from locate.sites.table import PATCH_SITES
from locate.store.files import save_json, to_plain
from locate.store.folders import RunFolder

_TOP = 5


def run(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    target_new: OtherOption = None,
    facts: FactsOption = None,
    shipped: ShippedOption = False,
    relation: RelationOption = None,
    limit: LimitOption = None,
    figures: FiguresOption = False,
    retry_failed: RetryOption = False,
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
    precision: PrecisionOption = "model",
    corrupt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Another prompt, of as many tokens.", rich_help_panel=CORRUPTION),
    ] = None,
    corrupt_fact: Annotated[
        str | None,
        typer.Option(metavar="FACT", help="Another fact, as in --fact, of as many tokens.", rich_help_panel=CORRUPTION),
    ] = None,
    corruption: CorruptionOption = None,
    scale: ScaleOption = None,
    std: StdOption = None,
    samples: SamplesOption = None,
    seed: SeedOption = None,
    swap: SwapOption = None,
    model: ModelOption = DEFAULT_MODEL,
    budget: BudgetOption = DEFAULT_BUDGET,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Patch states of a clean run into a corrupted one (or the other way), one site at a time.

    The corrupted prompt is by default about another subject of as many tokens. One fact gives patches.nc and a
    figure. Several facts (--facts or --shipped) give patches/NAME.nc each, the mean over facts where sites are
    the same in all of them (mean.csv), and summary.json. A run that was stopped goes on where it was when the same
    command is given again.
    """
    with readable_errors() as console:
        single = (fact, prompt, subject, target, target_new)
        chosen = choose_facts(
            single, file=facts, shipped=shipped, relation=relation, limit=limit, model=model, console=console
        )
        given = {"scale": scale, "std": std, "samples": samples, "seed": seed, "swap": swap}
        against = _against(corrupt, corrupt_fact, corruption, given, chosen.reference)
        options: dict[str, Any] = {
            "sites": sites, "by": None if by is None else read_names(by, "--by"), "metric": metric,
            "direction": direction, "layers": None if layers is None else read_numbers(layers, "--layers"),
            "positions": read_positions(positions), "screen": _screen(screen), "precision": precision,
            "units": None if units is None else read_numbers(units, "--units"),
        }  # fmt: skip
        if metric is not None:
            as_metrics(metric)
        bridge = load_model(model)
        patch_site(bridge, sites, options["by"])
        for layer in options["layers"] or ():
            check_layer(bridge, layer)
        if isinstance(against, Corruption):
            against = over_facts(against, std, bridge, chosen.reference)
        how = {**options, "budget": budget}
        if chosen.name is None:
            _patch_one(bridge, chosen.cases[0], against, how, out or Path("runs/patch"), as_json, console)
            return
        description = describe_run("patch", model, bridge, chosen.facts, {**options, "corruption": _describe(against)})
        with RunFolder.open(out or Path(f"runs/patch-{chosen.name}"), description) as folder:
            work_off(
                folder,
                [[case] for case in pending_cases(folder, chosen, retry_failed, console)],
                lambda facts: [patch(bridge, fact, against, **how, progress=False) for fact in facts],
                lambda case, patches: (patches.save(folder.path / "patches" / f"{case.key}.nc"), _found(patches)),
                label=f"patching {sites}", console=console,
            )  # fmt: skip
            done = load_results(folder, chosen, load_patches)
            if figures or len(chosen.cases) == 1:
                for key, patches in done.items():
                    _save_figure(patches, folder.path / "patches", key)
            mean = _mean(_comparable(list(done.values()), console))
            summary = {**summarise(folder, chosen, description), "mean_score": _table_of(mean)}
            if mean is not None:
                mean.to_dataframe().to_csv(folder.path / "mean.csv")
            save_json(folder.path / "summary.json", to_plain(summary))
        if as_json:
            print_json(to_plain(summary))
        else:
            if mean is not None:
                console.print(_top_table(mean))
            print(folder.path / "summary.json")
        end(summary, console)


def _against(
    corrupt: str | None,
    corrupt_fact: str | None,
    corruption: CorruptionName | None,
    given: dict[str, Any],
    reference: Sequence[Fact],
) -> Corruption | Fact | str:
    """What the clean run is patched against: another prompt, another fact, or a corruption of the subject."""
    corrupted = corruption is not None or any(value is not None for value in given.values())
    if (corrupt is not None) + (corrupt_fact is not None) + corrupted > 1:
        raise DataError(
            "--corrupt, --corrupt-fact and the options of a corruption (--corruption, --scale, --std, --samples, "
            "--seed, --swap) exclude each other; give one kind of them."
        )
    if corrupt_fact is not None:
        return read_fact(corrupt_fact, "--corrupt-fact")
    return make_corruption(corruption, usual="swap", reference=reference, **given) if corrupt is None else corrupt


def _screen(screen: float | None) -> int | float | None:
    if screen is None or 0 < screen < 1:
        return screen
    if screen == 0 or screen != int(screen):
        raise DataError(f"--screen: give a whole number of sites or a share between 0 and 1, found {screen:g}.")
    return int(screen)


def _describe(against: Corruption | Fact | str) -> dict[str, Any]:
    if isinstance(against, str):
        return {"prompt": against}
    return {"fact": asdict(against)} if isinstance(against, Fact) else describe(against)


def _patch_one(
    bridge: TransformerBridge,
    case: Case,
    against: Corruption | Fact | str,
    options: dict[str, Any],
    out: Path,
    as_json: bool,
    console: Console,
) -> None:
    patches = patch(bridge, case.fact, against, **options)
    patches.save(out / "patches.nc")
    _save_figure(patches, out, "patches")
    found = _found(patches)
    if as_json:
        print_json(to_plain(found))
        return
    label = metric_label(patches.metric, patches.info, patches.info["answer"])
    console.print(f"{label} {patches.clean:.3f}, corrupted {patches.corrupted:.3f}; the largest effects:")
    for site in found["top"]:
        where = ", ".join(f"{dim} {site[dim]}" for dim in patches.info["by"])
        token = f" ({site['token'].strip()!r})" if "token" in site else ""
        console.print(f"  {where}{token}: {_scored(site)}")
    print(out / "patches.nc")


def _found(patches: Patches) -> dict[str, Any]:
    table = patches.top(_TOP)
    shown = [name for name in (*patches.info["by"], "token", "value", "score") if name in table]
    return to_plain(
        {
            "prompt": patches.info["prompt"], "answer": patches.info["answer"],
            "corrupt_prompt": "".join(patches.info["corrupt_tokens"]), "metric": patches.metric,
            "clean": patches.clean, "corrupted": patches.corrupted, "top": table[shown].to_dict(orient="records"),
        }
    )  # fmt: skip


def _scored(site: dict[str, Any]) -> str:
    """The normalised score; the value itself where clean and corrupted are equal, so that there is none."""
    return f"value {site['value']:.3f}" if site["score"] is None else f"score {site['score']:.3f}"


def _save_figure(patches: Patches, folder: Path, name: str) -> None:
    by = patches.info["by"]
    # Where position is one of three, the figure is of one token: that of the largest effect.
    place = {"position": int(patches.top(1)["position"][0])} if "position" in by and len(by) > 2 else {}
    save_figure(patches.plot(**place), folder, name)


def _comparable(done: Sequence[Patches], console: Console) -> list[Patches]:
    """The facts whose scores can be averaged, with a word on the others."""
    scored = [patches for patches in done if not hardly_differ(patches.clean, patches.corrupted)]
    if left_out := len(done) - len(scored):
        console.print(f"{left_out} of {len(done)} facts have equal ends, and no score that could be averaged.")
    metrics = Counter(patches.metric for patches in scored)
    if len(metrics) > 1:
        found = ", ".join(f"{name} of {count}" for name, count in metrics.items())
        console.print(f"No mean: scores of different metrics ({found}) do not average. Give one with --metric.")
        return []
    return scored


def _mean(several: Sequence[Patches]) -> xr.Dataset | None:
    """Mean normalised scores over facts, where the sites of all facts can be told to be the same.

    Where sites were screened, ``confirmed`` is the share of facts in which one was patched and not estimated.
    """
    columns = {"score": [patches.scores for patches in several]}
    if all("confirmed" in patches.data for patches in several):
        columns["confirmed"] = [patches.data["confirmed"].astype(float) for patches in several]
    joined: dict[str, xr.DataArray] = {}
    for name, tables in columns.items():
        # Positions differ from prompt to prompt; a single one, such as the last, plays the same part in each.
        if all(table.sizes.get("position") == 1 for table in tables):
            tables = [table.squeeze("position", drop=True) for table in tables]
        if not tables or any("position" in table.dims for table in tables):
            return None
        joined[name] = xr.concat(tables, dim="fact")
    scores, n = joined["score"], len(several)
    error = scores.std("fact", ddof=1) / n**0.5 if n > 1 else xr.full_like(scores[0], np.nan)
    means = {name: table.mean("fact") for name, table in joined.items()}
    return xr.Dataset({**means, "standard_error": error}, attrs={"facts": n})


def _table_of(mean: xr.Dataset | None) -> dict[str, Any] | None:
    if mean is None:
        return None
    return {
        "facts": mean.attrs["facts"], "dims": list(mean["score"].dims),
        **{str(dim): mean[dim].values for dim in mean["score"].dims},
        **{str(name): table.values for name, table in mean.data_vars.items()},
    }  # fmt: skip


def _top_table(mean: xr.Dataset) -> Table:
    dims = [str(dim) for dim in mean["score"].dims]
    rows: Any = mean.to_dataframe().reset_index()
    best = rows.reindex(rows["score"].abs().sort_values(ascending=False).index).head(_TOP)
    table = Table(*dims, "score", "standard error", title=f"Largest mean scores, {mean.attrs['facts']} facts")
    for row in best.to_dict(orient="records"):
        places = [str(row[dim]) for dim in dims]
        table.add_row(*places, f"{row['score']:.3f}", f"{row['standard_error']:.3f}")
    return table
