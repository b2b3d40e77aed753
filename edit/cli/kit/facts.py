"""The options that say which facts a command is about, and the facts that they choose."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

import locate
from edit.cli.kit.options import MANY, ONE, FactsOption, LimitOption
from edit.cli.kit.speaking import Voice
from locate.errors import DataError, counted, listed


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
        bad: what is wrong with records of the file that are no facts, each with its place.
    """

    cases: tuple[Case, ...]
    reference: tuple[locate.Fact, ...]
    name: str | None
    bad: tuple[str, ...] = ()

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

    def read(
        self, target_new: str | None = None, *, usual: locate.Fact | None = None, against: str | None = None
    ) -> locate.Fact:
        """The fact of ``--fact``, or of ``--prompt``, ``--subject`` and ``--target``; else the usual one.

        Args:
            target_new: another object.
            usual: where nothing is given.
            against: another prompt; the subject is what only this one has, where it is not given.

        Raises:
            DataError: half a fact, two facts, or one that cannot be read.
        """
        spelled = {"--prompt": self.prompt, "--subject": self.subject, "--target": self.target}
        if any(spelled.values()):
            if against is not None and self.prompt and not self.subject and "{}" not in self.prompt:
                spelled["--subject"] = _difference(self.prompt, against)
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

    def choose(self, model: str, console: Voice, *, against: str | None = None) -> Chosen:
        """One fact, those of a file, or those that ship, of which those that the model knows where that is noted.

        Args:
            model: whose knowledge counts.
            console: for a note where it is not known what the model knows.
            against: another prompt; see ``read``.

        Raises:
            DataError: options that exclude each other, a bad record, or nothing left.
        """
        from locate.facts.keys import case_keys

        if self.facts is None and not self.shipped:
            if self.relation is not None or self.limit is not None:
                raise DataError("--relation and --limit choose among several facts: give --facts FILE or --shipped.")
            fact = self.read(self.target_new, against=against)
            reference = tuple(locate.bundled_facts())
            return Chosen(cases=(Case(key=case_keys([fact])[0], fact=fact),), reference=reference, name=None)
        if self.facts is not None and self.shipped:
            raise DataError("--facts and --shipped exclude each other; give one of them.")
        if self.given or self.target_new:
            raise DataError(
                "A single fact and several exclude each other: leave out --facts and --shipped, or the fact."
            )
        name = "shipped" if self.facts is None else self.facts.stem
        everything, bad = (locate.bundled_facts(), ()) if self.facts is None else good_facts(self.facts, console)
        cases = [Case(key=key, fact=fact) for key, fact in zip(case_keys(everything), everything, strict=True)]
        if self.relation is not None:
            if self.relation not in (relations := {fact.relation for fact in everything}):
                known = ", ".join(sorted(relation for relation in relations if relation)) or "none"
                raise DataError(f"--relation: no fact has the relation {self.relation!r}. Known: {known}.")
            cases = [case for case in cases if case.fact.relation == self.relation]
            name = f"{name}-{self.relation}"
        if self.shipped:
            cases = self._known(cases, everything, model, console)
        return Chosen(cases=tuple(cases[: self.limit]), reference=tuple(everything), name=name, bad=bad)

    def _known(self, cases: list[Case], everything: list[locate.Fact], model: str, console: Voice) -> list[Case]:
        """The cases that the model knows; all where that is not noted."""
        if not any(model in fact.ranks for fact in everything):
            console.print(f"Note: which shipped facts {model!r} knows is not noted, so all are taken.", style="yellow")
            return cases
        if not (known := [case for case in cases if case.fact.ranks.get(model) == 1]):
            raise DataError(f"--relation: {model!r} knows no shipped fact of the relation {self.relation!r}.")
        return known


def _difference(prompt: str, other: str) -> str:
    """The words of a prompt between those that it begins and ends with as another one does.

    Raises:
        DataError: there are none.
    """
    own, others = prompt.split(), other.split()
    start = _shared(own, others)
    end = len(own) - _shared(own[start:][::-1], others[start:][::-1])
    if start == end:
        raise DataError(
            f"--corrupt: {other!r} has all words of {prompt!r}, so that these show no subject. Give --subject, or "
            "another prompt."
        )
    words = list(re.finditer(r"\S+", prompt))[start:end]
    return prompt[words[0].start() : words[-1].end()]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words two lists begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def good_facts(path: Path, console: Voice) -> tuple[list[locate.Fact], tuple[str, ...]]:
    """The facts of a file, and what is wrong with its other records, which is said at once.

    Raises:
        DataError: it cannot be read, or no record is a fact.
    """
    from locate.facts.files import read_facts

    facts, bad = read_facts(path)
    if bad:
        console.print(
            f"Note: {path}: {counted(len(bad), 'record')} of {len(facts) + len(bad)} left out:\n{listed(bad, 10)}",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    return facts, tuple(bad)


def mend(bad: Sequence[str]) -> str | None:
    """What to do about bad records, at the end of a run without them."""
    if not bad:
        return None
    what = "it" if len(bad) == 1 else "them"
    return (
        f"Left out: {counted(len(bad), 'bad record')} of the file. Mend {what} there, and the same command goes on "
        f"with what is new.\n{listed(bad)}"
    )


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
