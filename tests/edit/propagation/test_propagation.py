"""Propagation against a literal exchange of states, one whole pass per site."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import edit
import locate
from edit.changes.figures import plot_footprint
from edit.propagation import asking
from edit.propagation.sides import Sides
from locate.model.weights import down_projection
from tests import tiny
from tests.sampling import slow

ARCHITECTURES = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "olmo2"]
HOOKS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}
HEAD = 1
LAYER = 1


def random_update(model, layer=LAYER, seed=0, size=0.5):
    projection = down_projection(model, layer)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = projection.parameter.shape
    left = size * torch.randn(rows, 1, generator=generator)
    right = torch.randn(1, columns, generator=generator)
    return edit.WeightUpdate.make(
        model, {projection.name: edit.LowRank(left=left, right=right)}, method="random", info={}
    )


@pytest.fixture
def fact():
    return locate.Fact(
        prompt="I know that {} is located in the city of", subject="The Eiffel Tower",
        target="Paris", target_new="Rome",
        paraphrases=("To visit {}, fly to",), neighbours=("The Louvre is in",),
        other_relations=(locate.OtherRelation(prompt="{} was built by", target="Europe"),),
        consequences=(locate.Consequence(prompt="{} is in the country of", target="Italy", target_before="France"),),
    )  # fmt: skip


def literal_mediation(model, update, probe, kind, position, layer):
    """(lost, gained) at one site, by whole passes and TransformerLens hooks alone; of heads for one of them."""
    tokens = torch.tensor(model.tokenizer(probe.text)["input_ids"])[None]
    new = model.tokenizer(" " + probe.new)["input_ids"][0]
    old = model.tokenizer(" " + probe.old)["input_ids"][0]
    name = f"blocks.{layer}.{HOOKS.get(kind, 'attn.hook_z')}"

    def run(hooks=()):
        with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
            logits = model(tokens)[0, -1]
        return float(logits[new] - logits[old])

    def record():
        seen = []
        run([(name, lambda value, hook: seen.append(value.clone()))])
        return seen[0]

    def patch(source):
        def hook(value, hook):
            value = value.clone()
            if kind == "attn_head":
                value[:, position, HEAD] = source[:, position, HEAD]
            elif kind == "heads":
                value[:, :, HEAD] = source[:, :, HEAD]
            else:
                value[:, position] = source[:, position]
            return value

        return run([(name, hook)])

    base, base_state = run(), record()
    with update.applied(model):
        edited, edited_state = run(), record()
        lost = edited - patch(base_state)
    return lost, patch(edited_state) - base


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=slow) if kind in ("gptj", "olmo2") else kind for kind in ARCHITECTURES]
)
def test_mediation_equals_the_literal_exchange(kind, fact):
    model = tiny.bridge(kind)
    update = random_update(model)
    probes = edit.probes_for(edit.EditRequest(fact))[:2]
    flow = edit.mediate(model, update, probes, kinds=(*HOOKS, "attn_head", "heads"), progress=False)
    largest = 0.0
    for index, probe in enumerate(probes):
        length = len(flow.tokens[index])
        for site in (*HOOKS, "attn_head", "heads"):
            of_head = {"head": HEAD} if "head" in site else {}
            for position in [None] if site == "heads" else (0, 5, length - 1):
                at = {} if position is None else {"position": position}
                for layer in (LAYER, LAYER + 1, model.cfg.n_layers - 1):
                    lost, gained = literal_mediation(model, update, probe, site, position, layer)
                    own = flow.of_kind(site).sel(probe=index, layer=layer, **at, **of_head)
                    assert float(own.sel(direction="lost")) == pytest.approx(lost, abs=2e-4)
                    assert float(own.sel(direction="gained")) == pytest.approx(gained, abs=2e-4)
                    largest = max(largest, abs(gained), abs(lost))
    assert largest > 0.01  # otherwise nothing was compared


def test_the_last_residual_carries_everything_and_earlier_layers_nothing(fact):
    model = tiny.bridge("llama")
    flow = edit.mediate(model, random_update(model), edit.EditRequest(fact), progress=False)
    last = flow.share(0).sel(kind="resid", layer=model.cfg.n_layers - 1, position=len(flow.tokens[0]) - 1)
    assert last.values == pytest.approx([1.0, 1.0], abs=1e-4)
    assert np.all(flow.mediation.sel(probe=0, layer=0).values[..., : len(flow.tokens[0])] == 0)
    assert flow.layers == (LAYER,)


def test_totals_are_the_models_own_answers(fact):
    model = tiny.bridge("gpt2")
    update = random_update(model)
    flow = edit.mediate(model, update, edit.EditRequest(fact), roles=(), progress=False)
    assert flow.totals["role"].tolist() == ["edit", "paraphrase", "consequence", "same subject", "neighbour"]
    for _, row in flow.totals.iterrows():
        ids = torch.tensor(model.tokenizer(row["text"])["input_ids"])[None]
        new, old = (model.tokenizer(" " + row[name])["input_ids"][0] for name in ("new", "old"))
        with torch.no_grad():
            base = model(ids)[0, -1]
            with update.applied(model):
                changed = model(ids)[0, -1]
        assert row["base"] == pytest.approx(float(base[new] - base[old]), abs=1e-5)
        assert row["total_effect"] == pytest.approx(
            float(changed[new] - changed[old] - base[new] + base[old]), abs=1e-5
        )
        assert row["edited_logprob_new"] == pytest.approx(float(changed.log_softmax(-1)[new]), abs=1e-5)
        assert row["base_answer"] == model.tokenizer.decode([int(base.argmax())])
    assert np.isnan(flow.mediation.values).all()


@pytest.mark.parametrize("applied", [False, True])
def test_the_model_is_left_as_it_came(fact, applied):
    model = tiny.bridge("llama")
    update = random_update(model)
    if applied:
        update.apply(model)
    before = {name: p.clone() for name, p in locate.model.weights.hf_parameters(model).items()}
    flow = edit.mediate(model, update, edit.EditRequest(fact), kinds=["mlp"], progress=False)
    assert update.is_applied(model) is applied
    assert all(torch.equal(p, before[name]) for name, p in locate.model.weights.hf_parameters(model).items())
    assert flow.totals.loc[0, "total_effect"] != 0


def test_a_request_is_encoded_once_and_applied_once(fact, monkeypatch):
    model = tiny.bridge("llama")
    update, texts, applied = random_update(model), [], []
    encode, apply = asking.encode_text, edit.WeightUpdate.apply
    monkeypatch.setattr(asking, "encode_text", lambda model, text: texts.append(text) or encode(model, text))
    monkeypatch.setattr(edit.WeightUpdate, "apply", lambda self, model: applied.append(self) or apply(self, model))
    flow = edit.mediate(model, update, edit.EditRequest(fact), kinds=["mlp"], progress=False)
    assert texts == flow.totals["text"].tolist()
    assert applied == [update]


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt_neox", marks=slow)])
def test_another_model_is_as_its_update(fact, kind):
    model = tiny.bridge(kind)
    update = random_update(model)
    other = locate.load_model(tiny.hf_model(kind), tiny.tokenizer())
    update.apply(other)
    request = edit.EditRequest(fact)
    how = {"roles": "edit", "progress": False}
    by_update, by_model = edit.mediate(model, update, request, **how), edit.mediate(model, other, request, **how)
    xr.testing.assert_equal(by_update.data, by_model.data)
    assert by_update.totals.equals(by_model.totals)
    assert (by_model.layers, by_model.info["method"]) == ((LAYER,), "another model")
    sides = Sides.of(model, other)
    base, edited = sides.runs(locate.encode_fact(model, fact).tokens[None])
    assert edited.residuals[LAYER] is base.residuals[LAYER]  # what comes before the difference is run once
    assert edited.residuals[LAYER + 1] is not base.residuals[LAYER + 1]


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt_neox", marks=slow), pytest.param("gpt2", marks=slow)])
def test_another_model_may_differ_anywhere(fact, kind):
    """Queries, norms and embeddings: whatever a fine-tune changes."""
    model, other = tiny.bridge(kind), locate.load_model(tiny.hf_model(kind, seed=1), tiny.tokenizer())
    flow = edit.mediate(model, other, edit.EditRequest(fact), roles="edit", progress=False)
    ids = torch.tensor(model.tokenizer(fact.text)["input_ids"])[None]
    new, old = (model.tokenizer(" " + one)["input_ids"][0] for one in ("Rome", "Paris"))
    with torch.no_grad():
        for name, one in (("base", model), ("edited", other)):
            logits = one(ids)[0, -1]
            assert flow.totals.loc[0, name] == pytest.approx(float(logits[new] - logits[old]), abs=1e-4)
    # Both ways the last state brings all but what the readout's own weights do.
    assert flow.layers == tuple(range(model.cfg.n_layers))
    assert np.isfinite(flow.share(0).values).all()


def test_a_probe_that_nothing_reaches_has_no_shares(fact, tmp_path):
    """The embeddings of the edited prompt's tokens, of which the neighbour has none."""
    model, asked = tiny.bridge("llama"), edit.probes_for(edit.EditRequest(fact))
    neighbour = asked[-1]
    ids = [set(model.tokenizer(one)["input_ids"]) for one in (fact.text, neighbour.text)]
    other = tiny.hf_model("llama")
    with torch.no_grad():
        other.get_input_embeddings().weight[list(ids[0] - ids[1])] += 1.0
    other = locate.load_model(other, tiny.tokenizer())
    flow = edit.mediate(model, other, [asked[0], neighbour], roles=("edit", "neighbour"), progress=False)
    assert flow.totals["total_effect"].tolist() == [flow.totals.loc[0, "total_effect"], 0.0] != [0.0, 0.0]
    assert flow.best().position is not None
    assert flow.share(1).isnull().all()
    with pytest.raises(locate.SiteError, match="No state of kind 'mlp' carries the change to probe 1 by itself"):
        flow.best(probe=1)
    assert flow.retention().loc["neighbour", "share"] == 0.0
    flow.plot(probe=1)
    turned_probes = [replace(neighbour, role="edit"), replace(asked[0], role="paraphrase")]
    turned = edit.mediate(model, other, turned_probes,
                          kinds=["mlp"], progress=False)  # fmt: skip
    assert turned.retention()["share"].isnull().all()
    assert np.isnan(turned.summary()["largest mlp, gained"])
    with pytest.raises(locate.UpdateError, match="does nothing to the answer of 'The Louvre is in'"):
        edit.mediator_reuse(model, other, turned_probes, progress=False)
    mapped = edit.flow_map(model, other, [asked[0], neighbour], flow=flow, steps=1, progress=False)
    assert mapped.texts == (fact.text,)
    with pytest.raises(locate.LocateError, match="no mediated probe of the roles neighbour that the change reaches"):
        edit.flow_map(model, other, [asked[0], neighbour], flow=flow, roles="neighbour", progress=False)


def test_models_that_do_not_go_together_are_refused(fact):
    model, request = tiny.bridge("llama"), edit.EditRequest(fact)
    with pytest.raises(locate.UpdateError, match="leaves all weights as they are"):
        edit.mediate(model, tiny.bridge("llama"), request)
    with pytest.raises(locate.ModelError, match="only one of them has"):
        edit.mediate(model, tiny.bridge("gpt2"), request)
    wide = AutoConfig.for_model("llama", **{**tiny.CONFIGS["llama"], "intermediate_size": 96})
    other = locate.load_model(AutoModelForCausalLM.from_config(wide), tiny.tokenizer())
    with pytest.raises(locate.ModelError, match=r"mlp.* has shape \(80, 32\) in the first and \(96, 32\)"):
        edit.mediate(model, other, request)
    half = locate.load_model(tiny.hf_model("llama", dtype=torch.bfloat16), tiny.tokenizer())
    with pytest.raises(locate.ModelError, match=r"has dtype torch.float32 in the first and torch.bfloat16"):
        edit.mediate(model, half, request)
    none = edit.WeightUpdate.make(
        model, {down_projection(model, 1).name: random_update(model, size=0.0).deltas[down_projection(model, 1).name]},
        method="nothing",
    )  # fmt: skip
    with pytest.raises(locate.UpdateError, match="by nothing leaves all weights as they are"):
        edit.mediate(model, none, request)


def test_tokenizers_must_spell_probes_alike(fact):
    model = tiny.bridge("llama")
    raw = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    raw["model"]["merges"] = []  # each byte by itself
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)))
    other = locate.load_model(tiny.hf_model("llama", seed=1), tokenizer)
    with pytest.raises(locate.FactError, match=r"The two models spell .* in other tokens"):
        edit.mediate(model, other, edit.EditRequest(fact))


def test_a_saved_propagation_comes_back(fact, tmp_path):
    model = tiny.bridge("llama")
    flow = edit.mediate(model, random_update(model), edit.EditRequest(fact), progress=False)
    again = edit.load_propagation(flow.save(tmp_path / "flow.nc"))
    xr.testing.assert_equal(again.mediation, flow.mediation)
    assert again.totals.equals(flow.totals)
    assert (again.tokens, again.layers, again.info) == (flow.tokens, flow.layers, flow.info)
    (tmp_path / "bad.nc").write_text("not a netCDF file")
    with pytest.raises(locate.DataError, match="is not a saved propagation"):
        edit.load_propagation(tmp_path / "bad.nc")
    with pytest.raises(locate.DataError, match="There is no propagation file"):
        edit.load_propagation(tmp_path / "none.nc")


def test_the_table_has_one_row_per_state(fact):
    model = tiny.bridge("llama")
    flow = edit.mediate(model, random_update(model), edit.EditRequest(fact), roles=("edit",), progress=False)
    table = flow.to_dataframe()
    assert len(table) == 2 * (3 * len(flow.tokens[0]) + model.cfg.n_heads) * model.cfg.n_layers
    assert table["head"].notna().sum() == table["position"].isna().sum() == 2 * model.cfg.n_heads * model.cfg.n_layers
    assert set(table["role"]) == {"edit"}
    row = table.iloc[0]
    assert row["token"] == flow.tokens[0][row["position"]]


def test_consequences_belong_to_their_own_counterfactual(fact):
    roles = [probe.role for probe in edit.probes_for(edit.EditRequest(fact, "Europe"))]
    assert roles == ["edit", "paraphrase", "same subject", "neighbour"]


def test_an_old_answer_that_is_not_known_is_the_unedited_models():
    model = tiny.bridge("llama")
    probe = edit.Probe(role="one-hop", text="The Louvre is in", new="Rome")
    (known,) = edit.with_model_answers(model, [probe])
    update = random_update(model, size=5.0)
    with update.applied(model):
        (other,) = edit.with_model_answers(model, [probe])
        flow = edit.mediate(model, update, [probe], kinds=["mlp"], progress=False)
    assert flow.totals["old"].tolist() == [known.old] != [other.old]
    assert flow.info["roles"] == ["edit", "paraphrase", "alias", "one-hop", "two-hop", "consequence"]
    assert flow.mediation.notnull().any()


def test_paraphrases_that_are_written_out_are_asked_too(fact):
    request = edit.EditRequest(fact, paraphrase_texts=("It was in",))
    asked = [probe.text for probe in edit.probes_for(request) if probe.role == "paraphrase"]
    assert asked == [*(fact.fill(template) for template in fact.paraphrases), "It was in"]


def test_bad_probes_are_explained(fact, tmp_path):
    model = tiny.bridge("llama")
    update = random_update(model)
    with pytest.raises(locate.FactError, match="role: must be one of edit, paraphrase"):
        edit.Probe(role="edits", text="a", new="b", old="c")
    with pytest.raises(locate.FactError, match="text: is empty"):
        edit.Probe(role="edit", text=" ", new="b", old="c")
    with pytest.raises(locate.FactError, match="There are no probes"):
        edit.mediate(model, update, [])
    with pytest.raises(locate.FactError, match="roles: there are no probes of role 'edits'"):
        edit.mediate(model, update, edit.EditRequest(fact), roles=("edits",))
    twins = edit.Probe(role="edit", text="The Louvre is in", new="Paris", old="Paris too")
    with pytest.raises(locate.FactError, match="one begins with all of the other"):
        edit.mediate(model, update, [twins])
    alike = edit.EditRequest(locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris"), "Paris too")
    with pytest.raises(locate.FactError, match="one begins with all of the other"):
        edit.mediate(model, update, alike)
    with pytest.raises(locate.FactError, match="one begins with all of the other"):
        edit.run_demo(model, alike, tmp_path, report=lambda line: pytest.fail("it began"))


def test_probes_that_cannot_be_told_apart_are_left_out_aloud(fact):
    model = tiny.bridge("llama")
    follows = (locate.Consequence(prompt="{} is in", target="Paris too", target_before="Paris"),)
    request = edit.EditRequest(locate.Fact(prompt=fact.prompt, subject=fact.subject, target="Paris", target_new="Rome",
                                           consequences=follows))  # fmt: skip
    with pytest.warns(UserWarning, match="Left out of the propagation.*one begins with all of the other"):
        flow = edit.mediate(model, random_update(model), request, roles=(), progress=False)
    assert flow.totals["role"].tolist() == ["edit"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit.mediate(model, random_update(model), edit.EditRequest(fact), roles=(), progress=False)
    one = edit.mediate(model, random_update(model), edit.EditRequest(fact), roles="edit", progress=False)
    assert one.info["roles"] == ["edit"]


def test_the_figure_shows_every_probe_and_kind(fact):
    model = tiny.bridge("llama")
    flow = edit.mediate(model, random_update(model), edit.EditRequest(fact), progress=False)
    for direction in ("gained", "lost"):
        figure = flow.plot(direction=direction)
        axes = [one for sub in figure.subfigs for one in sub.axes]
        assert {"residual state", "attention output", "MLP output"} <= {one.get_title() for one in axes}
        labels = [tick.get_text() for one in axes for tick in one.get_yticklabels()]
        assert sum(text.endswith("[Rome / Paris]") for text in labels) == 4
        assert any(text.endswith("[Italy / France]") for text in labels)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_footprint_is_drawn_over_neurons(kind):
    model = tiny.bridge(kind)
    down = down_projection(model, LAYER)
    # Of one neuron and two, the second half as much.
    left, right = torch.ones(2, model.cfg.d_model), torch.zeros(2, down.key_size)
    right[0, 3], right[1, 5] = 2.0, 1.0
    delta = edit.LowRank(left=right.T, right=left) if down.transposed else edit.LowRank(left=left.T, right=right)
    update = edit.WeightUpdate.make(model, {down.name: delta}, method="two neurons")
    (line,) = plot_footprint(model, update).axes[0].lines
    shares, parts = line.get_data()
    assert shares[0] == pytest.approx(1 / down.key_size)
    assert list(parts[:3]) == pytest.approx([0.8, 1.0, 1.0])


def test_tokens_that_both_answers_begin_with_join_the_prompt(fact):
    model = tiny.bridge("llama")
    probe = edit.Probe(role="edit", text="The Louvre is in", new="the city of Rome", old="the city of Paris")
    flow = edit.mediate(model, random_update(model), [probe], roles=(), progress=False)
    assert "".join(flow.tokens[0]).startswith("The Louvre is in the city of")
    ids = torch.tensor(model.tokenizer("The Louvre is in the city of")["input_ids"])
    new, old = model.tokenizer(" Rome")["input_ids"], model.tokenizer(" Paris")["input_ids"]
    same = next(i for i, (a, b) in enumerate(zip(new, old, strict=False)) if a != b)
    with torch.no_grad():
        logits = model(torch.cat([ids, torch.tensor(new[:same], dtype=torch.long)])[None])[0, -1]
    assert flow.totals.loc[0, "base"] == pytest.approx(float(logits[new[same]] - logits[old[same]]), abs=1e-5)


def test_what_was_not_measured_cannot_be_drawn(fact):
    model = tiny.bridge("llama")
    flow = edit.mediate(model, random_update(model), edit.EditRequest(fact), kinds=["mlp"], progress=False)
    with pytest.raises(locate.SiteError, match=r"mediation of probe 4 \(neighbour\) was not measured"):
        flow.plot(probe=4)
    for draw in (flow.share, lambda probe: flow.plot(probe=probe)):
        with pytest.raises(locate.SiteError, match="There is no probe 9: there are 5"):
            draw(9)
    with pytest.raises(locate.SiteError, match="direction: must be one of lost, gained, found 'kept'"):
        flow.plot(direction="kept")
    with pytest.raises(locate.SiteError, match=r"States of kind .attn. were not exchanged; mlp were"):
        flow.best("attn")
