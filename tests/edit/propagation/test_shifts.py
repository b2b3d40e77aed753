"""Trace shift and circuit shift against traces and circuits of each model by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import rankdata

import edit
import locate
from edit.propagation.circuits import _against
from edit.propagation.likeness import earth_movers, spearman
from tests import tiny
from tests.edit.propagation.test_propagation import random_update
from tests.sampling import slow

FACT = locate.Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome")
OTHERS = (
    locate.Fact(prompt="{} stands in", subject="Big Ben", target="London", target_new="Europe", relation="place"),
    locate.Fact(
        prompt="The capital of {} is", subject="France", target="Italy", target_new="Paris", relation="capital"
    ),
)
REQUEST = edit.EditRequest(FACT)
NOISE = locate.GaussianNoise(samples=2)
QUIET = {"progress": False}
KINDS = ["gpt2", pytest.param("llama", marks=slow), pytest.param("gpt_neox", marks=slow)]
pytestmark = pytest.mark.filterwarnings("ignore:The model does not answer", "ignore:Corrupting")


@pytest.mark.parametrize("kind", KINDS)
def test_both_traces_are_of_their_models(kind):
    model = tiny.bridge(kind)
    update = random_update(model)
    how = {"kinds": ["mlp", "attn"], "corruption": NOISE, "positions": ["subject", "last"], **QUIET}
    shift = edit.trace_shift(model, update, REQUEST, null=OTHERS, kinds=how["kinds"], k=4, progress=False)
    new = replace(FACT, target="Rome", target_new=None)
    before, others = locate.causal_trace(model, FACT, **how), locate.causal_trace(model, OTHERS, **how)
    with update.applied(model):
        after = locate.causal_trace(model, new, **how)
    for side, one in (("before", before), ("after", after)):
        own = shift.data.sel(side=side)
        np.testing.assert_allclose(own["effect"].values, one.indirect_effect.values, atol=1e-6)
        assert float(own["total_effect"]) == pytest.approx(one.total_effect, abs=1e-6)
        assert shift.best("attn", side=side) == one.best("attn")
    assert shift.moved() == (before.best("mlp") != after.best("mlp"))
    effects = [(one.indirect_effect * np.sign(one.total_effect)).sel(kind="mlp").values for one in (before, after)]
    value = shift.data["shift"].sel(kind="mlp")
    tops = [set(np.argsort(-one.ravel())[:4]) for one in effects]
    assert float(value.sel(measure="overlap")) == len(tops[0] & tops[1]) / 4
    assert float(value.sel(measure="earth_mover")) == pytest.approx(earth_movers(*effects), abs=1e-6)
    assert float(value.sel(measure="spearman")) == pytest.approx(spearman(*effects), abs=1e-6)
    # Of the null, by roles: those of an average of one trace are its own.
    averages = [locate.average_traces([one]) for one in (before, *others)]
    tables = [(one.effect * np.sign(one.total_effect[0])).sel(kind="attn") for one in averages]
    at, null = {"kind": "attn", "measure": "earth_mover"}, []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        there = ~np.isnan(tables[a]).any("layer") & ~np.isnan(tables[b]).any("layer")
        null.append(earth_movers(tables[a].values[there.values], tables[b].values[there.values]))
    np.testing.assert_allclose(shift.data["null"].sel(at).values, null, atol=1e-6)
    assert max(null) > 0.01


@pytest.mark.parametrize("applied", [pytest.param(False, marks=slow), True])
def test_the_model_is_left_as_it_came_and_a_null_is_made_once(applied, tmp_path):
    model = tiny.bridge("gpt2")
    update = random_update(model)
    traces = edit.unrelated_traces(model, OTHERS, **QUIET)
    circuits = edit.unrelated_circuits(model, OTHERS, corruption=NOISE, method="eap", **QUIET)
    if applied:
        update.apply(model)
    shift = edit.trace_shift(model, update, REQUEST, null=traces, **QUIET)
    xr.testing.assert_equal(shift.data, edit.trace_shift(model, update, REQUEST, null=OTHERS, **QUIET).data)
    how = {"corruption": NOISE, "method": "eap", "k": 30, **QUIET}
    circuit = edit.circuit_shift(model, update, REQUEST, null=circuits, **how)
    xr.testing.assert_equal(circuit.data, edit.circuit_shift(model, update, REQUEST, null=OTHERS, **how).data)
    assert update.is_applied(model) is applied
    for one, load in ((shift, edit.load_trace_shift), (circuit, edit.load_circuit_shift)):
        again = load(one.save(tmp_path / "shift.nc"))
        xr.testing.assert_equal(again.data, one.data)
        assert (again.info, again.best()) == (one.info, one.best())
        table = again.to_dataframe()
        assert table.equals(one.to_dataframe())
        assert again.verdict(*table.iloc[0, :2]) == table["verdict"].iloc[0]


@pytest.mark.parametrize("kind", KINDS)
def test_both_circuits_are_of_their_models(kind):
    model = tiny.bridge(kind)
    update = random_update(model)
    how = {"corruption": NOISE, "steps": 2, **QUIET}
    shift = edit.circuit_shift(model, update, REQUEST, null=0, k=40, **how)
    find = {"metric": "logit_diff", "steps": 2, **QUIET}
    before = locate.find_circuit(model, FACT, NOISE, **find)
    with update.applied(model):
        after = locate.find_circuit(model, replace(FACT, target="Rome", target_new="Paris"), NOISE, **find)
    np.testing.assert_allclose(shift.circuit("before").scores, before.scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shift.circuit("after").scores, after.scores, rtol=1e-3, atol=1e-4)
    tops = [one.top(40) for one in (before, after)]
    edges = [{edge[:2] for edge in one.edges} for one in tops]
    nodes = [set(one.nodes) for one in tops]
    for part, (one, other) in (("edges", edges), ("nodes", nodes)):
        found = float(shift.data["shift"].sel(part=part, measure="jaccard"))
        assert found == pytest.approx(len(one & other) / len(one | other))
    shares = [abs(one.scores.values) / np.nansum(abs(one.scores.values)) for one in (before, after)]
    moved = shift.data["shift"].sel(measure="mass_moved")
    assert float(moved.sel(part="edges")) == pytest.approx(np.nansum(abs(shares[0] - shares[1])) / 2, abs=1e-4)
    ranks = [rankdata(one[np.isfinite(one)]) for one in shares]
    correlation = float(shift.data["shift"].sel(part="edges", measure="spearman"))
    assert correlation == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)
    by_node = [np.nansum(one, axis=1) for one in shares]
    assert float(moved.sel(part="nodes")) == pytest.approx(abs(by_node[0] - by_node[1]).sum() / 2, abs=1e-4)
    assert 0.001 < float(moved.sel(part="nodes")) < float(moved.sel(part="edges"))
    assert shift.to_dataframe()["verdict"].unique().tolist() == ["no unrelated facts to compare with"]


def test_both_circuits_have_the_same_against_them():
    """A subject of which neither answer is true, whichever of them is asked for."""
    model = tiny.bridge("gpt2")
    turned = replace(FACT, target="Rome", target_new="Paris")
    pool = [FACT.subject, "The Colosseum", "Big Ben", "The Louvre"]
    named = locate.TokenSwap(pool=tuple(replace(FACT, subject=one, target="London") for one in pool))
    found = [_against(model, one, named) for one in (FACT, turned)]
    assert len(found[0]) == 1
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert _against(model, FACT, NOISE) is NOISE  # which is drawn alike for both


def test_what_does_not_go_together_is_refused():
    model = tiny.bridge("gpt2")
    update = random_update(model)
    traced = edit.trace_shift(model, update, REQUEST, null=0, **QUIET)
    with pytest.raises(locate.LocateError, match="k: must be 1 or more"):
        edit.trace_shift(model, update, REQUEST, k=0)
    with pytest.raises(locate.SiteError, match="kind: this shift has mlp; found 'attn'"):
        traced.best("attn")
    with pytest.raises(locate.SiteError, match="side: this shift has before, after; found 'then'"):
        traced.best(side="then")
    with pytest.raises(locate.LocateError, match="measure: there are overlap, earth_mover"):
        traced.verdict("mlp", "jaccard")
    with pytest.raises(locate.FactError, match="null: no two of these 2 facts are unrelated"):
        edit.trace_shift(model, update, REQUEST, null=[replace(FACT, subject="The Louvre")], **QUIET)
    null = edit.unrelated_traces(model, OTHERS, corruption=locate.GaussianNoise(samples=1), **QUIET)
    with pytest.raises(locate.LocateError, match="These traces differ in their samples"):
        edit.trace_shift(model, update, REQUEST, null=null, **QUIET)
    how = {"corruption": NOISE, "method": "eap", **QUIET}
    null = edit.unrelated_circuits(model, OTHERS[:1], **how)
    with pytest.raises(locate.LocateError, match="a circuit has method 'eap' and this one"):
        edit.circuit_shift(model, update, REQUEST, null=null, corruption=NOISE, **QUIET)
    with update.applied(model):
        null = edit.unrelated_circuits(model, OTHERS[:1], **how)
    with pytest.raises(locate.LocateError, match="of models with other weights"):
        edit.circuit_shift(model, update, REQUEST, null=null, **how)
    own = [locate.find_circuit(model, FACT, NOISE, method="eap", **QUIET)]
    with pytest.raises(locate.LocateError, match="do not say which facts they are of"):
        edit.circuit_shift(model, update, REQUEST, null=own, **how)
    with pytest.raises(locate.LocateError, match="has no target_new"):
        edit.unrelated_circuits(model, [replace(FACT, target_new=None)], **how)
    with pytest.raises(locate.FactError, match="TokenSwap needs 1 other subject"):
        edit.circuit_shift(model, update, edit.EditRequest(replace(FACT, subject="xqz" * 30)), **QUIET)
