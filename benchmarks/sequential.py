"""Many edits in sequence: what is left of the first ones, and of the model.

    python -m benchmarks.sequential --data counterfact_flat_1000.json --text wikitext.txt [--edits 500] [--batch 50]

Edits a public data set batch by batch with each method, and after every batch asks all edits so far again (the
probability comparison), measures perplexity on the end of a text, and the norm of the change. A sequence ends early
where the perplexity passes ``--collapsed``. All methods use the bare prompt and five prefixes (ROME's own default is
twenty). Writes a table and a figure; a table that is there already keeps its other sequences. Batches and measurements
are kept in a folder: a run that was stopped goes on where it was.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch

import edit
import locate
from benchmarks.family import usable
from benchmarks.timing import machine, seconds
from edit.evaluation.scoring import score_targets
from edit.names import SAMPLED
from edit.statistics.corpus import token_batches
from locate.model.devices import input_device
from locate.model.weights import hf_parameters
from locate.plots import save_figure

METHODS: dict[str, Any] = {
    "MEMIT": lambda **o: edit.MEMIT(**o),
    "MEMIT without earlier keys": lambda **o: edit.MEMIT(remember=False, **o),
    "AlphaEdit": lambda **o: edit.AlphaEdit(**o),
    "R-ROME": lambda **o: edit.ROME(prefix_lengths=((10, 5),), **o),
}
_ANCHORED = ", NAS"
# Okabe and Ito's colours, with markers for print.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^")]


def main() -> None:
    """Run the sequences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="its last 4,096 tokens are for the perplexity")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--anchored", nargs="*", default=["no", "yes"], choices=["no", "yes"], help="without, with NAS")
    parser.add_argument("--corpus", default=SAMPLED, help="for key statistics")
    parser.add_argument("--collapsed", type=float, default=1e4, help="the perplexity at which a sequence ends")
    parser.add_argument("--work", type=Path, default=Path("runs/sequential"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)  # told now where it cannot be made
    path = arguments.out / "sequential.csv"
    tables = _finished(path, arguments)
    model = locate.load_model(arguments.model)
    requests, left_out = usable(model, _distinct(edit.load_counterfact(arguments.data)), arguments.edits)
    # The end of the text: key statistics take its beginning, where they are of the same one.
    text = torch.cat(list(token_batches(model, str(arguments.text))))[-32:]
    print(f"{machine()}; {arguments.model}; {len(requests)} edits in batches of {arguments.batch}, {left_out} left out")
    unedited = _perplexity(model, text)
    print(f"unedited: perplexity {unedited:.2f}", flush=True)
    for anchored in arguments.anchored:
        for name in arguments.methods:
            stabilisers = (edit.NAS(),) if anchored == "yes" else ()
            label = name + _ANCHORED if stabilisers else name
            method = METHODS[name](corpus=arguments.corpus, stabilisers=stabilisers)
            folder = arguments.work / label.replace(" ", "-").replace(",", "")
            took = seconds(lambda m=method, f=folder: _sequence(model, m, requests, text, f, arguments))
            lines = (folder / "measured.jsonl").read_text().splitlines()
            if not lines:
                print(f"{label}: no batch could be fitted", flush=True)
                continue
            table = pd.DataFrame([json.loads(line) for line in lines])
            tables[label] = table.assign(method=label, model=arguments.model)
            last = table.iloc[-1]
            print(
                f"{label}: of {int(last['edits'])} edits {last['kept']:.1f}% in place at the end, first batch "
                f"{last['first_batch']:.1f}%; perplexity {last['perplexity']:.2f}; ‖Δ‖/‖W‖ {last['norm']:.3f}; "
                f"this run {took:.0f} s",
                flush=True,
            )
    if not tables:
        return
    labels = [name + end for name in METHODS for end in ("", _ANCHORED)]
    everything = pd.concat([tables[label] for label in labels if label in tables], ignore_index=True)
    everything.round(4).to_csv(path, index=False)
    save_figure(_figure(everything, unedited), arguments.out, "sequential")


def _distinct(requests: list[edit.EditRequest]) -> list[edit.EditRequest]:
    """Without those about a subject and relation that came before."""
    kept: list[edit.EditRequest] = []
    for request in requests:
        if not edit.find_conflicts([request], kept):
            kept.append(request)
    return kept


def _sequence(
    model: Any, method: Any, requests: list[Any], text: torch.Tensor, folder: Path, arguments: argparse.Namespace
) -> None:
    log, size = folder / "measured.jsonl", arguments.batch
    measured = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    ends = [min(start + size, len(requests)) for start in range(0, len(requests), size)]
    if [one["edits"] for one in measured] != ends[: len(measured)]:
        raise SystemExit(f"{folder} holds a sequence of other batches; give another --work.")
    if len(measured) == len(ends):
        return
    with edit.EditSession(model, method, folder=folder / "session") as session:
        log.touch()
        for start in range(len(measured) * size, len(requests), size):
            if measured and not measured[-1]["perplexity"] < arguments.collapsed:
                break
            try:
                session.edit(requests[start : start + size])
                measured.append(_measure(model, session, requests[: start + size], size, text))
            except locate.NumericsError as error:  # a model so broken that no value can be found, or no answer
                print(f"{folder.name} ends with {len(session.requests)} edits: {error}", flush=True)
                break
            with log.open("a") as file:
                file.write(json.dumps(measured[-1]) + "\n")


def _finished(path: Path, arguments: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """The sequences that the table holds already."""
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    ends = {*range(arguments.batch, arguments.edits, arguments.batch), arguments.edits}
    if not set(table["model"]) <= {arguments.model} or not set(table["edits"]) <= ends:
        raise SystemExit(f"{path} holds sequences of another model or other batches; give another --out.")
    return {str(label): own for label, own in table.groupby("method")}


def _measure(model: Any, session: edit.EditSession, done: list[Any], size: int, text: torch.Tensor) -> dict[str, float]:
    pairs = [(r.fact.text, target) for r in done for target in (r.target_new, r.fact.target)]
    scores = score_targets(model, pairs)
    kept = [new.mean_logprob > old.mean_logprob for new, old in zip(scores[::2], scores[1::2], strict=True)]
    update = session.update
    original = {name: dict(hf_parameters(model))[name].detach().cpu() for name in update.parameters}
    changed = sum(update.norm(name) ** 2 for name in update.parameters) ** 0.5
    whole = sum(float((weight - update.delta(name)).norm()) ** 2 for name, weight in original.items()) ** 0.5
    return {
        "edits": len(done), "kept": 100 * sum(kept) / len(kept), "first_batch": 100 * sum(kept[:size]) / size,
        "last_batch": 100 * sum(kept[-size:]) / size, "perplexity": _perplexity(model, text), "norm": changed / whole,
    }  # fmt: skip


@torch.no_grad()
def _perplexity(model: Any, text: torch.Tensor) -> float:
    losses = []
    for rows in text.split(8):
        rows = rows.to(input_device(model))
        logits = model(rows)[:, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))
    return float(torch.stack(losses).mean().exp())


def _figure(table: pd.DataFrame, unedited: float) -> Any:
    with plt.rc_context({"font.size": 9, "pdf.fonttype": 42}):
        figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.1), layout="constrained")
        panels = {
            "kept": "edits in place (%)", "first_batch": "first batch in place (%)",
            "perplexity": "perplexity", "norm": "‖Δ‖ ∕ ‖W‖",
        }  # fmt: skip
        for method, own in table.groupby("method", sort=False):
            name = str(method)
            colour, marker = _STYLES[list(METHODS).index(name.removesuffix(_ANCHORED))]
            line = "--" if name.endswith(_ANCHORED) else "-"
            for panel, column in zip(axes, panels, strict=True):
                panel.plot(own["edits"], own[column], color=colour, marker=marker, linestyle=line, markersize=3.5,
                           linewidth=1.2, label=method)  # fmt: skip
        for panel, label in zip(axes, panels.values(), strict=True):
            panel.set(xlabel="edits", ylabel=label)
            panel.spines[["top", "right"]].set_visible(False)
        for panel, column in zip(axes[:2], panels, strict=False):
            panel.set_ylim(min(80, 0.95 * table[column].min()), 101)
        axes[2].set_yscale("log")
        for which in (axes[2].yaxis.set_major_formatter, axes[2].yaxis.set_minor_formatter):
            which("{x:g}")
        axes[2].axhline(unedited, color="0.5", linestyle=":", linewidth=1.2)
        axes[2].annotate("unedited", (1, unedited), xycoords=("axes fraction", "data"), xytext=(0, 3),
                         textcoords="offset points", ha="right", color="0.4", fontsize=8)  # fmt: skip
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main()
