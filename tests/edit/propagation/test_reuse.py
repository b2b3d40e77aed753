"""Re-use of mediators against literal exchanges of components, in whole passes."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr

import edit
import locate
from tests import tiny
from tests.edit.propagation.test_propagation import random_update
from tests.figures import check_fits
from tests.sampling import slow

FACT = locate.Fact(
    prompt="I know that {} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    paraphrases=("To visit {}, fly to",), neighbours=("The Louvre is in",),
    consequences=(locate.Consequence(prompt="{} is in the country of", target="Italy", target_before="France"),),
)  # fmt: skip
REQUEST = edit.EditRequest(FACT)
ASKED = [one for one in edit.probes_for(REQUEST) if one.role != "neighbour"]
HOW = {"top": 4, "samples": 3, "seed": 2, "progress": False}


def literal(model, update, probe, places):
    """(lost, gained) when components, by hook point and head or None, change places: TransformerLens hooks alone."""
    tokens = torch.tensor(model.tokenizer(probe.text)["input_ids"])[None]
    new, old = (model.tokenizer(" " + one)["input_ids"][0] for one in (probe.new, probe.old))

    def run(hooks=()):
        with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
            logits = model(tokens)[0, -1]
        return float(logits[new] - logits[old])

    def record():
        seen = {}
        hooks = [(name, lambda value, hook, name=name: seen.update({name: value.clone()})) for name, _ in places]
        return run(hooks), seen

    def patched(source):
        def change(value, name, head):
            value = value.clone()
            if head is None:
                value[:] = source[name]
            else:
                value[:, :, head] = source[name][:, :, head]
            return value

        return run([
            (name, lambda value, hook, name=name, head=head: change(value, name, head)) for name, head in places
        ])  # fmt: skip

    base, base_states = record()
    with update.applied(model):
        edited, edited_states = record()
        lost = edited - patched(base_states)
    return lost, patched(edited_states) - base


def place(name):
    if name.startswith("m"):
        return f"blocks.{name[1:]}.hook_mlp_out", None
    layer, head = name[1:].split(".h")
    return f"blocks.{layer}.attn.hook_z", int(head)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", pytest.param("gpt_neox", marks=slow), pytest.param("falcon", marks=slow)]
)
def test_effects_are_literal_exchanges(kind):
    model = tiny.bridge(kind)
    update = random_update(model)
    found = edit.mediator_reuse(model, update, REQUEST, **HOW)
    assert found.totals["text"].tolist() == [one.text for one in ASKED]
    chosen = [name for name, one in zip(found.names, found.data["chosen"].values, strict=True) if one]
    assert len(chosen) == 4
    for index, probe in enumerate(ASKED):
        for name in ("m2", "m3", "a2.h1", "a3.h3"):
            _, gained = literal(model, update, probe, [place(name)])
            own = found.data["effect"].values[index, found.names.index(name)]
            assert own == pytest.approx(gained, abs=2e-4)
        lost, gained = literal(model, update, probe, [place(name) for name in chosen])
        assert float(found.data["joint"].sel(probe=index, direction="lost")) == pytest.approx(lost, abs=2e-4)
        assert float(found.data["joint"].sel(probe=index, direction="gained")) == pytest.approx(gained, abs=2e-4)
    # Random sets are as many heads and MLPs as were chosen, and the same on all probes.
    kinds, draw = found.data["kind"].values, np.random.default_rng(2)
    counts = [(kind, int((kinds[found.data["chosen"].values] == kind).sum())) for kind in ("mlp", "attn_head")]
    first = [found.names[i] for kind, n in counts for i in draw.choice(np.flatnonzero(kinds == kind), n, replace=False)]
    lost, gained = literal(model, update, ASKED[2], [place(name) for name in first])
    assert found.data["random"].sel(probe=2, sample=0).values == pytest.approx([lost, gained], abs=2e-4)


@pytest.fixture(scope="module")
def llama():
    model = tiny.bridge("llama")
    return model, random_update(model)


@pytest.fixture(scope="module")
def found(llama):
    return edit.mediator_reuse(*llama, REQUEST, **HOW)


def test_the_edited_mlp_and_what_is_before_it_carry_nothing_on(llama, found):
    assert found.names == [
        *(f"m{layer}" for layer in (2, 3)),
        *(f"a{layer}.h{head}" for layer in (2, 3) for head in range(4)),
    ]
    assert found.info["layers"] == [1]
    # All mediators together and the edited MLP would be the whole edit; of an edit of the last layer there are none.
    model = llama[0]
    with pytest.raises(locate.SiteError, match=r"0 heads and MLPs only pass the change on: it is in layers 3"):
        edit.mediator_reuse(model, random_update(model, layer=3), REQUEST, progress=False)


def test_several_edited_layers_leave_out_each_ones_own_mlp(llama):
    model = llama[0]
    deltas = {name: one for layer in (1, 2) for name, one in random_update(model, layer=layer).deltas.items()}
    both = edit.WeightUpdate.make(model, deltas, method="two layers")
    found = edit.mediator_reuse(model, both, REQUEST, top=2, samples=1, progress=False)
    assert found.names == ["m3", *(f"a{layer}.h{head}" for layer in (2, 3) for head in range(4))]


def test_the_table_is_its_definitions(found):
    table, effects, chosen = found.table(), found.data["effect"].values, found.data["chosen"].values
    assert table["role"].tolist() == [one.role for one in ASKED]
    sign = np.sign(table["total_effect"])
    assert set(np.flatnonzero(chosen)) == set(np.argsort(-effects[0] * sign[0])[:4])
    for index, row in table.iterrows():
        assert row["rank_correlation"] == pytest.approx(spearmanr(effects[0], effects[index]).statistic)
        assert row["cosine"] == pytest.approx(np.corrcoef([effects[0], effects[index]])[0, 1], abs=2)
        cosine = effects[0] @ effects[index] / np.linalg.norm(effects[0]) / np.linalg.norm(effects[index])
        assert row["cosine"] == pytest.approx(cosine)
        own = set(np.argsort(-effects[index] * sign[index])[:4])
        assert row["overlap"] == len(own & set(np.flatnonzero(chosen))) / 4
        assert row["answered"] == (found.totals.loc[index, "edited"] > 0)
        assert row["gained"] == pytest.approx(
            float(found.data["joint"][index].sel(direction="gained")) / row["total_effect"]
        )
    mean = (effects[1:] * sign.to_numpy()[1:, None]).mean(0)
    best = found.names[max(np.flatnonzero(chosen), key=lambda place: mean[place])]
    site = found.best()
    assert place(best) == (site.hook, site.head)


def test_a_flow_spares_the_heads_and_must_fit(llama, found):
    model, update = llama
    flow = edit.mediate(model, update, REQUEST, kinds=["heads"], progress=False)
    again = edit.mediator_reuse(model, update, REQUEST, flow=flow, **HOW)
    xr.testing.assert_allclose(again.data, found.data, atol=1e-5)
    with pytest.raises(locate.UpdateError, match="flow: is of another change"):
        edit.mediator_reuse(model, random_update(model, seed=5), REQUEST, flow=flow, progress=False)
    of_edit = edit.mediate(model, update, REQUEST, kinds="heads", roles="edit", progress=False)
    with pytest.raises(locate.FactError, match="flow: has no heads' effects on 'To visit"):
        edit.mediator_reuse(model, update, REQUEST, flow=of_edit, progress=False)


def test_it_is_saved_and_drawn(found, tmp_path):
    again = edit.load_mediator_reuse(found.save(tmp_path / "reuse.nc"))
    xr.testing.assert_equal(again.data, found.data)
    assert again.table().equals(found.table())
    assert again.info == found.info
    assert len(again.to_dataframe()) == 3 * len(found.names)
    check_fits(again.plot())
    check_fits(again.plot(figsize=(3.4, 2.6), direction="lost"))


def test_bad_input(llama):
    model, update = llama
    with pytest.raises(locate.FactError, match="No probe is the edit's own prompt"):
        edit.mediator_reuse(model, update, ASKED[1:])
    with pytest.raises(locate.FactError, match="There is no probe beside the edit's own prompt"):
        edit.mediator_reuse(model, update, ASKED[:1])
    for top in (0, 10, 2.5):
        with pytest.raises(locate.SiteError, match=f"top: 10 heads and MLPs pass the change on; give 1 to 9, .*{top}"):
            edit.mediator_reuse(model, update, REQUEST, top=top, progress=False)
    with pytest.raises(locate.SiteError, match="samples: must be 1 or more"):
        edit.mediator_reuse(model, update, REQUEST, samples=0)
