"""The analysis of knowledge location in one call: where changes are, what they say, and what locating tells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from edit.location.concentration import Concentration, concentration, load_concentration
from edit.location.concentration_figures import plot_concentration
from edit.location.layer_choice import layer_choice
from edit.location.layer_study import LayerStudy
from edit.location.readout import ColumnReadout, column_readout, load_column_readout
from edit.location.readout_figures import plot_column_readout
from edit.location.similarity import (
    LocalisationSimilarity,
    load_localisation_similarity,
    localisation_similarity,
)
from edit.methods import MEMIT, ROME, AlphaEdit, EditingMethod, FineTuning
from edit.report.findings import (
    Finding,
    as_markdown,
    concentration_finding,
    layer_finding,
    readout_finding,
    similarity_finding,
)
from edit.report.report import write_page
from edit.requests.requests import Cases, EditRequest, as_requests
from locate.contrast.corruption import Corruption
from locate.engine.rows import in_parts
from locate.errors import FactError, counted
from locate.facts.keys import case_keys
from locate.model.weights import model_fingerprint
from locate.plots import save_figure
from locate.store.files import save_json
from locate.store.folders import RunFolder
from locate.store.hashes import fingerprint

_AGAINST = "fine-tuning"
# Edits that are found together, and lost together where a run is stopped.
_TOGETHER = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class LocationReport:
    """What was found, and where it was written.

    Attributes:
        folder: with tables, figures, ``report.md`` and ``report.html``.
        spread: a row for each edit of each method: how it is spread.
        readouts: by method, what the most changed columns say.
        similarity: of what tracing finds; None where there is nothing to compare.
        study: of layers.
        findings: what each part says of what was published.
        left_out: what there is not, and why.

    >>> report = edit.location_report(model, facts[:2], "runs/location", most=3)     # doctest: +SKIP
    >>> report.findings[0].verdict                                                   # doctest: +SKIP
    'The finding reappears.'
    """

    folder: Path
    spread: pd.DataFrame
    readouts: Mapping[str, ColumnReadout]
    similarity: LocalisationSimilarity | None
    study: LayerStudy
    findings: Sequence[Finding]
    left_out: Mapping[str, str]


def usual_methods(model: TransformerBridge, layer: int | None = None) -> dict[str, EditingMethod]:
    """ROME, MEMIT, AlphaEdit, and fine-tuning of the matrix that ROME edits.

    >>> list(usual_methods(model))
    ['ROME', 'MEMIT', 'AlphaEdit', 'fine-tuning']
    """
    rome = ROME(layer=layer)
    return {
        "ROME": rome, "MEMIT": MEMIT(), "AlphaEdit": AlphaEdit(),
        _AGAINST: FineTuning(layer=rome.resolve_layer(model)),
    }  # fmt: skip


def location_report(
    model: TransformerBridge,
    requests: Cases,
    out: str | Path,
    *,
    methods: Mapping[str, EditingMethod] | None = None,
    against: str = _AGAINST,
    layers: Sequence[int] | None = None,
    most: int = 10,
    corruption: Corruption | None = None,
    window: int | None = None,
    steps: int | None = None,
    only_known: bool = True,
    command: str | None = None,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> LocationReport:
    """Knowledge location as Zhang, Yao et al. 2024 (§5) and Hase et al. 2023 analyse it, on any model and methods.

    Each request is edited alone by each method, and each change is looked at: on how many columns it is, and what the
    most changed ones say before and after. Then what tracing finds for related prompts is compared, and edits at every
    layer are set beside what each way of locating says of it. The folder gets the tables (CSV), the results (netCDF),
    the figures (PNG and PDF), and a page with a paragraph on each, as ``report.md`` and ``report.html``. A run that was
    stopped goes on in its folder.

    Args:
        model: a raw-mode bridge; it is left unedited.
        requests: facts with counterfactuals, best with paraphrases, neighbours and consequences.
        out: the folder.
        methods: by name; by default ``ROME``, ``MEMIT``, ``AlphaEdit`` and fine-tuning of ROME's matrix.
        against: the name of the method that is said to spread.
        layers: at which edits by the first of the methods are tried; by default all.
        most: layers that are compared, at most.
        corruption: of tracing and RelP.
        window: of traced MLP outputs.
        steps: of the neurons' integral.
        only_known: as in ``localisation_similarity``.
        command: what the page says it was made by.
        progress: whether to show bars.
        report: called with one line as each part begins.

    Raises:
        FactError: no requests, or some that cannot be edited or asked.
        DataError: the folder is another run's.
        LocateError: whatever editing and locating raise.

    >>> edit.location_report(model, facts[:30], "runs/location").study.best()        # doctest: +SKIP
    Site(kind='mlp', layer=4, position=None, head=None, neuron=None)
    """
    asked, folder = as_requests(requests), Path(out)
    methods = dict(usual_methods(model) if methods is None else methods)
    if not methods:
        raise FactError("methods: give at least one, by name.")
    for method in methods.values():
        method.check(model, asked)
    left_out: dict[str, str] = {}
    how: dict[str, Any] = {"corruption": corruption, "window": window}
    with RunFolder.open(folder, _description(model, asked, methods, how, most, only_known)) as run:
        changes = _Changes(model, asked, run, progress)
        for name, method in methods.items():
            report(f"Editing {counted(len(asked), 'fact')} by {name}")
            changes.by(name, method)
        report("Comparing what tracing finds for related prompts")
        similarity = _similarity(model, asked, run, how, most, only_known, progress, left_out)
    report("Editing at every layer")
    study = layer_choice(
        model, asked, method=next(iter(methods.values())), layers=layers, steps=steps, folder=folder / "layers",
        progress=progress, **how,
    )  # fmt: skip
    study.save(folder / "layers.nc")
    left_out |= study.info["left_out"]
    findings = [
        concentration_finding(changes.spread, against), readout_finding(changes.readouts),
        *([] if similarity is None else [similarity_finding(similarity)]), layer_finding(study),
    ]  # fmt: skip
    made = LocationReport(
        folder=folder, spread=changes.spread, readouts=changes.readouts, similarity=similarity, study=study,
        findings=findings, left_out=left_out,
    )  # fmt: skip
    report(f"Writing {folder}")
    _write(made, changes.first, str(model.cfg.model_name), command)
    return made


def _description(
    model: TransformerBridge, requests: Sequence[EditRequest], methods: Mapping[str, EditingMethod],
    how: Mapping[str, Any], most: int, only_known: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "what": "location report", "model": model_fingerprint(model),
        "facts": {"count": len(requests), "fingerprint": fingerprint(list(requests))},
        "methods": {name: method.described(model)["method"] for name, method in methods.items()},
        "most": most, "only_known": only_known, **{name: repr(value) for name, value in how.items()},
    }  # fmt: skip


class _Changes:
    """The changes of each method, one fact at a time: looked at, and let go."""

    def __init__(
        self, model: TransformerBridge, requests: Sequence[EditRequest], run: RunFolder, progress: bool
    ) -> None:
        self.model, self.requests, self.run, self.progress = model, requests, run, progress
        self.keys = case_keys([request.fact for request in requests])
        self.rows: list[dict[str, Any]] = []
        self.readouts: dict[str, ColumnReadout] = {}
        self.first: dict[str, Concentration] = {}

    @property
    def spread(self) -> pd.DataFrame:
        """A row for each edit."""
        return pd.DataFrame(self.rows)

    def by(self, name: str, method: EditingMethod) -> None:
        """Those of one method."""
        keys = {f"{name}-{key}": index for index, key in enumerate(self.keys)}
        place = self.run.path / "edits"
        place.mkdir(exist_ok=True)
        for part in in_parts(self.run.pending(list(keys)), _TOGETHER):
            own = [self.requests[keys[key]] for key in part]
            for key, request, change in zip(
                part, own, method.fit_each(self.model, own, progress=self.progress), strict=True
            ):
                spread = concentration(change, self.model)
                if keys[key] == 0:
                    spread.save(place / f"{name}-spread.nc")
                file = column_readout(self.model, change, request).save(place / f"{key}.nc")
                self.run.record(key, _told(spread), file=file)
        done = self.run.done
        self.rows += [{"method": name, "fact": key.removeprefix(f"{name}-"), **done[key].found} for key in keys]
        parts = [load_column_readout(self.run.path / str(done[key].file)) for key in keys]
        self.readouts[name] = ColumnReadout.join(parts)
        self.first[name] = load_concentration(place / f"{name}-spread.nc")


def _told(spread: Concentration) -> dict[str, float]:
    """Of a change, the means over its matrices."""
    table: Any = spread.to_dataframe()
    return {
        "effective": float((table["effective_columns"] / table["columns"]).mean()), "top": float(table["top_5"].mean()),
        "effective_rank": float(table["effective_rank"].mean()), "matrices": len(table),
    }  # fmt: skip


def _similarity(
    model: TransformerBridge, requests: Sequence[EditRequest], run: RunFolder, how: Mapping[str, Any], most: int,
    only_known: bool, progress: bool, left_out: dict[str, str],
) -> LocalisationSimilarity | None:  # fmt: skip
    key = "similarity"
    if run.pending([key]):
        try:
            found = localisation_similarity(
                model, [replace(one.fact, target_new=None) for one in requests], progress=progress,
                most=min(most, model.cfg.n_layers - 1), only_known=only_known, **how,
            )  # fmt: skip
        except FactError as error:  # nothing to compare: the other parts shall be had
            left_out["RSim"] = str(error)
            return None
        run.record(key, file=found.save(run.path / "rsim.nc"))
    found = load_localisation_similarity(run.path / "rsim.nc")
    left_out.update(found.info["left_out"])
    return found


def _write(made: LocationReport, first: Mapping[str, Concentration], model: str, command: str | None) -> None:
    folder, study = made.folder, made.study
    rates = {name: one.rates().assign(method=name) for name, one in made.readouts.items()}
    tables = {
        "concentration": made.spread, "hits": pd.concat(rates.values(), ignore_index=True),
        "layers": study.table().reset_index(), "correlations": study.correlations(), "outcomes": study.to_dataframe(),
    }  # fmt: skip
    figures: dict[str, Any] = {
        "concentration": plot_concentration(first), "hits": plot_column_readout(made.readouts),
        "layers": study.plot(), "correlations": study.plot_correlations(),
    }  # fmt: skip
    if made.similarity is not None:
        tables["rsim"], figures["rsim"] = made.similarity.to_dataframe(), made.similarity.plot()
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    for name, figure in figures.items():
        save_figure(figure, folder, name)
    shown = ["concentration", "hits", *(["rsim"] if made.similarity is not None else []), "layers"]
    title = f"Where {model} keeps {study.data.sizes['fact']} facts, and where edits work"
    pairs = list(zip(made.findings, shown, strict=True))
    page = as_markdown(title, [(finding, f"{name}.png") for finding, name in pairs], made.left_out)
    (folder / "report.md").write_text(page, encoding="utf-8")
    write_page(
        folder / "report.html", "location.html", figures=folder, title=title, findings=pairs, left_out=made.left_out,
        hits=tables["hits"].to_dict("records"), layers=tables["layers"].to_dict("records"), command=command,
    )  # fmt: skip
    findings = [
        {"title": one.title, "reappears": one.reappears, "text": one.text, "published": one.published}
        for one in made.findings
    ]
    save_json(
        folder / "summary.json", {"findings": findings, "left_out": dict(made.left_out), "best": study.best().layer}
    )
