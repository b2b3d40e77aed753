"""How far edits reach, what is re-used on the way, and whether that could be foretold.

    python -m benchmarks.reach [--facts 30] [--methods ROME MEMIT …] [--reuse ROME] [--out FOLDER]

The facts are shipped ones that the model answers and that have consequences, spread over all relations. Each is
foretold by the unedited model and edited alone by each method. Means are over facts, with bootstrap intervals that draw
facts. The run goes on in its folder where it was stopped.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import edit
import locate
from benchmarks.single_edits import FOLDER, METHODS, facts_with_consequences, methods_of, single_edits
from benchmarks.timing import machine, seconds
from edit.methods.base import EditingMethod
from edit.names import DIRECTIONS
from edit.propagation.asking import tellable_probes
from edit.propagation.reach import COMBINED
from locate.contrast.bootstrap import mean_interval
from locate.errors import LocateError
from locate.facts.keys import case_keys
from locate.sites.site import KINDS
from locate.store.folders import RunFolder

_HALF = 0.5
CROSSING = "layer from which the last token carries half"
_OUTCOMES = ("answered", "said", "total_effect", "of_edit")
# What is asked of an edit for each of its prompt's kinds: paraphrases and neighbours are many.
_MOST = {"paraphrase": 2, "neighbour": 2, "same subject": 2}


def main() -> None:
    """Edit, and print what reached how far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--reuse", nargs="*", default=["ROME"], help="of which methods re-use is measured")
    parser.add_argument("--samples", type=int, default=10, help="random sets of mediators")
    parser.add_argument("--edits", type=Path, default=FOLDER, help="where edits are kept, for other benchmarks too")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-reach"))
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    facts = facts_with_consequences(arguments.facts, arguments.model)
    print(f"{machine()}; {arguments.model}; {len(facts)} facts; {', '.join(arguments.methods)}")
    methods = methods_of(model, arguments.methods)
    description = {
        "command": "reach", "model": arguments.model, "reuse": arguments.reuse, "samples": arguments.samples,
        "methods": {name: repr(one) for name, one in methods.items()},
    }  # fmt: skip
    with RunFolder.open(arguments.out, description) as run:
        took = seconds(lambda: _work(model, facts, methods, arguments, run))
        print(f"{took:.0f} s; results in {run.path}")
        _report(run, facts, list(methods))


def _work(
    model: TransformerBridge, facts: list[locate.Fact], methods: dict[str, EditingMethod], how: Any, run: RunFolder
) -> None:
    for fact, key in zip(facts, case_keys(facts), strict=True):
        if run.pending([f"foreseen {key}"]):
            request = edit.EditRequest(fact)
            _case(run, f"foreseen {key}", lambda request=request: edit.predict_reach(model, request, progress=False))
    for name, key, request, change in single_edits(model, facts, methods, how.edits):
        probes = _probes(model, request)
        for case in run.pending(
            [f"{part} {name} {key}" for part in ("flow", *(["reuse"] if name in how.reuse else []))]
        ):
            if case.startswith("flow"):
                _case(run, case, lambda change=change, probes=probes: edit.mediate(
                    model, change, probes, roles="edit", kinds=KINDS, progress=False))  # fmt: skip
            else:
                _case(run, case, lambda change=change, probes=probes: edit.mediator_reuse(
                    model, change, probes, roles="consequence", samples=how.samples, progress=False))  # fmt: skip
        print(f"  {name}, {key}", flush=True)


def _case(run: RunFolder, key: str, work: Any) -> None:
    """A result on disk, or why there is none."""
    path = run.path / f"{key.replace(' ', '-')}.nc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            run.record(key, file=work().save(path))
        except LocateError as error:
            run.record_failure(key, error)


def _probes(model: TransformerBridge, request: edit.EditRequest) -> list[edit.Probe]:
    """The request's probes, some of each kind."""
    left = dict(_MOST)
    found = []
    for one in tellable_probes(model, request):
        if left.get(str(one.role), 1) > 0:
            found.append(one)
        if one.role in left:
            left[one.role] -= 1
    return found


def _loaded(run: RunFolder, prefix: str, load: Any) -> dict[str, Any]:
    """The results of finished cases, by what follows the prefix."""
    return {
        key.removeprefix(f"{prefix} "): load(run.path / str(one.file)) for key, one in run.done.items()
        if key.startswith(f"{prefix} ")
    }  # fmt: skip


def _report(run: RunFolder, facts: list[locate.Fact], methods: list[str]) -> None:
    keys = case_keys(facts)
    foreseen = _loaded(run, "foreseen", edit.load_reach_prediction)
    for name in methods:
        flows = {key: one for key, one in _loaded(run, f"flow {name}", edit.load_propagation).items() if key in keys}
        if not flows:
            continue
        print(f"\n{name}: how far it reaches")
        print(_reach(flows).to_string(index=False))
        print(f"{name}: what carries it on the edit's own prompt")
        print(carried(list(flows.values())).to_string())
        both = [key for key in flows if key in foreseen]
        for towards in ("share", "margin"):
            judged = edit.judge_reach([foreseen[key] for key in both], [flows[key] for key in both], towards=towards)
            judged.save(run.path / f"judged-{towards}-{name}.nc")
            shown = {score: round(value, 2) for score, value in judged.info["coefficients"].items()}
            print(f"{name}: what foretold it; combined towards {towards}: {shown}")
            every = judged.correlations(None if towards == "share" else [COMBINED])
            print(every.round(2).to_string(index=False))
        reuse = [one for key, one in _loaded(run, f"reuse {name}", edit.load_mediator_reuse).items() if key in keys]
        if reuse:
            study = edit.reuse_study(reuse)
            study.save(run.path / f"reuse-{name}.nc")
            print(f"{name}: re-use of mediators, by role")
            print(_reused(reuse).to_string(index=False))
            print(study.correlations().round(2).to_string(index=False))
    for key, one in run.failed.items():
        print(f"left out: {key}: {one.error}")


def _reach(flows: dict[str, Any]) -> pd.DataFrame:
    """By role, the mean of each outcome over facts, each of which counts its probes' mean, with its interval."""
    tables = []
    for one in flows.values():
        table: Any = one.totals.assign(answered=one.totals["edited"] > 0, said=one.totals["edited_rank_new"] == 1)
        own = table.loc[table["role"] == "edit", "total_effect"].iloc[0]
        tables.append(table.assign(of_edit=table["total_effect"] / own))
    return _by_role(tables, _OUTCOMES)


def carried(flows: list[edit.Propagation]) -> pd.DataFrame:
    """Where the effect goes over to the last token, and the largest single shares behind the edited layers."""
    rows = []
    for one in flows:
        last, behind = len(one.tokens[0]) - 1, max(one.layers) + 1
        share = one.share(0).isel(position=slice(last + 1))
        there = share.sel(kind="resid", direction="gained", position=last)
        row = {CROSSING: float((there < _HALF).sum())}
        for direction in DIRECTIONS:
            own = share.sel(direction=direction, layer=slice(behind, None))
            attention = own.sel(kind="attn", position=last)
            row |= {
                f"largest attention output at the last token, {direction}": float(attention.max()),
                f"… its layer, {direction}": float(attention.idxmax("layer")),
                f"largest MLP output behind the edit, {direction}": float(own.sel(kind="mlp").max()),
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    mean, low, high = mean_interval(table.to_numpy())
    return pd.DataFrame({"mean": mean, "low": low, "high": high}, index=table.columns).round(2)


def _reused(found: list[Any]) -> pd.DataFrame:
    names = ("rank_correlation", "cosine", "overlap", "gained", "random_gained", "lost", "random_lost")
    return _by_role([one.table() for one in found], names)


def _by_role(tables: list[pd.DataFrame], names: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for role in dict.fromkeys(role for table in tables for role in table["role"]):
        own = [table.loc[table["role"] == role, list(names)].astype(float).mean().to_numpy() for table in tables]
        mean, low, high = mean_interval(np.stack(own))
        shown = {name: f"{mean[i]:.2f} [{low[i]:.2f}, {high[i]:.2f}]" for i, name in enumerate(names)}
        rows.append({"role": role, "facts": int((~np.isnan(np.stack(own)[:, 0])).sum()), **shown})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
