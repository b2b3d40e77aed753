"""The options that say which facts a command is about, and the facts that they choose."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import locate
from edit.cli.kit.options import MANY, ONE, FactsOption, LimitOption
from locate.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fact and the name of its results."""

    key: str
    fact: locate.Fact


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The facts that a job is over.

    Attributes:
        cases: the facts.
        reference: where a corruption that needs other facts takes them from.
        name: of the set, where a run over several facts was asked for; None for a single fact.
    """

    cases: tuple[Case, ...]
    reference: tuple[locate.Fact, ...]
    name: str | None

    @property
    def facts(self) -> list[locate.Fact]:
        """The facts alone."""
        return [case.fact for case in self.cases]


@dataclass(frozen=True, kw_only=True)
class OneFact:
    """The options that give a single fact."""

    fact: Annotated[
        str | None,
        typer.Option(
            help="A facts file (its first fact), a JSON object, or the id of a shipped fact.", rich_help_panel=ONE
        ),
    ] = None
    prompt: Annotated[
        str | None, typer.Option(help="Prompt with {} for the subject, or written out.", rich_help_panel=ONE)
    ] = None
    subject: Annotated[str | None, typer.Option(help="The subject.", rich_help_panel=ONE)] = None
    target: Annotated[
        str | None,
        typer.Option(help="The true object; a space comes before it where one belongs.", rich_help_panel=ONE),
    ] = None
    joined: Annotated[
        bool,
        typer.Option("--joined", help="The objects follow the prompt without a space.", rich_help_panel=ONE),
    ] = False

    chat: Annotated[
        bool,
        typer.Option("--chat", help="The prompt is what a user says, in the model's chat.", rich_help_panel=ONE),
    ] = False

    @property
    def given(self) -> bool:
        """Whether any of them is."""
        return any((self.fact, self.prompt, self.subject, self.target, self.joined, self.chat))

    def read(self, target_new: str | None = None, *, usual: locate.Fact | None = None) -> locate.Fact:
        """The fact of ``--fact``, or of ``--prompt``, ``--subject`` and ``--target``; else the usual one.

        Raises:
            DataError: half a fact, two facts, or one that cannot be read.
        """
        spelled = {"--prompt": self.prompt, "--subject": self.subject, "--target": self.target}
        if any(spelled.values()):
            missing = [name for name, value in spelled.items() if not value]
            if missing or self.fact:
                what = f"{' and '.join(missing)} missing" if missing else "--fact given as well"
                raise DataError(f"A fact on the command line needs --prompt, --subject and --target: {what}.")
            prompt, subject, target = map(str, spelled.values())
            if "{}" in prompt:
                fact = locate.Fact(prompt=prompt, subject=subject, target=target, joined=self.joined, chat=self.chat)
            else:
                fact = locate.Fact.from_text(prompt, subject=subject, target=target, joined=self.joined, chat=self.chat)
        elif self.joined or self.chat:
            option = "--joined" if self.joined else "--chat"
            raise DataError(f"{option} goes with --prompt, --subject and --target; a fact in a file says it itself.")
        elif self.fact is None:
            fact = usual or locate.bundled_facts()[0]
        else:
            fact = read_fact(self.fact, "--fact")
        return replace(fact, target_new=target_new) if target_new else fact


@dataclass(frozen=True, kw_only=True)
class Facts(OneFact):
    """The options that give one fact or several, and say what a run over several does with them."""

    target_new: Annotated[
        str | None,
        typer.Option("--target-new", help="Another object, for the logit difference.", rich_help_panel=ONE),
    ] = None
    facts: FactsOption = None
    shipped: Annotated[
        bool,
        typer.Option("--shipped", help="The shipped facts, as far as the model knows them.", rich_help_panel=MANY),
    ] = False
    relation: Annotated[str | None, typer.Option(help="Only facts of this relation.", rich_help_panel=MANY)] = None
    limit: LimitOption = None
    figures: Annotated[
        bool, typer.Option("--figures", help="A figure of every fact; of a single one always.", rich_help_panel=MANY)
    ] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try facts again that failed before.", rich_help_panel=MANY)
    ] = False

    def choose(self, model: str, console: Console) -> Chosen:
        """One fact, those of a file, or those that ship, of which those that the model knows where that is noted.

        Args:
            model: whose knowledge counts.
            console: for a note where it is not known what the model knows.

        Raises:
            DataError: options that exclude each other, a bad record, or nothing left.
        """
        from locate.facts.keys import case_keys

        if self.facts is None and not self.shipped:
            if self.relation is not None or self.limit is not None:
                raise DataError("--relation and --limit choose among several facts: give --facts FILE or --shipped.")
            fact = self.read(self.target_new)
            reference = tuple(locate.bundled_facts())
            return Chosen(cases=(Case(key=case_keys([fact])[0], fact=fact),), reference=reference, name=None)
        if self.facts is not None and self.shipped:
            raise DataError("--facts and --shipped exclude each other; give one of them.")
        if self.given or self.target_new:
            raise DataError(
                "A single fact and several exclude each other: leave out --facts and --shipped, or the fact."
            )
        name = "shipped" if self.facts is None else self.facts.stem
        everything = locate.bundled_facts() if self.facts is None else locate.load_facts(self.facts)
        cases = [Case(key=key, fact=fact) for key, fact in zip(case_keys(everything), everything, strict=True)]
        if self.relation is not None:
            if self.relation not in (relations := {fact.relation for fact in everything}):
                known = ", ".join(sorted(relation for relation in relations if relation)) or "none"
                raise DataError(f"--relation: no fact has the relation {self.relation!r}. Known: {known}.")
            cases = [case for case in cases if case.fact.relation == self.relation]
            name = f"{name}-{self.relation}"
        if self.shipped:
            cases = self._known(cases, everything, model, console)
        return Chosen(cases=tuple(cases[: self.limit]), reference=tuple(everything), name=name)

    def _known(self, cases: list[Case], everything: list[locate.Fact], model: str, console: Console) -> list[Case]:
        """The cases that the model knows; all where that is not noted."""
        if not any(model in fact.ranks for fact in everything):
            console.print(f"Note: which shipped facts {model!r} knows is not noted, so all are taken.", style="yellow")
            return cases
        if not (known := [case for case in cases if case.fact.ranks.get(model) == 1]):
            raise DataError(f"--relation: {model!r} knows no shipped fact of the relation {self.relation!r}.")
        return known


def read_fact(source: str, option: str) -> locate.Fact:
    """A fact from a file (its first), a JSON object, or the id of a shipped one.

    Raises:
        DataError: it is none of these; the message names the option.
    """
    from locate.facts.files import parse_fact

    if source.lstrip().startswith("{"):
        try:
            return parse_fact(json.loads(source), option)
        except json.JSONDecodeError as error:
            raise DataError(f"{option}: not readable as JSON: {error}") from error
    if Path(source).suffix or "/" in source:
        return locate.load_facts(source)[0]
    for one in locate.bundled_facts():
        if one.id == source:
            return one
    raise DataError(f"{option}: there is no file and no shipped fact {source!r}. Shipped ids are in data/facts.json.")
