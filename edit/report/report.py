"""Self-contained HTML pages, such as that about an edit."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from edit.changes.updates import WeightUpdate
from edit.evaluation import Evaluation
from edit.propagation.propagation import Propagation
from edit.propagation.roles import ROLE_MEANINGS
from locate.figures.style import DPI
from locate.tracing.trace import Trace


def write_report(
    path: str | Path,
    *,
    summary: dict[str, Any],
    trace: Trace,
    update: WeightUpdate,
    evaluation: Evaluation,
    flow: Propagation,
    way: str,
    method: str,
    files: Sequence[str],
    config: str | None,
    figures: Path,
) -> Path:
    """Render the report; figures are read as PNG from a folder and go into the page itself.

    The page loads nothing from anywhere and prints well. ``way`` is the flow map as a fragment of a page, ``files``
    are named at its end, and ``config`` is what the last of them holds, where the page was made from settings.

    >>> write_report("report.html", summary=…, trace=trace, …)                       # doctest: +SKIP
    """
    totals: Any = flow.totals
    roles = {role: meaning for role, meaning in ROLE_MEANINGS.items() if role in set(totals["role"])}
    return write_page(
        Path(path), "report.html", figures=figures, title=summary["request"], left_out={}, command=None,
        summary=summary, trace=trace, update=update, answers=_answers(evaluation), metrics=_metrics(evaluation),
        totals=totals.to_dict(orient="records"), info=update.info, way=way, method=method, files=files, config=config,
        roles=roles,
    )  # fmt: skip


def write_page(path: Path, template: str, *, figures: Path, **values: Any) -> Path:
    """Render one of the templates, which may ask for figures by name and write ``number``s.

    ``image(name)`` is the figure itself, ``inches(name)`` how wide it was drawn.

    >>> write_page(Path("location.html"), "location.html", figures=Path("."), title="…", …)   # doctest: +SKIP
    """
    environment = Environment(
        loader=PackageLoader("edit.report"), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    page = environment.get_template(template).render(
        **values, image=lambda name: _data_uri(figures / f"{name}.png"),
        inches=lambda name: _inches(figures / f"{name}.png"),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
    return path


def _answers(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows: Any = evaluation.rows
    keys = ["case", "probe", "prompt"]
    columns = ["generation", "probability_new", "probability_true", "success"]
    both = pd.merge(
        rows[rows["model"] == "unedited"][keys + columns], rows[rows["model"] == "edited"][keys + columns],
        on=keys, suffixes=("_before", "_after"),
    )  # fmt: skip
    return both.to_dict(orient="records")


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    table = evaluation.summary()
    return [{"name": name, **row} for name, row in table.to_dict(orient="index").items()]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _inches(path: Path) -> float:
    width = int.from_bytes(path.read_bytes()[16:20])  # of a PNG, in pixels
    return round(width / DPI, 2)


def _number(value: Any, digits: int = 2) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")
