"""``locate-edit neurons``: which MLP neurons a fact's answer depends on, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
from rich.table import Table

import locate
from edit.cli.kit.command import command
from edit.cli.kit.facts import Facts
from edit.cli.kit.jobs import Job, Together
from edit.cli.kit.models import load_model
from edit.cli.kit.options import METHOD, Place
from edit.cli.kit.output import Outcome
from edit.cli.kit.speaking import Voice
from edit.cli.kit.tables import between, shown
from locate.errors import DataError, SiteError, counted

Method = Literal["integrated", "gradient", "relp", "gain"]
_SETS, _TEST = "Sets", "Test"
_FIRST_ORDER = {"gradient": "gradient_x_activation", "relp": "relp"}
# Facts from which a single fact's unrelated prompts are drawn.
_UNRELATED = 3


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """The options that say which neurons are a fact's."""

    threshold: Annotated[
        float, typer.Option(help="Share of a prompt's largest score that a neuron must exceed.", rich_help_panel=_SETS)
    ] = 0.2
    share: Annotated[
        float, typer.Option(help="Of the prompts for which it must.", min=0, max=1, rich_help_panel=_SETS)
    ] = 0.5
    negatives: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Leave out neurons that N other facts of the same relation have too.",
            min=0,
            rich_help_panel=_SETS,
        ),
    ] = 0
    top: Annotated[
        int, typer.Option(help="Neurons that are listed, and those of a gain's set.", min=1, rich_help_panel=_SETS)
    ] = 10


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """The options of the test."""

    verify: Annotated[
        bool,
        typer.Option("--verify", help="Suppress and amplify the sets, beside random ones.", rich_help_panel=_TEST),
    ] = False
    random: Annotated[int, typer.Option(help="Random sets of each fact.", min=0, rich_help_panel=_TEST)] = 10
    seed: Annotated[int, typer.Option(help="Of random sets and of unrelated prompts.", rich_help_panel=_TEST)] = 0


@command
def run(
    which: Facts,
    method: Annotated[
        Method,
        typer.Option(
            metavar="NAME",
            help="integrated (gradients), gradient (× activation), relp, or gain (of log-probability).",
            rich_help_panel=METHOD,
        ),
    ] = "integrated",
    rule: Annotated[
        Literal["adaptive", "right"], typer.Option(help="Of the integral.", rich_help_panel=METHOD)
    ] = "adaptive",
    steps: Annotated[int | None, typer.Option(help="Of the integral, a layer.", min=1, rich_help_panel=METHOD)] = None,
    *,
    sets: SetOptions,
    test: TestOptions,
    place: Place,
    console: Voice,
) -> Outcome:
    """Find the MLP neurons that a fact's answer depends on, for one fact or for each of many.

    One fact gives neurons.nc and a figure. Several facts (--facts or --shipped) give neurons/NAME.nc each, the overlap
    of their neurons as a table and a figure, and summary.json; with --verify also effects.nc, with tables and figures.
    A run that was stopped goes on where it was when the same command is given again.
    """
    integral = {"rule": rule, "steps": steps} if method == "integrated" else {}
    if method != "integrated" and (steps is not None or rule != "adaptive" or sets.negatives):
        raise DataError("--rule, --steps and --negatives are of integrated gradients; leave them out, or --method.")
    chosen = which.choose(place.model, console)

    from locate.neurons.scores import check_threshold

    check_threshold(sets.threshold)
    described = {
        "method": method, **integral, "threshold": sets.threshold, "negatives": sets.negatives, "seed": test.seed,
    }  # fmt: skip
    job = _Neurons(
        model=load_model(place.model, console), described=described, console=console, method=method, integral=integral,
        sets=sets, test=test, budget=place.budget, facts={fact.text: fact for fact in chosen.facts},
        reference=chosen.reference,
    )  # fmt: skip
    return job.run(chosen, which, model=place.model, out=place.out)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Neurons(Job):
    name: ClassVar[str] = "neurons"
    file: ClassVar[str] = "neurons"
    folder: ClassVar[str] = "neurons"

    method: str
    integral: dict[str, Any]
    sets: SetOptions
    test: TestOptions
    budget: int
    facts: dict[str, locate.Fact]
    reference: Sequence[locate.Fact] = field(default=())

    @property
    def label(self) -> str:
        return "attributing"

    def depends(self, fact: locate.Fact) -> Any:
        from locate.store.hashes import fingerprint

        return fingerprint(self._negatives(fact)) if self.sets.negatives else None

    def compute(self, facts: list[locate.Fact], *, progress: bool) -> Sequence[locate.NeuronScores]:
        return [self._attributed(fact, {"budget": self.budget, "progress": progress}) for fact in facts]

    def load(self, path: Path) -> locate.NeuronScores:
        return locate.load_logprob_gain(path) if self.method == "gain" else locate.load_neurons(path)

    def found(self, result: locate.NeuronScores) -> dict[str, Any]:
        scores, asked = result.scores.isel(fact=0), result.info
        best = [
            {"layer": site.layer, "neuron": site.neuron,
             "score": float(scores.sel(layer=site.layer)[site.neuron])} for site in result.top(self.sets.top)
        ]  # fmt: skip
        found = {
            "prompt": asked["prompts"][0][0], "prompts": len(asked["prompts"][0]), "method": asked["method"],
            "measure": asked["measure"], "answer_tokens": asked["answer_tokens"][0], "top": best,
        }  # fmt: skip
        if "kept" in result.data:
            found["refined"] = [[site.layer, site.neuron] for site in result.refined(share=self.sets.share, least=0)]
        if "missed" in asked:
            found["missed"] = max(asked["missed"][0])
        if isinstance(result, locate.LogprobGain):
            found["heads"] = result.top_heads(self.sets.top).to_dict("records")
        return found

    def lines(self, result: locate.NeuronScores, found: dict[str, Any]) -> Iterator[str]:
        yield f"answer: {'|'.join(found['answer_tokens'] or [])!r}; {found['method']} on {found['measure']}"
        for one in found["top"]:
            yield f"  layer {one['layer']:>3}, neuron {one['neuron']:>6}: {one['score']:+.4f}"
        if "refined" in found:
            of = f"more than {self.sets.share:.0%} of {counted(found['prompts'], 'prompt')}"
            yield f"refined set: {counted(len(found['refined']), 'neuron')} above the threshold for {of}"
        for one in found.get("heads", [])[:3]:
            yield f"  head {one['layer']}.{one['head']} from {one['token'].strip()!r}: {one['score']:+.4f}"

    def draw(self, result: locate.NeuronScores, folder: Path, name: str) -> None:
        from locate.plots import save_figure

        save_figure(result.plot(share=self.sets.share), folder, name)
        if isinstance(result, locate.LogprobGain):
            save_figure(result.plot_heads(), folder, f"{name}_heads")

    def together(self, results: list[locate.NeuronScores], folder: Path) -> Together:
        summary: dict[str, Any] = {}
        tables: list[Table] = []
        if len(results) > 1:
            summary["overlap"] = self._overlap(results, folder)
        if self.test.verify and results:
            effects = self._verified(results)
            summary["effects"] = _written(effects, folder)
            tables.append(_table(summary["effects"]))
        return Together(summary=summary, shown=tables)

    def run(self, chosen: Any, options: Facts, *, model: str, out: Path | None) -> Outcome:
        outcome = super().run(chosen, options, model=model, out=out)
        if chosen.name is not None or not self.test.verify:
            return outcome
        folder = Path(outcome.results[0]).parent  # type: ignore[arg-type]
        told = _written(self._verified([self.load(folder / "neurons.nc")]), folder)
        return Outcome(
            value={**outcome.value, "effects": told}, shown=[*outcome.shown, _table(told)],
            results=[*outcome.results, folder / "effects.nc"],
        )  # fmt: skip

    def _attributed(self, fact: locate.Fact, options: dict[str, Any]) -> locate.NeuronScores:
        if self.method == "gain":
            return locate.neuron_logprob_gain(self.model, fact, screen=max(100, self.sets.top), **options)
        options["threshold"] = self.sets.threshold
        if self.method in _FIRST_ORDER:
            return locate.neuron_attribution(self.model, fact, method=_FIRST_ORDER[self.method], **options)
        if self.sets.negatives:
            options["negatives"] = self._negatives(fact)
        return locate.knowledge_neurons(self.model, fact, **self.integral, **options)

    def _negatives(self, fact: locate.Fact) -> list[locate.Fact]:
        """Other facts of its relation, with other answers."""
        others = [one for one in self.reference if one.relation == fact.relation and one.target != fact.target]
        return others[: self.sets.negatives]

    def _overlap(self, results: list[locate.NeuronScores], folder: Path) -> dict[str, Any]:
        """How far the facts have the same neurons."""
        import xarray as xr

        from locate.plots import save_figure

        scores = xr.concat([one.data[["scores"]] for one in results], dim="fact")
        overlap = locate.neuron_overlap(locate.NeuronScores(data=scores, info=results[0].info), k=self.sets.top)
        overlap.save(folder / "overlap.nc")
        overlap.to_dataframe().to_csv(folder / "overlap.csv", index=False)
        save_figure(overlap.plot(), folder, "overlap")
        relations = [self.facts[str(one.data["fact"].values[0])].relation or "" for one in results]
        told = overlap.within(relations).dropna().to_dict("records")
        return {"neurons": self.sets.top, "chance": overlap.info["chance"][str(self.sets.top)], "by_relation": told}

    def _verified(self, results: list[locate.NeuronScores]) -> locate.NeuronEffects:
        facts, sets, empty = [], [], 0
        for one in results:
            fact = self.facts[str(one.data["fact"].values[0])]
            own = one.refined(share=self.sets.share, least=0) if "kept" in one.data else one.top(self.sets.top)
            if own:
                facts.append(fact)
                sets.append(own)
            else:
                empty += 1
        if not sets:
            raise SiteError("--verify: no fact has refined neurons. Lower --threshold or --share.")
        if empty:
            note = f"Note: {counted(empty, 'fact')} without refined neurons, left out of the test."
            self.console.print(note, style="yellow")
        unrelated: Any = _UNRELATED
        if len(facts) == 1:
            fact = facts[0]
            others = [one for one in self.reference if one.relation != fact.relation and one.target != fact.target]
            unrelated = others[:: max(1, len(others) // _UNRELATED)][:_UNRELATED]
        return locate.verify_neurons(
            self.model, facts, sets, random=self.test.random, unrelated=unrelated, seed=self.test.seed,
            budget=self.budget,
        )  # fmt: skip


def _written(effects: locate.NeuronEffects, folder: Path) -> list[dict[str, Any]]:
    from locate.plots import save_figure

    effects.save(folder / "effects.nc")
    effects.to_dataframe().to_csv(folder / "effects.csv", index=False)
    save_figure(effects.plot(), folder, "effects")
    return effects.summary().to_dict("records")


def _table(told: list[dict[str, Any]]) -> Table:
    table = Table("factor", "prompts", "facts", "own set", "random sets", "difference", "p", title="Change of log p")
    for row in told:
        ends = f"{row['difference']:+.3f} ({between(row['difference_low'], row['difference_high'], '+.3f')})"
        table.add_row(
            f"×{row['factor']:g}", row["on"], str(row["facts"]), f"{row['effect']:+.3f}", f"{row['random']:+.3f}", ends,
            shown(row["wilcoxon"], ".2g"),
        )  # fmt: skip
    return table
