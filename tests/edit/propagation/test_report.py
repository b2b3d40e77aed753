"""The report of propagation, and reports compared."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import edit
import locate
from edit.propagation.parts import PARTS, wanted_parts
from edit.propagation.propagation import Propagation
from edit.propagation.report import PropagationReport
from tests import tiny
from tests.edit.propagation.test_propagation import random_update

FACT = locate.Fact(
    prompt="{} is in the city of", subject="The Louvre", target="Paris", target_new="Rome",
    paraphrases=("Go to {} in",), neighbours=("The Eiffel Tower is in",),
    consequences=(locate.Consequence(prompt="{} is in", target="Italy", target_before="France"),),
)  # fmt: skip
HOW = {"parts": (), "progress": False}


def made_up(effects, *, edited=1.0, roles=("edit", "paraphrase", "paraphrase", "neighbour")):
    """A propagation with these total effects."""
    totals = pd.DataFrame({
        "role": roles, "text": [f"text {i}" for i in range(len(roles))], "old": "Paris", "new": "Rome",
        "base": np.full(len(roles), edited) - effects, "edited": edited, "edited_rank_new": [1, 2, 1, 5],
        "total_effect": effects,
    })  # fmt: skip
    info = {"model": "tiny", "method": "made up", "kinds": [], "roles": []}
    return Propagation(totals=totals, data=xr.Dataset(), tokens=(("a",),) * len(roles), layers=(1,), info=info)


def test_retention_is_the_share_of_the_edits_own_effect():
    table = made_up(np.array([4.0, 1.0, 3.0, -2.0])).retention()
    assert table["share"].to_dict() == {"edit": 1.0, "paraphrase": 0.5, "neighbour": -0.5}
    assert table.loc["paraphrase", ["low", "high"]].tolist() == [0.25, 0.75]
    assert table["first"].to_dict() == {"edit": 1.0, "paraphrase": 0.5, "neighbour": 0.0}
    assert table["probes"].tolist() == [1, 2, 1]
    with pytest.raises(locate.SiteError, match="no probe of role 'edit'"):
        made_up(np.ones(4), roles=("paraphrase",) * 4).retention()


def test_numbers_of_edits_are_averaged_and_paired():
    effects = {"one": [4.0, 8.0], "other": [2.0, 2.0]}
    reports = {
        name: [PropagationReport(flow=made_up(np.array([e, e / 2, e / 2, 0.0]))) for e in each]
        for name, each in effects.items()
    }
    found = edit.compare_propagation(reports, facts=["a", "b"])
    assert found.table().loc["flow: edit", ("one", "mean")] == 6.0
    assert found.table().loc["flow: share: paraphrase", ("other", "mean")] == 0.5
    difference = found.difference("one", "other").loc["flow: edit"]
    assert difference.to_dict() == {"mean": 4.0, "low": 2.0, "high": 6.0, "n": 2}
    with pytest.raises(locate.LocateError, match="There is no method 'ones'"):
        found.difference("ones", "other")
    with pytest.raises(locate.LocateError, match="a report for each fact"):
        edit.compare_propagation({**reports, "third": []})
    with pytest.raises(locate.LocateError, match="There are no reports"):
        edit.compare_propagation({})


def test_only_edits_of_the_same_prompts_are_paired():
    one = made_up(np.array([4.0, 1.0, 3.0, -2.0]))
    other = replace(
        one, totals=one.totals.assign(text=["other", *one.totals["text"][1:]]), info={**one.info, "model": "b"}
    )
    reports = [PropagationReport(flow=flow) for flow in (one, other)]
    with pytest.raises(locate.LocateError, match="Report 0 of b is of the prompt 'other', that of a of 'text 0'"):
        edit.compare_propagation({"a": reports, "b": reports[::-1]})
    assert edit.compare_propagation({"a": reports, "b": reports}).info["model"] == "tiny, b"


def test_a_comparison_comes_back_and_is_drawn(tmp_path):
    report = PropagationReport(flow=made_up(np.array([4.0, 1.0, 3.0, -2.0])))
    found = edit.compare_propagation({"ROME": [report, report]})
    again = edit.load_propagation_comparison(found.save(tmp_path / "comparison.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert again.info == found.info
    labels = [tick.get_text() for tick in again.plot().axes[0].get_yticklabels()]
    assert "share: paraphrase" in labels
    with pytest.raises(locate.LocateError, match="There is no measure 'flow: edits'"):
        found.plot(measures=["flow: edits"])


ASKING = {
    "propagate": {"parts": (), "mediate": "edit"}, "mediate": {"roles": "edit", "kinds": ["mlp"]}, "flow_map": {},
    "attention_drift": {"roles": "edit", "masked": [1], "random": 1, "effects": False}, "edit_circuit": {"random": 0},
    "contribution_shift": {}, "mediator_reuse": {"top": 2, "samples": 1}, "old_fact_residue": {},
    "weight_footprint": {}, "reversibility": {"counts": [1]}, "trace_shift": {"null": 0},
    "circuit_shift": {"null": 0, "method": "eap", "corruption": locate.TokenSwap("The Rome")},
}  # fmt: skip


@pytest.mark.slow("every part of a report, twice")
def test_a_fact_stands_for_its_own_counterfactual_wherever_a_change_is_followed():
    model = tiny.bridge("llama")
    update = random_update(model)
    for name, how in ASKING.items():
        quiet = {} if name in ("contribution_shift", "weight_footprint") else {"progress": False}
        found = [getattr(edit, name)(model, update, one, **how, **quiet) for one in (FACT, edit.EditRequest(FACT))]
        data = [one.flow.data if name == "propagate" else one.data for one in found]
        xr.testing.assert_identical(*data)
    assert edit.predict_reach(model, FACT, layer=1, progress=False).info["request"] == edit.EditRequest(FACT).describe()
    with pytest.raises(locate.FactError, match="several Probes, or one EditRequest"):
        edit.mediate(model, update, [FACT, FACT])
    with pytest.raises(locate.FactError, match="no new target"):
        edit.mediate(model, update, replace(FACT, target_new=None))


def test_a_report_comes_back(tmp_path):
    model = tiny.bridge("llama")
    report = edit.propagate(model, random_update(model), edit.EditRequest(FACT), **HOW)
    again = edit.load_propagation_report(report.save(tmp_path / "report"))
    xr.testing.assert_equal(again.mediation, report.mediation)
    assert again.summary() == report.summary()
    assert "flow: largest heads, gained" in report.summary()
    (tmp_path / "report" / "report.json").write_text('{"parts": ["no such part"]}')
    with pytest.raises(locate.DataError, match="is not of a propagation report"):
        edit.load_propagation_report(tmp_path / "report")
    with pytest.raises(locate.DataError, match="There is no file"):
        edit.load_propagation_report(tmp_path / "none")


def test_parts_are_asked_for_by_name():
    model = tiny.bridge("llama")
    with pytest.raises(locate.FactError, match="parts: there is no 'circuts'"):
        edit.propagate(model, random_update(model), edit.EditRequest(FACT), parts=["circuts"], progress=False)
    report = edit.propagate(model, random_update(model), edit.EditRequest(FACT), **HOW)
    for name in PARTS:
        with pytest.raises(locate.LocateError, match="it was not asked for"):
            report[name]
    assert wanted_parts("all") == tuple(PARTS)
