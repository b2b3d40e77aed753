"""``locate-edit trace``: causal traces of one fact or many."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from transformer_lens.model_bridge import TransformerBridge

from edit.cli.kit.corruptions import make_corruption, over_facts
from edit.cli.kit.facts import Case, choose_facts
from edit.cli.kit.jobs import describe_run, end, group_alike, load_results, pending_cases, summarise, work_off
from edit.cli.kit.options import (
    METHOD,
    BudgetOption,
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
    read_positions,
)
from edit.cli.kit.output import print_json, readable_errors
from locate.contrast.corruption import describe
from locate.contrast.measures import as_metrics
from locate.contrast.sweep import check_window
from locate.engine import DEFAULT_BUDGET
from locate.errors import DataError
from locate.figures.style import metric_label
from locate.model.bundled import DEFAULT_MODEL
from locate.model.loading import load_model
from locate.plots import plot_trace_heads, save_figure
from locate.sites.site import KINDS, TRACED, Site, check_traced
from locate.store.files import save_json, to_plain
from locate.store.folders import RunFolder
from locate.tracing.average import AverageTrace, average_traces
from locate.tracing.causal import causal_trace
from locate.tracing.trace import Trace, load_trace
from locate.tracing.tracer import ROWS_AT_A_TIME


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
    kinds: Annotated[
        str | None,
        typer.Option(
            help=f"Of {', '.join(TRACED)}; by default resid,mlp,attn, or resid where --severed is given.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Layers in an MLP or attention window; 10 by default.", rich_help_panel=METHOD)
    ] = None,
    metric: MetricOption = None,
    direction: DirectionOption = "restore",
    severed: Annotated[
        Literal["mlp", "attn"] | None,
        typer.Option(
            help="Hold this module's outputs at their corrupted values above a restored state.", rich_help_panel=METHOD
        ),
    ] = None,
    positions: PositionsOption = "all",
    precision: PrecisionOption = "model",
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
    """Trace where the model recalls a fact, or each of many facts and on average.

    One fact gives trace.nc and a figure. Several facts (--facts or --shipped) give traces/NAME.nc each, their
    average by role of the token as tables and figures, and summary.json. A run that was stopped goes on where it
    was when the same command is given again.
    """
    with readable_errors() as console:
        single = (fact, prompt, subject, target, target_new)
        chosen = choose_facts(
            single, file=facts, shipped=shipped, relation=relation, limit=limit, model=model, console=console
        )
        made = make_corruption(
            corruption, usual="gaussian", scale=scale, std=std, samples=samples, seed=seed, swap=swap,
            reference=chosen.reference,
        )  # fmt: skip
        options: dict[str, Any] = {
            "kinds": _kinds(kinds, severed, direction), "window": window, "metric": metric or ["probability"],
            "direction": direction, "severed": severed, "positions": read_positions(positions), "precision": precision,
        }  # fmt: skip
        as_metrics(options["metric"])
        bridge = load_model(model)
        if window is not None:
            check_window(window, bridge.cfg.n_layers)
        made = over_facts(made, std, bridge, chosen.reference)
        how = {**options, "corruption": made, "budget": budget}
        if chosen.name is None:
            _trace_one(bridge, chosen.cases[0], how, out or Path("runs/trace"), as_json, console)
            return
        described = {**options, "corruption": describe(made)}
        description = describe_run("trace", model, bridge, chosen.facts, described)
        size = max(1, ROWS_AT_A_TIME // made.samples)
        with RunFolder.open(out or Path(f"runs/trace-{chosen.name}"), description) as folder:
            work_off(
                folder,
                group_alike(bridge, pending_cases(folder, chosen, retry_failed, console), size),
                lambda facts: causal_trace(bridge, facts, **how, progress=False),
                lambda case, trace: (trace.save(folder.path / "traces" / f"{case.key}.nc"), _found(trace)),
                label="tracing", console=console,
            )  # fmt: skip
            traces = load_results(folder, chosen, load_trace)
            if figures or len(chosen.cases) == 1:
                for key, trace in traces.items():
                    _save_figures(trace, folder.path / "traces", key)
            averages = _average(list(traces.values()), folder.path)
            summary = summarise(folder, chosen, description)
            summary["average"] = {name: _peaks(average) for name, average in averages.items()}
            save_json(folder.path / "summary.json", to_plain(summary))
        if as_json:
            print_json(to_plain(summary))
        else:
            for average in averages.values():
                console.print(_table(average))
            print(folder.path / "summary.json")
        end(summary, console)


def _kinds(text: str | None, severed: str | None, direction: str) -> tuple[str, ...]:
    given = (("resid",) if severed else KINDS) if text is None else read_names(text, "--kinds")
    kinds = tuple(check_traced(kind) for kind in given)
    if severed and (kinds != ("resid",) or direction != "restore"):
        raise DataError("--severed goes with --kinds resid and --direction restore alone.")
    return kinds


def _trace_one(
    bridge: TransformerBridge, case: Case, how: dict[str, Any], out: Path, as_json: bool, console: Console
) -> None:
    trace = causal_trace(bridge, case.fact, **how)
    trace.save(out / "trace.nc")
    _save_figures(trace, out, "trace")
    found = _found(trace)
    if as_json:
        print_json(to_plain(found))
        return
    for measured in (found, *found.get("other_metrics", {}).values()):
        label = metric_label(measured["metric"], trace.info, trace.answer)
        console.print(f"{label} {measured['clean']:.3f}, corrupted {measured['corrupted']:.3f}")
        for kind, site in measured["best"].items():
            head = f", head {site['head']}" if "head" in site else ""
            console.print(f"  {kind:>9}: layer {site['layer']}{head}, token {site['token'].strip()!r}")
    print(out / "trace.nc")


def _found(trace: Trace) -> dict[str, Any]:
    asked = {"prompt": trace.info["prompt"], "answer": trace.answer, "answer_rank": trace.answer_rank}
    others = {name: _measured(trace.of(name)) for name in trace.metrics[1:]}
    return {**asked, **_measured(trace), **({"other_metrics": others} if others else {})}


def _measured(trace: Trace) -> dict[str, Any]:
    return {
        "metric": trace.metric, "clean": trace.clean, "corrupted": trace.corrupted,
        "best": {kind: _place(trace, _best(trace, kind)) for kind in trace.info["kinds"]},
    }  # fmt: skip


def _best(trace: Trace, kind: str) -> Site:
    visited = set(trace.info["positions"]) & set(range(*trace.subject_span))
    return trace.best(kind, within="subject" if visited else "all")


def _place(trace: Trace, site: Site) -> dict[str, Any]:
    head = {} if site.head is None else {"head": site.head}
    return {"layer": site.layer, "position": site.position, "token": trace.tokens[site.position or 0], **head}


def _save_figures(trace: Trace, folder: Path, name: str) -> None:
    if "scores" in trace.data:
        save_figure(trace.plot(), folder, name)
    if "head_scores" in trace.data:
        place = _best(trace, "attn_head").position
        assert place is not None
        save_figure(plot_trace_heads(trace, position=place), folder, f"{name}_heads")


def _average(traces: list[Trace], folder: Path) -> dict[str, AverageTrace]:
    """Averages by metric, written to the folder."""
    if len(traces) < 2:
        return {}
    averages: dict[str, AverageTrace] = {}
    for metric in traces[0].metrics:
        average = averages[metric] = average_traces([trace.of(metric) for trace in traces])
        name = "average" if len(averages) == 1 else f"average_{metric}"
        average.save(folder / f"{name}.nc")
        average.to_dataframe().to_csv(folder / f"{name}.csv", index=False)
        if "effect" in average.data:
            save_figure(average.plot(), folder, name)
            save_figure(average.plot_lines(), folder, f"{name}_lines")
        for role in average.roles if "head_effect" in average.data else ():
            save_figure(average.plot_heads(role=role), folder, f"{name}_heads_{role.replace(' ', '_')}")
    return averages


def _peaks(average: AverageTrace) -> dict[str, Any]:
    """The largest average effect of every kind and role of the token, with its layer and interval."""
    roles, named = average.roles, ("layer", "effect", "low", "high")
    kinds = [str(kind) for kind in average.data["kind"].values] if "effect" in average.data else []
    peaks = {kind: {role: dict(zip(named, average.peak(kind, role), strict=True)) for role in roles} for kind in kinds}
    if "head_effect" in average.data:
        peaks["attn_head"] = {role: average.top_heads(role, 1).to_dict("records")[0] for role in roles}
    return {
        "facts": average.n_facts,
        "total_effect": dict(zip(("mean", "low", "high"), average.total_effect, strict=True)),
        "peaks": peaks,
    }


def _table(average: AverageTrace) -> Table:
    peaks = _peaks(average)
    table = Table(
        "kind", "token", "layer", "effect", "interval",
        title=f"Largest average indirect effects on {average.metric}, {average.n_facts} facts",
    )  # fmt: skip
    for kind, roles in peaks["peaks"].items():
        for role, peak in roles.items():
            interval = f"{peak['low']:.3f} to {peak['high']:.3f}"
            head = f", head {peak['head']}" if "head" in peak else ""
            table.add_row(kind, role, f"{peak['layer']}{head}", f"{peak['effect']:.3f}", interval)
    return table
