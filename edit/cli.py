"""The command line: ``locate-edit demo | trace | edit | doctor``."""

import json
import sys
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table

from locate.errors import DataError, LocateError, NumericsError
from locate.facts import Fact, bundled_facts, load_facts, parse_fact

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_DEFAULT_FACT = 0  # the first shipped fact


class DemoConfig(BaseModel):
    """What ``demo --config`` may set; options on the command line win over it."""

    model_config = ConfigDict(extra="forbid")

    fact: dict[str, Any] | None = None
    model: str = "smollm2-135m"
    target_new: str | None = None
    layer: int | None = None
    out: Path | None = None
    samples: int = 10
    noise: float = 3.0
    window: int | None = None
    seed: int = 1
    corpus: str = "sampled"


FactOption = Annotated[
    str | None,
    typer.Option(help="A facts file (its first fact), a JSON object, or the id of a shipped fact."),
]
PromptOption = Annotated[str | None, typer.Option(help="Prompt with {} for the subject, or written out.")]
SubjectOption = Annotated[str | None, typer.Option(help="The subject.")]
TargetOption = Annotated[str | None, typer.Option(help="The true object, without a leading space.")]
NewOption = Annotated[str | None, typer.Option("--target-new", help="The new object.")]
ModelOption = Annotated[str | None, typer.Option(help="smollm2-135m, a Hugging Face name, or a folder.")]
LayerOption = Annotated[int | None, typer.Option(help="The layer to edit; by default at 5/32 of the depth.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def demo(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    target_new: NewOption = None,
    model: ModelOption = None,
    layer: LayerOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML or JSON file with these settings.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Locate a fact, change it, and watch the change travel to the answer; write figures and a report."""
    with _user_errors():
        settings = _read_config(config)
        chosen = _fact(fact, prompt, subject, target, settings.fact)
        import edit
        import locate
        from edit.demo import run_demo

        request = edit.EditRequest(chosen, target_new or settings.target_new or "")
        folder = out or settings.out or Path("runs") / _slug(request.fact.subject, request.target_new)
        console = _console()
        console.print(request.describe(), style="bold")
        bridge = locate.load_model(model or settings.model)
        result = run_demo(
            bridge, request, folder,
            method=edit.ROME(layer=settings.layer if layer is None else layer, corpus=settings.corpus),
            corruption=locate.GaussianNoise(scale=settings.noise, samples=settings.samples, seed=settings.seed),
            window=settings.window, report=lambda line: console.print(f"  {line} …"),
        )  # fmt: skip
        summary = result.summary()
        if as_json:
            print(json.dumps(summary, ensure_ascii=False))
            return
        table = Table("", "before", "after", title=summary["request"])
        changed = summary["edit"]
        table.add_row("answer", changed["generation_before"].strip(), changed["generation_after"].strip())
        table.add_row(
            f"P({request.target_new})",
            f"{changed['probability_new_before']:.3f}",
            f"{changed['probability_new_after']:.3f}",
        )
        for row in summary["propagation"]:
            table.add_row(f"{row['role']}: {row['text']}", row["base_answer"].strip(), row["edited_answer"].strip())
        console.print(table)
        print(folder / "report.html")


@app.command()
def trace(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    model: ModelOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the trace and its figure.")] = Path("runs/trace"),
    window: Annotated[int | None, typer.Option(help="Layers in an MLP or attention window; 10 by default.")] = None,
    noise: Annotated[float, typer.Option(help="Noise, in standard deviations of the subject's embeddings.")] = 3.0,
    samples: Annotated[int, typer.Option(help="Noise samples to average over.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Trace where the model recalls a fact; write trace.nc and a figure."""
    with _user_errors():
        chosen = _fact(fact, prompt, subject, target, None)
        import locate
        from locate.plots import save_figure

        bridge = locate.load_model(model or "smollm2-135m")
        corruption = locate.GaussianNoise(scale=noise, samples=samples, seed=seed)
        result = locate.causal_trace(bridge, chosen, window=window, corruption=corruption)
        result.save(out / "trace.nc")
        save_figure(result.plot(), out, "trace")
        sites = {kind: result.best(kind) for kind in result.info["kinds"]}
        found = {
            "prompt": chosen.text, "answer": result.answer, "clean": result.clean, "corrupted": result.corrupted,
            "best": {kind: {"layer": s.layer, "position": s.position} for kind, s in sites.items()},
        }  # fmt: skip
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
            return
        console = _console()
        console.print(f"P({result.answer.strip()}) {result.clean:.3f}, corrupted {result.corrupted:.3f}")
        for kind, site in sites.items():
            token = result.tokens[site.position or 0].strip()
            console.print(f"  {kind:>5}: layer {site.layer}, token {token!r}")
        print(out / "trace.nc")


@app.command(name="edit")
def edit_command(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    target_new: NewOption = None,
    model: ModelOption = None,
    layer: LayerOption = None,
    out: Annotated[Path, typer.Option(help="File for the update.")] = Path("runs/update.safetensors"),
    export: Annotated[Path | None, typer.Option(help="Also write the edited model to this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit one rank-one edit, evaluate it, and save it as a weight update."""
    with _user_errors():
        chosen = _fact(fact, prompt, subject, target, None)
        import edit
        import locate

        request = edit.EditRequest(chosen, target_new or "")
        bridge = locate.load_model(model or "smollm2-135m")
        update = edit.ROME(layer=layer).fit(bridge, [request])
        evaluation = edit.evaluate(bridge, update, [request])
        out.parent.mkdir(parents=True, exist_ok=True)
        update.save(out)
        if export is not None:
            edit.export(bridge, update, export)
        own: Any = evaluation.rows[evaluation.rows["model"] == "edited"]
        columns = ["probe", "prompt", "generation", "probability_new", "probability_true", "success"]
        if as_json:
            print(own[columns].to_json(orient="records", force_ascii=False))
            return
        table = Table("probe", "prompt", "answer", f"P({request.target_new})", title=request.describe())
        for row in own[columns].to_dict(orient="records"):
            table.add_row(row["probe"], row["prompt"], row["generation"].strip(), f"{row['probability_new']:.3f}")
        _console().print(table)
        print(out)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check the installation: versions, device, the default model and the shipped facts."""
    with _user_errors():
        from importlib.metadata import version

        import torch

        from locate.bundled import bundled_folder, cache_folder

        found = {name: version(name) for name in ("locate-edit", "torch", "transformer-lens", "transformers")}
        found |= {
            "python": sys.version.split()[0], "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": str(torch.get_num_threads()), "cache": str(cache_folder()), "facts": str(len(bundled_facts())),
            "default model": str(bundled_folder()),
        }  # fmt: skip
        if as_json:
            print(json.dumps(found))
            return
        table = Table("what", "found")
        for name, value in found.items():
            table.add_row(name, value)
        _console(stderr=False).print(table)


def main() -> None:
    """Entry point of the console script: exit codes 0 (done), 1 (failed), 2 (bad usage or input)."""
    app()


@contextmanager
def _user_errors() -> Iterator[None]:
    """A user's mistake is one readable message and exit code 2, not a traceback."""
    console = _console()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        console.print(f"Note: {message}", style="yellow", soft_wrap=True)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("default", module=r"(locate|edit)\b.*")
            warnings.showwarning = show
            yield
    except NumericsError as error:
        console.print(f"Failed: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from None
    except (LocateError, OSError) as error:
        console.print(f"Error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(1) from None


def _console(stderr: bool = True) -> Console:
    # Prompts and generations are foreign text: square brackets in them are no markup.
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def _fact(
    source: str | None, prompt: str | None, subject: str | None, target: str | None, configured: dict[str, Any] | None
) -> Fact:
    given = {"--prompt": prompt, "--subject": subject, "--target": target}
    if any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing or source:
            what = f"{' and '.join(missing)} missing" if missing else "--fact given as well"
            raise DataError(f"A fact on the command line needs --prompt, --subject and --target: {what}.")
        if "{}" in str(prompt):
            return Fact(prompt=str(prompt), subject=str(subject), target=str(target))
        return Fact.from_text(str(prompt), subject=str(subject), target=str(target))
    if source is None:
        return parse_fact(configured, "config, fact") if configured else bundled_facts()[_DEFAULT_FACT]
    if source.lstrip().startswith("{"):
        try:
            return parse_fact(json.loads(source), "--fact")
        except json.JSONDecodeError as error:
            raise DataError(f"--fact: not readable as JSON: {error}") from error
    if Path(source).suffix or "/" in source:
        return load_facts(source)[0]
    for one in bundled_facts():
        if one.id == source:
            return one
    raise DataError(f"--fact: there is no file and no shipped fact {source!r}. Shipped ids are in data/facts.json.")


def _read_config(path: Path | None) -> DemoConfig:
    if path is None:
        return DemoConfig()
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return DemoConfig.model_validate(data)
    except FileNotFoundError as error:
        raise DataError(f"There is no config file {str(path)!r}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}. Known: {', '.join(DemoConfig.model_fields)}.") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error


def _slug(*parts: str) -> str:
    kept = "-".join(parts).lower()
    return "-".join("".join(c if c.isalnum() else " " for c in kept).split())
