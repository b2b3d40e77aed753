"""What is left of the old answer, against whole passes and hooks alone."""

import numpy as np
import pytest
import torch
import xarray as xr

import edit
import locate
from edit.propagation import residue as room
from edit.propagation.contexts import inviting_contexts
from tests import tiny
from tests.edit.propagation.test_propagation import random_update
from tests.sampling import slow

FACT = locate.Fact(
    prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    paraphrases=("To visit {}, you need a flight to",), neighbours=("The Louvre is located in the city of",),
    other_relations=(locate.OtherRelation(prompt="{} stands in the country of", target="France"),),
)  # fmt: skip
REQUEST = edit.EditRequest(FACT)
QUIET = {"progress": False}


def literal(model, text, answers):
    """Logits of the answers after each layer, by hooks on whole passes; and the model's own at the end."""
    tokens = torch.tensor(model.tokenizer(text)["input_ids"])[None]
    ids = [model.tokenizer(f" {one}")["input_ids"][0] for one in answers]
    states = {}

    def keep(value, hook):
        states[hook.name] = value[:, -1:].clone()

    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        own = model(tokens)[0, -1]
        read = torch.stack([model.unembed(model.ln_final(states[name]))[0, 0] for name in states])
    return read[:, ids].numpy(), read.log_softmax(-1)[:, ids].numpy(), own, ids


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=slow), pytest.param("olmo2", marks=slow)])
def test_everything_equals_whole_passes(kind, tmp_path):
    model = tiny.bridge(kind)
    update = random_update(model)
    found = edit.old_fact_residue(model, update, REQUEST, **QUIET)
    assert found.probes["role"].tolist() == ["edit", "paraphrase"]
    sums = found.data["written"].sum("part") if "written" in found.data else None
    for side in ("before", "after"):
        if side == "after":
            update.apply(model)
        for probe, text in enumerate(found.probes["text"]):
            logits, logs, own, ids = literal(model, text, ("Paris", "Rome"))
            at = {"side": side, "probe": probe}
            np.testing.assert_allclose(found.data["logit"].sel(at).values, logits, atol=1e-4)
            np.testing.assert_allclose(found.data["log_probability"].sel(at).values, logs, atol=1e-4)
            if sums is not None:
                np.testing.assert_allclose(sums.sel(at).values, own[ids].numpy(), atol=1e-3)
        for row in found.contexts.to_dict(orient="records"):
            *_, own, ids = literal(model, row["text"], ("Paris", "Rome"))
            chances = own.softmax(-1)[ids].tolist()
            assert [row[f"{name}_{side}"] for name in ("old", "new")] == pytest.approx(chances, abs=1e-5)
            assert row[f"rank_{side}"] == int((own > own[ids[0]]).sum()) + 1
            assert row[f"answer_{side}"] == model.tokenizer.decode([int(own.argmax())])
    again = edit.load_old_fact_residue(found.save(tmp_path / "residue.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert again.contexts.equals(found.contexts)
    assert again.probes.equals(found.probes)
    assert again.info == found.info
    assert len(found.to_dataframe()) == found.data["logit"].size


def test_contexts_are_the_facts_own_words():
    found = {one.kind: one for one in inviting_contexts(REQUEST)}
    assert found["stated"].prefix == "The Eiffel Tower is located in the city of Paris\n"
    assert found["paraphrase"].prefix == "To visit The Eiffel Tower, you need a flight to Paris\n"
    assert found["neighbour"].prefix == "The Louvre is located in the city of Paris\n"
    assert found["same subject"].prefix == "The Eiffel Tower stands in the country of France\n"
    assert [kind for kind, one in found.items() if not one.invites] == ["bare", "same subject"]
    joined = locate.Fact(prompt="{}在", subject="东京", target="日本", target_new="中国", joined=True)
    assert [one.prefix for one in inviting_contexts(edit.EditRequest(joined))] == ["", "东京在日本\n", "日本\n"]
    many = locate.Fact(
        prompt="{} is in", subject="Rome", target="Italy", target_new="Spain", neighbours=("a", "b", "c")
    )
    assert sum(one.kind == "neighbour" for one in inviting_contexts(edit.EditRequest(many), most=2)) == 2


def made(logits, ranks=(1, 2), invites=(True, True)):
    """A residue with these logits, of dims side, layer, answer."""
    import pandas as pd

    contexts = {"kind": ["stated", "alone"], "invites": invites, "rank_after": ranks, "rank_before": (1, 1)}
    data = {"logit": (("side", "probe", "layer", "answer"), np.array(logits, dtype=float)[:, None])}
    coords = {"side": ["before", "after"], "answer": ["old", "new"], "layer": range(len(logits[0]))}
    return edit.OldFactResidue(
        data=xr.Dataset(data, coords=coords), probes=pd.DataFrame([{"old": "Paris", "new": "Rome"}]),
        contexts=pd.DataFrame(contexts), info={"left_out": {"writers": "there are none"}},
    )  # fmt: skip


def test_what_is_read_off():
    never, late = [[1, 0], [0, 1], [1, 0]], [[0, 1], [1, 0], [0, 1]]
    found = made([never, late])
    assert (found.overtakes("before"), found.overtakes("after")) == (None, 2)
    assert made([late, [[0, 1]] * 3]).overtakes() == 0
    assert found.said_again() == 0.5
    assert found.said_again("before") == 1
    assert made([never, late], invites=(False, True)).said_again() == 0
    with pytest.raises(locate.SiteError, match="was not measured: there are none"):
        found.writers()
    with pytest.raises(locate.SiteError, match="side: must be one of before, after"):
        found.overtakes("then")
    with pytest.raises(locate.SiteError, match="There is no probe 1"):
        found.overtakes(probe=1)


def test_writers_come_by_what_they_add_to_the_old_answer_over_the_new():
    model = tiny.bridge("gpt2")
    found = edit.old_fact_residue(model, random_update(model), REQUEST, roles="edit", contexts={"a": "A. "}, **QUIET)
    table = found.writers()
    assert len(table) == model.cfg.n_layers * (model.cfg.n_heads + 1)
    assert table["over_after"].is_monotonic_decreasing
    assert table.index.tolist() == list(range(len(table)))
    first = table.iloc[0]
    assert first["over_after"] == pytest.approx(first["old_after"] - first["new_after"])
    assert found.best().layer == first["layer"]
    early = table[(table["layer"] == 0) & (table["kind"] == "head")]  # by the final norm's scale alone
    assert np.ptp(early["old_after"] / early["old_before"]) < 1e-3
    assert found.contexts["kind"].tolist() == ["bare", "a"]


def test_probes_have_trajectories_and_no_contexts(monkeypatch):
    model = tiny.bridge("gpt2")
    update = random_update(model)
    probes = [edit.Probe(role="consequence", text="The Louvre is in", new="Rome", old="Paris")]
    found = edit.old_fact_residue(model, update, probes, roles="consequence", **QUIET)
    assert found.contexts.empty
    assert "Give the request" in found.info["left_out"]["contexts"]
    assert np.isnan(found.said_again())
    found.plot()
    with pytest.raises(locate.FactError, match="roles: no probe is edit or paraphrase or alias; these are consequence"):
        edit.old_fact_residue(model, update, probes)
    with pytest.raises(locate.FactError, match="roles: there are no probes of role 'edits'"):
        edit.old_fact_residue(model, update, probes, roles="edits")
    with pytest.raises(locate.FactError, match="contexts: 'a' is empty"):
        edit.old_fact_residue(model, update, REQUEST, contexts={"a": ""})

    def refused(*args, **options):
        raise locate.ModelError("its stream cannot be told apart")

    monkeypatch.setattr(room, "logit_attribution", refused)
    found = edit.old_fact_residue(model, update, probes, roles="consequence", **QUIET)
    assert found.info["left_out"]["writers"] == "its stream cannot be told apart"
    assert "written" not in found.data
