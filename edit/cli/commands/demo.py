"""``locate-edit demo``: the main job, from a fact to a report."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from edit.cli.kit.facts import one_fact
from edit.cli.kit.options import (
    RUN,
    FactOption,
    JsonOption,
    LayerOption,
    NewOption,
    PromptOption,
    SubjectOption,
    TargetOption,
)
from edit.cli.kit.output import print_json, readable_errors
from edit.methods import ROME
from edit.report.demo import run_demo
from edit.requests.requests import EditRequest
from locate.contrast.noise import GaussianNoise
from locate.errors import DataError
from locate.facts.files import parse_fact
from locate.model.bundled import DEFAULT_MODEL
from locate.model.loading import load_model


class DemoConfig(BaseModel):
    """What ``demo --config`` may set; options on the command line win over it."""

    model_config = ConfigDict(extra="forbid")

    fact: dict[str, Any] | None = None
    model: str = DEFAULT_MODEL
    target_new: str | None = None
    layer: int | None = None
    out: Path | None = None
    samples: int = 10
    noise: float = 3.0
    window: int | None = None
    seed: int = 1
    corpus: str = "sampled"


def run(
    fact: FactOption = None,
    prompt: PromptOption = None,
    subject: SubjectOption = None,
    target: TargetOption = None,
    target_new: NewOption = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"{DEFAULT_MODEL} (the default), a Hugging Face name, or a folder.", rich_help_panel=RUN),
    ] = None,
    layer: LayerOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", rich_help_panel=RUN)] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML or JSON file with these settings.", rich_help_panel=RUN)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Locate a fact, change it, and watch the change travel to the answer; write figures and a report."""
    with readable_errors() as console:
        settings = _read_config(config)
        usual = parse_fact(settings.fact, "config, fact") if settings.fact else None
        chosen = one_fact(fact, prompt, subject, target, usual=usual)
        request = EditRequest(chosen, target_new or settings.target_new or "")
        folder = out or settings.out or Path("runs") / _slug(request.fact.subject, request.target_new)
        console.print(request.describe(), style="bold")
        bridge = load_model(model or settings.model)
        result = run_demo(
            bridge, request, folder,
            method=ROME(layer=settings.layer if layer is None else layer, corpus=settings.corpus),
            corruption=GaussianNoise(scale=settings.noise, samples=settings.samples, seed=settings.seed),
            window=settings.window, report=lambda line: console.print(f"  {line} …"),
        )  # fmt: skip
        summary = result.summary()
        if as_json:
            print_json(summary)
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
