"""Published claims about how edits work, each judged by exact numbers over facts and methods.

    python -m benchmarks.claims [--facts 30] [--methods ROME MEMIT AlphaEdit EMMET fine-tuning] [--out FOLDER]

Shipped facts that the model knows, spread over all that have consequences, each edited alone by each method. Claims:

a. Later layers attend too much to the subject after an edit, and holding their patterns undoes most of it
   (arXiv:2605.28839): the change of attention from the last token to the subject, and what one mask of every head, of
   those that drifted most, and of as many at random undoes.
b. Attention from the middle on promotes the new object, while attention and MLPs suppress the old one
   (arXiv:2603.20795): what each third of the layers adds to either object's logit at the last token, edited less base,
   over the mean of the other facts' objects.
c. Without its top singular directions an edited model answers as before (arXiv:2505.20819, whose directions are those
   of the edited matrix, "blind"); beside it those of ΔW, which of rank 1, as ROME's, are all of it.
d. Fine-tuning keeps a circuit's nodes and changes its edges (arXiv:2502.11812): overlap (Jaccard) of the best edges
   before and after, and of the nodes that they join, beside that of unrelated facts and that by other methods.

The run goes on in its folder where it was stopped. Means with 95% bootstrap intervals over facts.
"""

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

import edit
import locate
from benchmarks.single_edits import FOLDER, METHODS, facts_with_consequences, methods_of, single_edits
from benchmarks.timing import machine, seconds
from edit.propagation.asking import Asked, asked_of
from edit.propagation.sides import Sides
from edit.requests.requests import EditRequest
from locate.contrast.bootstrap import mean_interval
from locate.engine import FrozenRun
from locate.facts.keys import case_keys
from locate.facts.prompts import encode_target
from locate.lens.parts import joined, parts, read_at
from locate.model.running import running
from locate.model.weights import model_fingerprint
from locate.sites.final import Readout
from locate.store.folders import RunFolder

_MASKS, _COUNTS = (1, 5, 20), (1, 2, 4, 8, 16)
_THIRDS = ("early", "middle", "late")
_ALIKE = {"jaccard": "overlap", "spearman": "rank correlation of scores", "mass_moved": "share of scores that moved"}
# A share of the effect that is most of it.
_MOST = 0.5


def main() -> None:
    """Edit, measure, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--random", type=int, default=3, help="sets of heads at random, of each size")
    parser.add_argument("--edits", type=Path, default=FOLDER, help="where edits are kept, for other benchmarks too")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-claims"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model = locate.load_model(asked.model)
    facts = facts_with_consequences(asked.facts, asked.model)
    print(f"{machine()}; {asked.model}; {len(facts)} facts by {', '.join(asked.methods)}", flush=True)
    took = seconds(lambda: run_cases(model, facts, asked))
    print(f"{took:.0f} s; rows in {asked.out}\n")
    with RunFolder.open(asked.out, _description(model, facts, asked.methods, asked.random)) as run:
        rows = pd.DataFrame([record.found for record in run.done.values()])
        for key, record in run.failed.items():
            print(f"left out: {key}: {record.error}")
    tell(rows)


def run_cases(model: TransformerBridge, facts: Sequence[locate.Fact], asked: argparse.Namespace) -> None:
    """Edit each fact by each method, and note what is found of it."""
    controls = [int(encode_target(model, fact.text, fact.target)[0]) for fact in facts]
    null = edit.unrelated_circuits(model, progress=False)
    with RunFolder.open(asked.out, _description(model, facts, asked.methods, asked.random)) as run:
        for name, key, request, update in single_edits(model, facts, methods_of(model, asked.methods), asked.edits):
            case = f"{key}, {name}"
            if not run.pending([case]):
                continue
            try:
                found = measured(model, update, request, controls, null, asked.random)
            except locate.LocateError as error:
                run.record_failure(case, error)
            else:
                run.record(case, {"fact": key, "method": name, **found})
            print(f"  {case}", flush=True)


def measured(
    model: TransformerBridge,
    update: edit.WeightUpdate,
    request: EditRequest,
    controls: Sequence[int],
    null: Sequence[locate.Circuit],
    random: int,
) -> dict[str, float | None]:
    """All numbers of one edit, on its own prompt.

    >>> found = measured(model, update, request, [5, 6], [], 1)
    >>> found["rank"], round(found["undone, dropped 1"], 2)
    (1.0, 1.0)
    """
    sides = Sides.of(model, update)
    (asked,) = asked_of(sides, edit.probes_for(request)[:1])
    found: dict[str, float] = {}
    drift = edit.attention_drift(
        model, sides, request, roles="edit", masked=_MASKS, random=random, effects=False, progress=False
    )
    subject = drift.drift.sel(key="subject").squeeze("probe")
    behind = subject.sel(layer=subject["layer"] > min(sides.layers))
    found["over-attention"] = float(behind.mean())
    found["over-attention, most"] = float(behind.max())
    for row in drift.masks().to_dict("records"):
        found[f"{row['direction']}, mask {row['mask']}"] = row["share"]
        if row["mask"] != "all":
            found[f"{row['direction']}, random {row['mask']}"] = row["random"]
    found["old back, mask all"] = float(drift.data["old_back"].sel(mask=-1).item())
    reversal = edit.reversibility(model, sides, request, counts=_COUNTS, roles="edit", progress=False)
    found["rank"] = float(reversal.rank)
    for way in reversal.data["way"].values:
        for k in _COUNTS:
            found[f"undone, {way} {k}"] = float(reversal.undone().sel(probe=0, way=way, k=k))
            found[f"old back, {way} {k}"] = float(reversal.returns().sel(probe=0, way=way, k=k))
    moved = edit.circuit_shift(model, sides, request, null=null, progress=False)
    for part in moved.data["part"].values:
        for measure in moved.data["measure"].values:
            at = {"part": part, "measure": measure}
            found[f"{part} {measure}"] = float(moved.data["shift"].sel(at))
            found[f"{part} {measure}, unrelated"] = float(moved.data["null"].sel(at).mean())
    found |= added(sides, asked, controls)
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def added(sides: Sides, asked: Asked, controls: Sequence[int]) -> dict[str, float]:
    """By object, part and third of the layers: what is added to its logit, edited less base."""
    others = [token for token in dict.fromkeys(controls) if token not in (asked.new, asked.old)]
    base, edited = sides.runs(asked.prompt.tokens[None], keep=read_at(sides.model, "component"))
    found: dict[str, float] = {}
    for run, sign in ((edited, 1), (base, -1)):
        for name, token in (("new", asked.new), ("old", asked.old)):
            for place, value in _written(run, token, others).items():
                found[f"{name}, {place}"] = found.get(f"{name}, {place}", 0.0) + sign * value
    return found


def _written(run: FrozenRun, token: int, others: Sequence[int]) -> dict[str, float]:
    model, stream = run.model, run.residuals[-1][0, -1]
    with run.weights.entered(), running(model):
        readout = Readout.of(model, stream, run.logits[0])
        own, *rest = (readout.towards(stream, one).direction for one in (token, *others))
        direction = own - torch.stack(rest).mean(0) if rest else own
        kinds, layers, _, values = joined(list(parts(run, 0, "component", direction)))
    found: dict[str, float] = {}
    for kind, layer, value in zip(kinds, layers, values, strict=True):
        if kind in ("attn", "mlp"):
            place = f"{kind} {_THIRDS[3 * int(layer) // run.n_layers]}"
            found[place] = found.get(place, 0.0) + float(value)
    return found


def tell(rows: pd.DataFrame) -> None:
    """The tables, and a verdict on each claim."""
    held = {
        "change of attention to the subject, mean head": "over-attention", "… of the head that gains most":
        "over-attention, most", **{f"undone by one mask of {n} heads": f"lost, mask {n}" for n in (*_MASKS, "all")},
        **{f"… of {n} at random": f"lost, random {n}" for n in _MASKS}, "brought by edited patterns of all":
        "gained, mask all", "o ahead again": "old back, mask all",
    }  # fmt: skip
    written = {
        f"{title}, {part} {third}": f"{name}, {part} {third}"
        for name, title in (("new", "o*"), ("old", "o")) for part in ("attn", "mlp") for third in _THIRDS
    }  # fmt: skip
    dropped = {"rank of ΔW": "rank"} | {
        f"{title}, {way} k = {k}": f"{column}, {way} {k}"
        for way in ("dropped", "blind") for column, title in (("undone", "undone"), ("old back", "o back"))
        for k in _COUNTS
    }  # fmt: skip
    _table("a. Over-attention, and masks (shares of the effect on o* − o)", rows, held)
    for name, own in rows.groupby("method", sort=False):
        more, undone = _bounds(own, "over-attention"), _bounds(own, "lost, mask all")
        print(f"   {name}: over-attention {_sign(more)}; one mask undoes {_share(undone)}")
    _table("\nb. Added to logits at the last token, edited less base [logits]", rows, written)
    for name, own in rows.groupby("method", sort=False):
        news = {third: _sign(_bounds(own, f"new, attn {third}")) for third in _THIRDS[1:]}
        olds = {part: _sign(_bounds(own.assign(all=sum(own[f"old, {part} {third}"] for third in _THIRDS)), "all"))
                for part in ("attn", "mlp")}  # fmt: skip
        print(f"   {name}: attention on o*: {_told(news)}; on o: {_told(olds)}")
    _table("\nc. Without top singular directions (shares undone; o back: ahead, and of its old rank)", rows, dropped)
    for name, own in rows.groupby("method", sort=False):
        blind = max((_bounds(own, f"undone, blind {k}") for k in _COUNTS), key=lambda bounds: bounds[0])
        all_of_it = f" ({(own['rank'] == 1).mean():.0%} of rank 1: all of it)"
        first = _share(_bounds(own, "undone, dropped 1"))
        print(f"   {name}: the top one of ΔW: {first}{all_of_it}; the edited matrix's own, at best: {_share(blind)}")
    circuits = {
        f"{part}, {said}{others}": f"{part} {measure}{null}"
        for part in ("nodes", "edges") for measure, said in _ALIKE.items()
        for others, null in (("", ""), (", of unrelated facts", ", unrelated"))
    }  # fmt: skip
    _table("\nd. The answer's circuit before and after (0.5% of edges, and their nodes)", rows, circuits)
    for name, own in rows.groupby("method", sort=False):
        gap = _bounds(own.assign(gap=own["nodes jaccard"] - own["edges jaccard"]), "gap")
        beyond = _bounds(own.assign(gap=own["edges jaccard"] - own["edges jaccard, unrelated"]), "gap")
        told = f"nodes over edges {_sign(gap)}; edges over those of unrelated facts {_sign(beyond)}"
        print(f"   {name}: {told}")


def _bounds(rows: Any, column: str) -> tuple[float, float, float]:
    return tuple(float(one) for one in mean_interval(rows[column].to_numpy(float)))  # type: ignore[return-value]


def _table(title: str, rows: pd.DataFrame, columns: Mapping[str, str]) -> None:
    names = list(dict.fromkeys(rows["method"]))
    print(title)
    print(f"\n| | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for label, column in columns.items():
        cells = []
        for name in names:
            mean, low, high = _bounds(rows[rows["method"] == name], column)
            cells.append(f"{mean:.3g}" + ("" if np.isnan(low) else f" ({low:.3g} to {high:.3g})"))
        print(f"| {label} | {' | '.join(cells)} |")
    print()


def _sign(bounds: tuple[float, float, float]) -> str:
    mean, low, high = bounds
    return f"{'up' if low > 0 else 'down' if high < 0 else 'open'} ({mean:+.2g})"


def _share(bounds: tuple[float, float, float]) -> str:
    mean, low, high = bounds
    return f"{'most' if low > _MOST else 'less than half' if high < _MOST else 'about half, open'} ({mean:.0%})"


def _told(signs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {sign}" for name, sign in signs.items())


def _description(
    model: TransformerBridge, facts: Sequence[locate.Fact], methods: Sequence[str], random: int
) -> dict[str, Any]:
    return {
        "command": "benchmarks.claims", "model": model_fingerprint(model), "facts": case_keys(facts),
        "methods": list(methods), "random": random,
    }  # fmt: skip


if __name__ == "__main__":
    main()
