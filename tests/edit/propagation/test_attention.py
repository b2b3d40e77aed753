"""Attention before and after an edit, and patterns that are held, against whole passes with plain hooks."""

import numpy as np
import pytest
import torch
import xarray as xr

import edit
import locate
from tests import tiny
from tests.edit.propagation.updates import FACT, REQUEST, difference, logits_of, random_update
from tests.sampling import slow

# Grouped queries; parallel blocks; norms after the modules and between queries and keys; sliding windows.
KINDS = ["llama", "gpt_neox", *(pytest.param(kind, marks=slow) for kind in ("gpt2", "olmo2", "gemma3_text"))]


def patterns_of(model):
    """Each layer's, in a plain pass."""
    found = {}
    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", lambda value, hook, layer=layer: found.update({layer: value.clone()}))
        for layer in range(model.cfg.n_layers)
    ]
    with model.hooks(fwd_hooks=hooks):
        logits = logits_of(model, FACT.text)
    return found, logits


def held(model, patterns, heads, queries):
    """The logit difference with some heads' patterns held at values from another pass."""

    def hold(layer):
        def put(value, hook):
            value = value.clone()
            for own in (head for at, head in heads if at == layer):
                value[:, own, queries] = patterns[layer][:, own, queries]
            return value

        return put

    hooks = [(f"blocks.{layer}.attn.hook_pattern", hold(layer)) for layer in {layer for layer, _ in heads}]
    with model.hooks(fwd_hooks=hooks):
        return difference(model, logits_of(model, FACT.text))


@pytest.mark.parametrize("kind", KINDS)
def test_drift_and_masks_are_those_of_plain_passes(kind):
    model = tiny.bridge(kind)
    update = random_update(model, 1)
    base, plain = patterns_of(model)
    with update.applied(model):
        edited, changed = patterns_of(model)
    start, stop = locate.encode_fact(model, FACT).subject_span
    last = {name: torch.stack([one[layer][0, :, -1] for layer in sorted(one)])
            for name, one in (("base", base), ("edited", edited))}  # fmt: skip
    for queries, rows in (("all", slice(None)), ("last", slice(-1, None))):
        found = edit.attention_drift(
            model, update, REQUEST, roles="edit", masked=[3], queries=queries, by="subject", random=1,
            effects=False, progress=False,
        )  # fmt: skip
        for name, own in last.items():
            sums = own[..., start:stop].sum(-1), own[..., 0], own.sum(-1) - own[..., start:stop].sum(-1) - own[..., 0]
            table = found.data[name].sel(probe=0).values
            np.testing.assert_allclose(table, torch.stack(sums).numpy(), atol=1e-5)
        moved = last["edited"] - last["base"]
        np.testing.assert_allclose(found.data["total"][0], moved.abs().sum(-1) / 2, atol=1e-5)
        assert found.data["ends"].values[0] == pytest.approx([difference(model, one) for one in (plain, changed)],
                                                             abs=1e-4)  # fmt: skip
        drift = moved[..., start:stop].sum(-1).abs().flatten()
        most = [divmod(int(place), model.cfg.n_heads) for place in drift.topk(3).indices]
        every = [(layer, head) for layer in range(2, model.cfg.n_layers) for head in range(model.cfg.n_heads)]
        for mask, heads in ((3, most), (-1, every)):
            own = found.data["masked"].sel(probe=0, mask=mask, sample=0)
            with update.applied(model):
                lost = held(model, base, heads, rows)
            gained = held(model, edited, heads, rows)
            assert own.values == pytest.approx([lost, gained], abs=2e-4)
        assert abs(lost - difference(model, changed)) > 1e-3  # otherwise nothing was compared


def test_shares_correlations_and_the_best_head_are_as_told():
    model = tiny.bridge("llama")
    update = random_update(model, 1)
    found = edit.attention_drift(model, update, REQUEST, masked=[2], random=2, progress=False)
    base, edited = found.data["ends"].values.T
    masked = found.data["masked"].sel(mask=2, sample=0)
    np.testing.assert_allclose(
        found.undone().sel(mask=2, sample=0, direction="lost"),
        (edited - masked.sel(direction="lost")) / (edited - base),
    )
    np.testing.assert_allclose(
        found.undone().sel(mask=2, sample=0, direction="gained"),
        (masked.sel(direction="gained") - base) / (edited - base),
    )
    flow = edit.mediate(model, update, REQUEST, kinds="heads", progress=False)
    np.testing.assert_allclose(found.data["effect"], flow.heads.sel(probe=[0, 1]), atol=1e-5)
    table = found.correlations()
    there = found.data["total"].sel(probe=1).values > 0
    ranks = [
        one.argsort().argsort()
        for one in (
            found.drift.sel(probe=1, key="first").values[there],
            found.data["effect"].sel(probe=1, direction="lost").values[there],
        )
    ]
    own = table.query("probe == 1 and key == 'first' and direction == 'lost'")["spearman"].item()
    assert own == pytest.approx(np.corrcoef(*ranks)[0, 1])
    best = found.best()
    mean = abs(found.drift.sel(key="subject").mean("probe"))
    assert float(mean.sel(layer=best.layer, head=best.head)) == float(mean.max())
    assert [row["role"] for row in found.probes] == ["edit", "paraphrase"]
    assert found.left_out == {"The Louvre is in": "of role neighbour"}
    assert len(found.to_dataframe()) == 2 * model.cfg.n_layers * model.cfg.n_heads


def test_probes_need_a_subject_behind_the_first_token():
    model = tiny.bridge("llama")
    update, probes = random_update(model, 1), edit.probes_for(REQUEST)
    with pytest.raises(locate.FactError, match="these probes do not say whom they are about; give subject="):
        edit.attention_drift(model, update, probes)
    with pytest.raises(locate.FactError, match=r"'The Louvre is in' does not name The Eiffel Tower"):
        edit.attention_drift(model, update, probes, subject="The Eiffel Tower", roles="neighbour")
    first = model.tokenizer.decode(model.tokenizer("The Louvre is in")["input_ids"][:1])
    probe = edit.Probe(role="edit", text=f"{first} is in", new="Rome", old="Paris")
    with pytest.raises(locate.FactError, match="is its first token, where attention rests"):
        edit.attention_drift(model, update, [probe], subject=first)
    found = edit.attention_drift(
        model, update, probes, subject="The Louvre", roles=["edit", "neighbour"], masked=[], effects=False
    )
    assert found.left_out[FACT.text] == "does not name The Louvre"
    with pytest.raises(locate.LocateError, match="What heads carry was not measured"):
        found.correlations()


def test_bad_input_is_explained():
    model = tiny.bridge("llama")
    update = random_update(model, 1)
    for wrong, message in (
        ({"masked": [0]}, r"masked: give numbers of heads from 1 on, found \[0\]"),
        ({"by": "last"}, "no drift to 'last'"),
        ({"queries": "first"}, "queries: hold those of 'all' tokens or of the 'last'"),
        ({"random": -1}, "random: must be 0 or more"), ({"roles": "edits"}, "no probes of role 'edits'"),
    ):  # fmt: skip
        with pytest.raises(locate.LocateError, match=message):
            edit.attention_drift(model, update, REQUEST, **wrong)
    late = random_update(model, model.cfg.n_layers - 1)
    with pytest.raises(locate.UpdateError, match="leaves all that these prompts' last tokens attend to as it is"):
        edit.attention_drift(model, late, REQUEST, effects=False)


def test_layers_without_patterns_are_refused_by_name():
    model = tiny.bridge("qwen3_next")
    with pytest.raises(locate.ModelError, match=r"Qwen3Next\w* has no attention patterns in layers 0"):
        edit.attention_drift(model, random_update(tiny.bridge("llama"), 1), REQUEST)
    model = tiny.bridge("gptj")
    with pytest.raises(locate.SiteError, match=r"GPTJ.* shows 'blocks.0.attn.hook_pattern' only after it was used"):
        edit.attention_drift(model, random_update(model, 1), REQUEST)


def test_a_saved_drift_comes_back(tmp_path):
    model = tiny.bridge("llama")
    found = edit.attention_drift(model, random_update(model, 1), REQUEST, masked=[1], progress=False)
    again = edit.load_attention_drift(found.save(tmp_path / "drift.nc"))
    xr.testing.assert_identical(again.data.load(), found.data)
    assert (again.probes, again.left_out, again.info) == (found.probes, found.left_out, found.info)
    assert {"lost", "gained", "total", "edited_subject"} <= set(again.to_dataframe())
    again.plot(key="total")
