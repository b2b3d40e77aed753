"""``locate-edit circuit``: find what of a model carries an answer, and test it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.table import Table

import locate
from edit.cli.kit.command import command
from edit.cli.kit.models import load_model
from edit.cli.kit.options import METHOD, RUN, BudgetOption, ModelOption, read_amount
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import between, shown
from locate.errors import DataError, counted
from locate.names import DEFAULT_BUDGET, DEFAULT_MODEL

Task = Literal["ioi", "greater-than", "gender-pronoun", "subject-verb-agreement", "factual-recall"]
# What can be asked of any facts.
_OF_FACTS = "factual-recall"
# The panels of --help.
_PAIRS, _TEST = "Pairs of prompts", "Test"
# Edges, where no number was asked for; and the most that a figure shows.
_USUAL, _DRAWN = 200, 300
_TOP = 10


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """The options that say on which pairs of prompts a circuit is found, and on which it is tested."""

    task: Annotated[
        Task | None,
        typer.Option(metavar="NAME", help=f"{', '.join(get_args(Task))}; by default ioi.", rich_help_panel=_PAIRS),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="A JSON file of pairs, as PairedPrompts.save writes it.", rich_help_panel=_PAIRS),
    ] = None
    facts: Annotated[
        Path | None,
        typer.Option(help="Of factual recall: a facts file (JSON, JSONL or CSV).", rich_help_panel=_PAIRS),
    ] = None
    known: Annotated[
        bool,
        typer.Option(help="Of factual recall: only facts whose answers the model ranks first.", rich_help_panel=_PAIRS),
    ] = True
    pairs: Annotated[
        int | None,
        typer.Option(help="How many; by default 30, or all of a file.", min=1, rich_help_panel=_PAIRS),
    ] = None
    held_out: Annotated[
        int, typer.Option(help="So many pairs more, to test the circuit on.", min=0, rich_help_panel=_PAIRS)
    ] = 0
    seed: Annotated[int, typer.Option(help="Of pairs and of random circuits.", rich_help_panel=_PAIRS)] = 0

    def check(self) -> None:
        """Whether they go together.

        Raises:
            DataError: they do not.
        """
        if self.prompts is not None and (self.task is not None or self.facts is not None):
            raise DataError("--prompts brings its own pairs; leave out --task and --facts.")
        recalled = self.task == _OF_FACTS or (self.task is None and self.facts is not None)
        if not recalled and (self.facts is not None or not self.known):
            raise DataError(f"--facts and --no-known go with --task {_OF_FACTS}.")

    def make(self, model: Any) -> tuple[locate.tasks.PairedPrompts, locate.tasks.PairedPrompts]:
        """The pairs to find a circuit on, and those to test it on: the same ones where none are held out.

        Raises:
            DataError: a file that cannot be read, or has fewer pairs.
            FactError: there are not as many.
        """
        if self.prompts is not None:
            every = locate.tasks.PairedPrompts.load(self.prompts)
            n = len(every) - self.held_out if self.pairs is None else self.pairs
            if not 1 <= n <= len(every) - self.held_out:
                raise DataError(
                    f"{self.prompts} has {counted(len(every), 'pair')}, and --pairs {self.pairs or 1} and --held-out "
                    f"{self.held_out} were asked for. Ask for fewer."
                )
        else:
            n = self.pairs or 30
            every = self._ask(model, n + self.held_out)
        found_on, rest = every[:n], slice(n, n + self.held_out)
        return found_on, every[rest] if self.held_out else found_on

    def _ask(self, model: Any, n: int) -> locate.tasks.PairedPrompts:
        task = self.task or ("ioi" if self.facts is None else _OF_FACTS)
        if task == _OF_FACTS:
            facts = None if self.facts is None else locate.load_facts(self.facts)
            return locate.tasks.factual_recall(model, n, facts=facts, known=self.known, seed=self.seed)
        return getattr(locate.tasks, task.replace("-", "_"))(model, n, seed=self.seed)


@command
def run(
    asked: PairOptions,
    method: Annotated[
        str,
        typer.Option(
            help="eap, eap-relp, eap-ig-inputs (or eap-ig), eap-relp-ig, eap-ig-activations, clean-corrupted, exact.",
            rich_help_panel=METHOD,
        ),
    ] = "eap-ig-inputs",
    steps: Annotated[int, typer.Option(help="Of integration.", min=1, rich_help_panel=METHOD)] = 5,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="By default the task's own, or logit_diff.", rich_help_panel=METHOD),
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(
            metavar="K",
            help=f"Keep this many edges (or, below 1, this share); by default {_USUAL}.",
            min=0,
            rich_help_panel=METHOD,
        ),
    ] = None,
    how: Annotated[
        Literal["greedy", "threshold"],
        typer.Option(help="Grow from the logits, or take the largest scores.", rich_help_panel=METHOD),
    ] = "greedy",
    faithfulness: Annotated[
        bool,
        typer.Option("--faithfulness", help="Run the best edges alone, at several sizes.", rich_help_panel=_TEST),
    ] = False,
    random: Annotated[
        int, typer.Option(metavar="N", help="Beside N circuits of random edges.", min=0, rich_help_panel=_TEST)
    ] = 0,
    ablation: Annotated[
        Literal["corrupt", "mean", "zero"], typer.Option(help="What all other edges bring.", rich_help_panel=_TEST)
    ] = "corrupt",
    model: ModelOption = DEFAULT_MODEL,
    budget: BudgetOption = DEFAULT_BUDGET,
    out: Annotated[Path, typer.Option(help="Folder for the results.", rich_help_panel=RUN)] = Path("runs/circuit"),
    *,
    console: Voice,
) -> Outcome:
    """Find the circuit that carries an answer: score every edge between heads and MLPs, and keep the best.

    The folder gets circuit.safetensors (all scores), circuit.json (the edges that are kept), edges.csv and a figure;
    with --faithfulness also faithfulness.nc, a table and a figure of what circuits of several sizes carry.
    """
    asked.check()
    if not faithfulness and (random or ablation != "corrupt" or asked.held_out):
        raise DataError("--random, --ablation and --held-out are of the test; give --faithfulness.")
    amount = None if top is None else read_amount(top, "--top", "edges")

    from locate.circuits.scoring import edge_method
    from locate.contrast.measures import as_metrics

    edge_method(method)
    if metric is not None:
        as_metrics(metric)
    bridge = load_model(model, console)
    pairs, tested = asked.make(bridge)
    options: dict[str, Any] = {"metric": metric, "budget": budget}
    whole = locate.find_circuit(bridge, pairs, method=method, steps=steps, **options)
    kept = whole.top(min(_USUAL, whole.n_edges) if amount is None else amount, how)
    if not kept.n_edges:
        raise DataError(f"--top: {top:g} of {whole.n_edges} edges is none. Keep more.")
    files = _write(whole, kept, how, out)
    curve = None
    if faithfulness:
        from locate.circuits.faithfulness import counts

        if ablation == "mean":
            tested = _of_one_length(tested, bridge, console)
        sizes = sorted({*counts(None, whole.n_possible, whole.n_edges), kept.n_edges})
        curve = whole.faithfulness(
            bridge, tested, sizes=sizes, how=how, ablation=ablation, random=random, seed=asked.seed, **options
        )
        files += _write_test(curve, out)
    found = {
        **_found(kept, pairs.name), "tested_on": len(tested) if curve is not None else None,
        "faithfulness": None if curve is None else _tested(curve), "files": list(map(str, files)),
    }  # fmt: skip
    tables = [_edges_table(found), *([] if curve is None else [_sizes_table(found)])]
    return Outcome(value=found, shown=[*_lines(found), *tables], results=files)


def _of_one_length(pairs: Any, model: Any, console: Voice) -> Any:
    """The pairs of the most common length, over which there is a mean."""
    largest = max((group.pairs for group in pairs.by_length(model)), key=len)
    if len(largest) < len(pairs):
        tested = f"{len(largest)} of {counted(len(pairs), 'pair')}"
        console.print(f"The mean is over prompts of one length: tested on {tested}.")
    return largest


def _write(whole: locate.Circuit, kept: locate.Circuit, how: Any, out: Path) -> list[Path]:
    from locate.plots import save_figure

    files = [whole.save(out / "circuit.safetensors"), kept.save(out / "circuit.json")]
    table = kept.to_dataframe().query("kept").drop(columns="kept")
    table = table.sort_values("score", key=abs, ascending=False, kind="stable")
    table.to_csv(out / "edges.csv", index=False)
    files.append(out / "edges.csv")
    return [*files, *save_figure(kept.top(min(_DRAWN, kept.n_edges), how).plot(), out, "circuit")]


def _write_test(curve: locate.Faithfulness, out: Path) -> list[Path]:
    from locate.plots import save_figure

    files = [curve.save(out / "faithfulness.nc"), out / "faithfulness.csv"]
    curve.to_dataframe().to_csv(files[1], index=False)
    return [*files, *save_figure(curve.plot(), out, "faithfulness")]


def _found(kept: locate.Circuit, task: str) -> dict[str, Any]:
    table = kept.to_dataframe().set_index(["writer", "reader"])["standard_error"]
    best = [
        {"writer": writer, "reader": reader, "score": score, "standard_error": table[writer, reader]}
        for writer, reader, score in kept.edges[:_TOP]
    ]
    told = ("model", "method", "metric", "pairs", "clean", "corrupted")
    return {
        "task": task, **{name: kept.info[name] for name in told}, "edges": kept.n_edges, "of": kept.n_possible,
        "on_a_path": kept.prune().n_edges, "nodes": len(kept.nodes), "top": best,
    }  # fmt: skip


def _tested(curve: locate.Faithfulness) -> dict[str, Any]:
    low, high = curve.cmd_interval()
    by_chance = {"random_cmd": float(curve.random_cmd.mean())} if "random" in curve.data else {}
    sizes = curve.to_dataframe().to_dict(orient="records")
    return {"sizes": sizes, "cmd": curve.cmd, "cmd_low": low, "cmd_high": high, "cpr": curve.cpr, **by_chance}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    ends = f"{found['clean']:.3f}, corrupted {found['corrupted']:.3f}"
    yield f"{found['task']}, {counted(found['pairs'], 'pair')}: {found['metric']} {ends}"
    yield (
        f"{found['edges']} of {found['of']} edges between {found['nodes']} components are kept, {found['on_a_path']} "
        "of them on a path from the embedding to the logits"
    )
    if (tested := found["faithfulness"]) is not None:
        beside = f"; of random circuits {tested['random_cmd']:.3f}" if "random_cmd" in tested else ""
        yield (
            f"tested on {counted(found['tested_on'], 'pair')}: CMD {tested['cmd']:.3f} "
            f"({between(tested['cmd_low'], tested['cmd_high'])}), CPR {tested['cpr']:.3f}{beside}"
        )


def _edges_table(found: dict[str, Any]) -> Table:
    # A divergence rises where the answer is lost.
    side = "below" if found["clean"] > found["corrupted"] else "above"
    table = Table("from", "to", "score", "standard error", title=f"Largest scores; {side} 0 works for the answer")
    for edge in found["top"]:
        table.add_row(edge["writer"], edge["reader"], f"{edge['score']:.4f}", shown(edge["standard_error"], ".4f"))
    return table


def _sizes_table(found: dict[str, Any]) -> Table:
    sizes = found["faithfulness"]["sizes"]
    by_chance = "random" in sizes[0]
    table = Table("edges", "share", "faithfulness", "interval", *(["random"] if by_chance else []))
    for row in sizes:
        cells = [str(row["size"]), f"{row['size'] / found['of']:.2%}", f"{row['faithfulness']:.3f}"]
        cells.append(between(row["low"], row["high"]))
        table.add_row(*cells, *([f"{row['random']:.3f}"] if by_chance else []))
    return table
