"""Which facts a command is about."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from locate.errors import DataError
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts, load_facts, parse_fact
from locate.facts.keys import case_keys


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fact and the name of its results."""

    key: str
    fact: Fact


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The facts that a job is over.

    Attributes:
        cases: the facts.
        reference: where a corruption that needs other facts takes them from.
        name: of the set, where a run over several facts was asked for; None for a single fact.
    """

    cases: tuple[Case, ...]
    reference: tuple[Fact, ...]
    name: str | None

    @property
    def facts(self) -> list[Fact]:
        """The facts alone."""
        return [case.fact for case in self.cases]


def one_fact(
    source: str | None,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    target_new: str | None = None,
    *,
    usual: Fact | None = None,
) -> Fact:
    """The fact of ``--fact``, or of ``--prompt``, ``--subject`` and ``--target``; else the usual one.

    Raises:
        DataError: half a fact, two facts, or one that cannot be read.
    """
    given = {"--prompt": prompt, "--subject": subject, "--target": target}
    if any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing or source:
            what = f"{' and '.join(missing)} missing" if missing else "--fact given as well"
            raise DataError(f"A fact on the command line needs --prompt, --subject and --target: {what}.")
        make = Fact if "{}" in str(prompt) else _from_text
        fact = make(prompt=str(prompt), subject=str(subject), target=str(target))
    elif source is None:
        fact = usual or bundled_facts()[0]
    else:
        fact = read_fact(source, "--fact")
    return replace(fact, target_new=target_new) if target_new else fact


def read_fact(source: str, option: str) -> Fact:
    """A fact from a file (its first), a JSON object, or the id of a shipped one.

    Raises:
        DataError: it is none of these; the message names the option.
    """
    if source.lstrip().startswith("{"):
        try:
            return parse_fact(json.loads(source), option)
        except json.JSONDecodeError as error:
            raise DataError(f"{option}: not readable as JSON: {error}") from error
    if Path(source).suffix or "/" in source:
        return load_facts(source)[0]
    for one in bundled_facts():
        if one.id == source:
            return one
    raise DataError(f"{option}: there is no file and no shipped fact {source!r}. Shipped ids are in data/facts.json.")


def choose_facts(
    single: Sequence[str | None],
    *,
    file: Path | None,
    shipped: bool,
    relation: str | None,
    limit: int | None,
    model: str,
    console: Console,
) -> Chosen:
    """One fact, those of a file, or those that ship.

    Args:
        single: what ``one_fact`` takes.
        file: of facts.
        shipped: whether to take the shipped facts, of which those that the model knows where that is noted.
        relation: keep facts of this relation only.
        limit: keep this many, the first.
        model: whose knowledge counts.
        console: for a note where it is not known what the model knows.

    Raises:
        DataError: options that exclude each other, a bad record, or nothing left.
    """
    if file is None and not shipped:
        if relation is not None or limit is not None:
            raise DataError("--relation and --limit choose among several facts: give --facts FILE or --shipped.")
        fact = one_fact(*single)
        return Chosen(cases=(Case(key=case_keys([fact])[0], fact=fact),), reference=tuple(bundled_facts()), name=None)
    if file is not None and shipped:
        raise DataError("--facts and --shipped exclude each other; give one of them.")
    if any(single):
        raise DataError("A single fact and several exclude each other: leave out --facts and --shipped, or the fact.")
    name = "shipped" if file is None else file.stem
    everything = bundled_facts() if file is None else load_facts(file)
    cases = [Case(key=key, fact=fact) for key, fact in zip(case_keys(everything), everything, strict=True)]
    if relation is not None:
        if relation not in (relations := {fact.relation for fact in everything}):
            known = ", ".join(sorted(relation for relation in relations if relation)) or "none"
            raise DataError(f"--relation: no fact has the relation {relation!r}. Known: {known}.")
        cases = [case for case in cases if case.fact.relation == relation]
        name = f"{name}-{relation}"
    if shipped:
        known_to_model = [case for case in cases if case.fact.ranks.get(model) == 1]
        if not any(model in fact.ranks for fact in everything):
            console.print(f"Note: which shipped facts {model!r} knows is not noted, so all are taken.", style="yellow")
        elif not known_to_model:
            raise DataError(f"--relation: {model!r} knows no shipped fact of the relation {relation!r}.")
        else:
            cases = known_to_model
    return Chosen(cases=tuple(cases[:limit]), reference=tuple(everything), name=name)


def _from_text(*, prompt: str, subject: str, target: str) -> Fact:
    return Fact.from_text(prompt, subject=subject, target=target)
