"""``locate-edit trace``: causal traces of one fact or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
from rich.table import Table

import locate
from edit.cli.kit.command import command
from edit.cli.kit.corruptions import CorruptionOptions
from edit.cli.kit.facts import Facts
from edit.cli.kit.jobs import Job, Together
from edit.cli.kit.models import load_model
from edit.cli.kit.options import (
    METHOD,
    DirectionOption,
    MetricOption,
    Place,
    PositionsOption,
    PrecisionOption,
    read_names,
    read_positions,
)
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import between
from locate.errors import DataError, counted
from locate.sites.site import KINDS, TRACED, check_traced


@command
def run(
    which: Facts,
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
    *,
    corrupted: CorruptionOptions,
    place: Place,
    console: Voice,
) -> Outcome:
    """Trace where the model recalls a fact, or each of many facts and on average.

    One fact gives trace.nc and a figure. Several facts (--facts or --shipped) give traces/NAME.nc each, their
    average by role of the token as tables and figures, and summary.json. A run that was stopped goes on where it
    was when the same command is given again.
    """
    chosen = which.choose(place.model, console)

    from locate.contrast.measures import as_metrics
    from locate.contrast.sweep import check_window

    corruption = corrupted.make("gaussian", chosen.reference)
    options: dict[str, Any] = {
        "kinds": _kinds(kinds, severed, direction), "window": window, "metric": metric or ["probability"],
        "direction": direction, "severed": severed, "positions": read_positions(positions), "precision": precision,
    }  # fmt: skip
    as_metrics(options["metric"])
    model = load_model(place.model, console)
    if window is not None:
        check_window(window, model.cfg.n_layers)
    corruption = corrupted.over_facts(corruption, model, chosen.reference)
    job = _Traces(
        model=model, described={**options, "corruption": corrupted.described(corruption)}, console=console,
        corrupted=corrupted, how={**options, "corruption": corruption, "budget": place.budget},
    )  # fmt: skip
    return job.run(chosen, which, model=place.model, out=place.out)


def _kinds(text: str | None, severed: str | None, direction: str) -> tuple[str, ...]:
    given = (("resid",) if severed else KINDS) if text is None else read_names(text, "--kinds")
    kinds = tuple(check_traced(kind) for kind in given)
    if severed and (kinds != ("resid",) or direction != "restore"):
        raise DataError("--severed goes with --kinds resid and --direction restore alone.")
    return kinds


@dataclass(frozen=True, kw_only=True, eq=False)
class _Traces(Job):
    name: ClassVar[str] = "trace"
    file: ClassVar[str] = "trace"
    folder: ClassVar[str] = "traces"

    how: dict[str, Any]
    corrupted: CorruptionOptions

    @property
    def label(self) -> str:
        return "tracing"

    def groups(self, facts: list[locate.Fact]) -> list[list[int]]:
        from locate.tracing.batches import group_facts

        return group_facts(self.model, facts, self.how["corruption"].samples)

    def depends(self, fact: locate.Fact) -> Any:
        return self.corrupted.drawn(self.how["corruption"], self.model, fact)

    def compute(self, facts: list[locate.Fact], *, progress: bool) -> Sequence[locate.Trace]:
        return locate.causal_trace(self.model, facts, **self.how, progress=progress)

    def load(self, path: Path) -> locate.Trace:
        return locate.load_trace(path)

    def found(self, result: locate.Trace) -> dict[str, Any]:
        asked = {"prompt": result.info["prompt"], "answer": result.answer, "answer_rank": result.answer_rank,
                 "answer_tokens": result.info["answer_tokens"]}  # fmt: skip
        others = {name: _measured(result.of(name)) for name in result.metrics[1:]}
        return {**asked, **_measured(result), **({"other_metrics": others} if others else {})}

    def lines(self, result: locate.Trace, found: dict[str, Any]) -> Iterator[str]:
        from locate.figures.style import metric_label

        yield f"answer: {'|'.join(found['answer_tokens'] or [])!r}"
        for measured in (found, *found.get("other_metrics", {}).values()):
            label = metric_label(measured["metric"], result.info, result.answer)
            yield f"{label} {measured['clean']:.3f}, corrupted {measured['corrupted']:.3f}"
            for kind, site in measured["best"].items():
                head = f", head {site['head']}" if "head" in site else ""
                yield f"  {kind:>9}: layer {site['layer']}{head}, token {site['token'].strip()!r}"

    def draw(self, result: locate.Trace, folder: Path, name: str) -> None:
        from locate.plots import plot_trace_heads, save_figure

        if "scores" in result.data:
            save_figure(result.plot(), folder, name)
        if "head_scores" in result.data:
            place = _best(result, "attn_head").position
            assert place is not None
            save_figure(plot_trace_heads(result, position=place), folder, f"{name}_heads")

    def together(self, results: list[locate.Trace], folder: Path) -> Together:
        averages: dict[str, locate.AverageTrace] = {}
        for metric in results[0].metrics if len(results) > 1 else ():
            averages[metric] = locate.average_traces([trace.of(metric) for trace in results])
            _save(averages[metric], folder, "average" if len(averages) == 1 else f"average_{metric}")
        peaks = {name: _peaks(average) for name, average in averages.items()}
        tables = [_table(average, peaks[name]) for name, average in averages.items()]
        return Together(summary={"average": peaks}, shown=tables)


def _measured(trace: locate.Trace) -> dict[str, Any]:
    return {
        "metric": trace.metric, "clean": trace.clean, "corrupted": trace.corrupted,
        "best": {kind: _place(trace, _best(trace, kind)) for kind in trace.info["kinds"]},
    }  # fmt: skip


def _best(trace: locate.Trace, kind: str) -> locate.Site:
    visited = set(trace.info["positions"]) & set(range(*trace.subject_span))
    return trace.best(kind, within="subject" if visited else "all")


def _place(trace: locate.Trace, site: locate.Site) -> dict[str, Any]:
    head = {} if site.head is None else {"head": site.head}
    return {"layer": site.layer, "position": site.position, "token": trace.tokens[site.position or 0], **head}


def _save(average: locate.AverageTrace, folder: Path, name: str) -> None:
    from locate.plots import save_figure

    average.save(folder / f"{name}.nc")
    average.to_dataframe().to_csv(folder / f"{name}.csv", index=False)
    if "effect" in average.data:
        save_figure(average.plot(), folder, name)
        save_figure(average.plot_lines(), folder, f"{name}_lines")
    for role in average.roles if "head_effect" in average.data else ():
        save_figure(average.plot_heads(role=role), folder, f"{name}_heads_{role.replace(' ', '_')}")


def _peaks(average: locate.AverageTrace) -> dict[str, Any]:
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


def _table(average: locate.AverageTrace, peaks: dict[str, Any]) -> Table:
    table = Table(
        "kind", "token", "layer", "effect", "interval",
        title=f"Largest average indirect effects on {average.metric}, {counted(average.n_facts, 'fact')}",
    )  # fmt: skip
    for kind, roles in peaks["peaks"].items():
        for role, peak in roles.items():
            interval = between(peak["low"], peak["high"])
            head = f", head {peak['head']}" if "head" in peak else ""
            table.add_row(kind, role, f"{peak['layer']}{head}", f"{peak['effect']:.3f}", interval)
    return table
