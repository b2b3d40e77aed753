"""Flow maps and contributions: what is drawn is what was measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import edit
import locate
from edit.propagation.sides import Sides
from locate.circuits.finding import find_circuit
from locate.circuits.written import written_hooks
from locate.sites.site import KINDS
from tests import tiny
from tests.edit.propagation.test_propagation import LAYER, random_update
from tests.edit.propagation.test_report import FACT
from tests.sampling import sampled

REQUEST = edit.EditRequest(FACT)


@pytest.mark.parametrize("kind", sampled(["gpt2", "gpt_neox", "llama", "gemma3_text", "olmo2", "granite"]))
def test_what_parts_write_sums_to_the_total_effect(kind):
    model = tiny.bridge(kind)
    update = random_update(model)
    found = edit.contribution_shift(model, update, REQUEST)
    totals = edit.mediate(model, update, REQUEST, roles=(), progress=False).totals
    for index, row in totals.iterrows():
        own = found.data["contribution"].sel(probe=index).sum("part")
        assert float(own.sel(side="base")) == pytest.approx(row["base"], abs=1e-3)
        assert float(own.sel(side="edited")) == pytest.approx(row["edited"], abs=1e-3)
        assert found.table(index)["shift"].sum() == pytest.approx(row["total_effect"], abs=2e-3)
    # Parts below the edit write what they wrote; up to the final norm's scale, which is another after it.
    below = found.table(0).query(f"layer < {LAYER} and base != 0")
    ratio = (below["edited"] / below["base"]).to_numpy()
    assert np.ptp(ratio) < 1e-3 * abs(np.mean(ratio))


def test_contributions_come_back_and_are_drawn(tmp_path):
    model = tiny.bridge("llama")
    found = edit.contribution_shift(model, random_update(model), REQUEST, by="component")
    again = edit.ContributionShift.load(found.save(tmp_path / "shift.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert (again.texts, again.roles, again.answers, again.info) == (
        found.texts,
        found.roles,
        found.answers,
        found.info,
    )
    assert again.best() == found.best()
    labels = [tick.get_text() for tick in again.plot(n=3).axes[0].get_yticklabels()]
    assert (labels[0], labels[-1], len(labels)) == ("base", "edited", 6)
    assert sum(found.summary().values()) == pytest.approx(found.table().query("layer >= 0")["shift"].sum(), abs=1e-4)
    with pytest.raises(locate.SiteError, match="There is no probe 9"):
        found.table(9)


def test_a_flow_map_has_exact_places_and_scored_edges(tmp_path):
    model = tiny.bridge("llama")
    update = random_update(model)
    flow = edit.mediate(
        model, update, REQUEST, roles=("edit", "consequence"), kinds=locate.sites.site.KINDS, progress=False
    )
    found = edit.flow_map(model, update, REQUEST, flow=flow, progress=False)
    assert found.info["roles"] == ["edit", "consequence"]
    drawn = found.flow(1, "lost")
    place = drawn.nodes.loc["mlp 2 @3"]
    index = int(flow.totals.index[flow.totals["role"] == "consequence"][0])
    exact = flow.mediation.sel(probe=index, direction="lost", kind="mlp", layer=2, position=3)
    assert place["effect"] == pytest.approx(float(exact))
    assert drawn.total == pytest.approx(flow.totals.loc[index, "total_effect"])
    # Arrows are sums of a circuit's scores, position by position.
    asked = edit.propagation.asking.asked_of(Sides.of(model, update), REQUEST)[index]
    contrast = asked.contrast(Sides.of(model, update), keep=written_hooks(model))
    scores = -find_circuit(model, contrast, method="eap-ig", by_position=True, progress=False).by_position
    last = len(drawn.tokens) - 1
    table = drawn.arrows.set_index(["start", "end"])["weight"]
    heads = [f"a2.h{head}" for head in range(model.cfg.n_heads)]
    whole = float(scores.sel(position=last, reader="logits", writer=heads).sum())
    assert table[f"attn 2 @{last}", "logits"] == pytest.approx(whole, rel=1e-4)
    # Places and arrows are rows of their own, not each of one at each of the other.
    rows = found.to_dataframe()
    assert len(rows) == int(found.data["effect"].notnull().sum()) + found.data.sizes["arrow"]
    assert rows.loc[rows["weight"].notna(), "start"].tolist() == found.data["start"].values.tolist()
    again = edit.FlowMap.load(found.save(tmp_path / "map.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert again.html().count('class="flow-view"') == 4  # two probes, both ways
    assert again.best() == found.best()
    with pytest.raises(locate.LocateError, match="There are probes 0 to 1"):
        found.flow(2)


def test_a_flow_map_is_of_its_own_mediation():
    model = tiny.bridge("llama")
    update = random_update(model)
    flow = edit.mediate(model, update, edit.probes_for(REQUEST)[:1], progress=False)
    with pytest.raises(locate.LocateError, match="flow: it is of other probes"):
        edit.flow_map(model, update, REQUEST, flow=flow, progress=False)
    with pytest.raises(locate.LocateError, match="no mediated probe of the roles neighbour"):
        edit.flow_map(model, update, edit.probes_for(REQUEST)[:1], flow=flow, roles="neighbour", progress=False)
    assert torch.isfinite(torch.tensor(flow.totals["total_effect"].to_numpy())).all()


def test_the_best_place_goes_the_way_of_the_total_effect():
    """Of an edit that takes from o*, what carries it and not what works against it."""
    model, request = tiny.bridge("llama"), edit.EditRequest(FACT)
    ways = set()
    for one in (request, edit.EditRequest(replace(FACT, target="Rome", target_new="Paris", consequences=()))):
        probes = edit.probes_for(one)[:1]
        flow = edit.mediate(model, random_update(model), probes, kinds=KINDS, progress=False)
        mapped = edit.flow_map(model, random_update(model), probes, flow=flow, steps=1, progress=False)
        assert [mapped.best(kind) for kind in KINDS] == [flow.best(kind) for kind in KINDS]
        ways.add(float(np.sign(mapped.data["total"][0])))
    assert ways == {-1.0, 1.0}
