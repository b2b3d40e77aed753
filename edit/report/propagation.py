"""What a report of propagation leaves in a folder: its numbers, tables, figures, and a page that shows them."""

from pathlib import Path
from typing import Any

from edit.propagation.parts import PARTS
from edit.propagation.report import PropagationReport
from edit.report.report import write_page
from locate.plots import save_figure

_MAP = "map"


def write_propagation(report: PropagationReport, folder: str | Path, *, command: str | None = None) -> list[Path]:
    """Write tables (CSV), figures (PNG and PDF) and ``report.html``, one file that opens without a network.

    ``command`` is what the page says it was made by.

    Returns:
        The page first, then the tables and figures.

    >>> [path.name for path in write_propagation(flow_report, "runs/propagate")][0]     # doctest: +SKIP
    'report.html'
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    tables: dict[str, Any] = {"totals": report.totals, "flow": report.to_dataframe()}
    figures: dict[str, Any] = {"flow": report.flow.plot()} if report.flow.mediated else {}
    for name, part in report.parts.items():
        tables[name], figures[name] = part.to_dataframe(), part.plot()
    for name, table in tables.items():
        table.to_csv(place / f"{name}.csv", index=False)
        files.append(place / f"{name}.csv")
    for name, figure in figures.items():
        files += save_figure(figure, place, name)
    totals: Any = report.totals
    first: Any = totals.iloc[0]
    sections = [
        {
            "name": name, "title": PARTS[name].title, "html": part.html() if name == _MAP else None,
            "numbers": dict(part.summary()),
        }
        for name, part in report.parts.items()
    ]  # fmt: skip
    has_edit = bool((totals["role"] == "edit").any())
    page = write_page(
        place / "report.html", "propagation.html", figures=place, sections=sections, left_out=report.left_out,
        title=f"How “{first['old']} → {first['new']}” travels through {report.flow.info['model']}",
        method=report.flow.info["method"], layers=report.flow.layers, totals=totals.to_dict(orient="records"),
        retention=report.retention().reset_index().to_dict(orient="records") if has_edit else [],
        mediated=bool(report.flow.mediated), command=command,
    )  # fmt: skip
    return [page, *files]
