"""Linear relations against their definition by whole passes; examples, intervals, storage, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import locate
from edit.methods.where import layers_at
from locate import FactError, LocateError, ModelError, SiteError
from locate.relations.asking import Asked, split
from locate.relations.judging import EDITS
from locate.relations.maps import MAPS
from tests import tiny
from tests.sampling import sampled

ASK = "{}:"  # so short that a model of random weights answers subjects differently
PLACES = {
    "Paris": "France", "Rome": "Italy", "London": "England", "The Louvre": "France", "Big Ben": "England",
    "The Colosseum": "Italy", "Europe": "Europe",
}  # fmt: skip
FACTS = [locate.Fact(prompt=ASK, subject=one, target=other, relation="countries") for one, other in PLACES.items()]
ASKED = {"n": 2, "knows": False, "progress": False}
LAYERS, BETA, RANK = [0, 1], 1.5, 9
slow = pytest.mark.slow


class Literal:
    """Everything by whole passes over one prompt, as the method is defined."""

    def __init__(self, model, to_layer):
        self.model, self.to_layer = model, to_layer
        self.output = "ln_final.hook_in" if to_layer == model.cfg.n_layers - 1 else f"blocks.{to_layer + 1}.hook_in"

    def run(self, prompt, changes=()):
        """The states after each layer, and the logits at the end; changes are (hook, position, vector)."""
        kept = []

        def put(position, vector):
            def hook(value, hook):
                return torch.cat([value[:, :position], vector[None, None], value[:, position + 1 :]], dim=1)

            return hook

        def keep(value, hook):
            kept.append(value)

        hooks = [(name, put(position, vector)) for name, position, vector in changes]
        names = [*(f"blocks.{layer}.hook_in" for layer in range(1, self.model.cfg.n_layers)), "ln_final.hook_in"]
        with self.model.hooks(fwd_hooks=[*hooks, *((name, keep) for name in names)]):
            logits = self.model(prompt.tokens[None])[0, -1]
        return [one[0] for one in kept[-len(names) :]], logits

    def terms(self, prompt, layer):
        """∂o/∂s, s and o at one example."""
        states, _ = self.run(prompt)
        place, name = prompt.last_subject_position, f"blocks.{layer + 1}.hook_in"
        s, o = states[layer][place].detach(), states[self.to_layer][-1].detach()

        def output(state):
            return self.run(prompt, [(name, place, state)])[0][self.to_layer][-1]

        return torch.autograd.functional.jacobian(output, s), s, o

    def says(self, prompt, name, position, vector):
        with torch.no_grad():
            return int(self.run(prompt, [(name, position, vector)])[1].argmax())


@pytest.mark.parametrize("to_layer", [3, pytest.param(2, marks=slow("the same through an earlier state"))])
@pytest.mark.parametrize("kind", sampled(["gpt2", "llama", "falcon", "gemma3_text", "olmo2"]))
def test_equals_its_definition_by_whole_passes(kind, to_layer):
    model = tiny.bridge(kind, dtype=torch.float64)
    how = {"beta": BETA, "rank": RANK, "to_layer": to_layer, **ASKED}
    found = locate.relation_linearity(model, FACTS, layers=LAYERS, **how)
    examples, tried = ([locate.Fact(**one) for one in found.info[part]] for part in ("examples", "held_out"))
    literal, own = Literal(model, to_layer), Asked.of(model, examples, examples).prompts
    asked = Asked.of(model, tried, examples).prompts
    runs = [literal.run(prompt) for prompt in asked]
    answers = [int(logits.argmax()) for _, logits in runs]
    assert [tiny.tokenizer().decode([answer]) for answer in answers] == found.info["answers"]
    assert len(set(answers)) > 1
    targets = found.data["other"].values
    assert [answers[other] != answer for other, answer in zip(targets, answers, strict=True)] == [True] * len(tried)
    for layer in LAYERS:
        terms = [literal.terms(prompt, layer) for prompt in own]
        slope = sum(slope for slope, _, _ in terms) / 2
        bias = sum(o - slope @ s for slope, s, o in terms) / 2
        fitted = locate.LinearRelation.fit(model, FACTS, layer=layer, **how)
        torch.testing.assert_close(fitted.estimate.jacobian, slope, atol=1e-8, rtol=1e-4)
        torch.testing.assert_close(fitted.estimate.bias, bias, atol=1e-8, rtol=1e-4)
        left, values, right = torch.linalg.svd(slope)
        inverse = sum(torch.outer(right[i], left[:, i]) / values[i] for i in range(RANK))
        (_, s1, o1), (_, s2, o2) = terms
        for index, (prompt, (states, _)) in enumerate(zip(asked, runs, strict=True)):
            s, place = states[layer][prompt.last_subject_position].detach(), prompt.last_subject_position
            along = ((s - (s1 + s2) / 2) @ (s1 - s2)) / ((s1 - s2) @ (s1 - s2))
            outputs = {
                "linear relation": BETA * slope @ s + bias, "identity": s, "translation": s + (o1 - s1 + o2 - s2) / 2,
                "least squares": (o1 + o2) / 2 + along * (o1 - o2),
            }  # fmt: skip
            for name in MAPS:
                said = literal.says(prompt, literal.output, len(prompt.tokens) - 1, outputs[name])
                right_said = found.data["faithful"].sel(layer=layer, map=name).isel(subject=index)
                assert bool(right_said) == (said == answers[index])
            other = runs[targets[index]]
            change = (other[0][to_layer][-1] - states[to_layer][-1]).detach()
            swapped = other[0][layer][asked[targets[index]].last_subject_position].detach()
            edited = [s + inverse @ change, s + change, swapped]
            for name, state in zip(EDITS, edited, strict=True):
                said = literal.says(prompt, f"blocks.{layer + 1}.hook_in", place, state)
                right_said = found.data["causal"].sel(layer=layer, edit=name).isel(subject=index)
                assert bool(right_said) == (said == answers[targets[index]])


def test_only_what_the_model_knows_is_used():
    model = tiny.bridge("gpt2")
    (france,) = tiny.tokenizer()(" France")["input_ids"]

    def always(_module, _args, logits):
        return logits + 1e4 * torch.nn.functional.one_hot(torch.tensor(france), logits.shape[-1])

    model.unembed.register_forward_hook(always)
    fitted = locate.LinearRelation.fit(model, FACTS, layer=1, n=1, progress=False)
    assert {one["subject"] for part in ("examples", "held_out") for one in fitted.info[part]} == {"Paris", "The Louvre"}
    assert (fitted.info["given"], fitted.info["known"]) == (7, 2)
    tried = fitted.test(model, progress=False)
    assert tried.info["answers"] == [" France"]
    assert tried.data["causal"].isnull().all()  # nothing that it answers otherwise
    assert tried.faithfulness.sel(map="identity").item() == 1
    assert tried.best("causality") == fitted.best() == locate.Site("resid", layer=1)
    with pytest.raises(FactError, match=r"(?s)Of 7 facts of 'countries', the model knows 2 .*2 examples .* need 3"):
        locate.LinearRelation.fit(model, FACTS, layer=1, n=2, progress=False)


def test_examples_are_of_many_objects_and_no_subject_is_on_both_sides():
    model = tiny.bridge("gpt2")
    twice = replace(FACTS[0], target="Europe")
    for seed in range(5):
        parted = split(model, [*FACTS, twice], 4, knows=False, seed=seed)
        assert {fact.target for fact in parted.examples} == {"France", "Italy", "England", "Europe"}
        subjects = [fact.subject for fact in (*parted.examples, *parted.held_out)]
        assert sorted(subjects) == sorted(PLACES)
        assert parted.given == 8
    assert split(model, FACTS, 4, knows=False, seed=1) == split(model, FACTS, 4, knows=False, seed=1)


def test_neither_the_budget_nor_the_sweep_changes_anything(tmp_path):
    model = tiny.bridge("gemma3_text", dtype=torch.float64)
    swept = locate.relation_linearity(model, FACTS, **ASKED)
    assert swept.data["layer"].values.tolist() == [0, 1, 2]
    tight = locate.relation_linearity(model, FACTS, budget=60, **ASKED)
    fitted = locate.LinearRelation.fit(model, FACTS, layer=1, **ASKED)
    alone = fitted.test(model, progress=False)
    for name in ("faithful", "causal", "other"):
        assert (swept.data[name] == tight.data[name]).all()
    for name in ("faithful", "causal"):
        assert (swept.data[name].sel(layer=[1]) == alone.data[name]).all()
    again = locate.load_linear_relation(fitted.save(tmp_path / "linear.nc"))
    state = torch.linspace(-1, 1, 32, dtype=torch.float64)[None]
    torch.testing.assert_close(again(state), fitted(state))
    torch.testing.assert_close(again.shift(state, -state), fitted.shift(state, -state))
    assert again.info == fitted.info


def test_what_the_measures_say(tmp_path):
    subjects, layers = 10, [3, 5, 8]
    faithful = np.zeros((3, len(MAPS), subjects))
    causal = np.zeros((3, len(EDITS), subjects))
    faithful[1, 0], faithful[2, 0, :4], causal[2, 0, :9] = 1, 1, 1
    causal[:, :, 9] = np.nan
    data = {
        "faithful": (("layer", "map", "subject"), faithful), "causal": (("layer", "edit", "subject"), causal),
        "other": ("subject", [1] * 9 + [-1]),
    }  # fmt: skip
    coords = {"layer": layers, "map": list(MAPS), "edit": list(EDITS)}
    found = locate.RelationLinearity(data=xr.Dataset(data, coords=coords), info={"model": "made up"})
    assert found.best() == locate.Site("resid", layer=5)
    assert found.best("causality").layer == 8
    mean, low, high = found.interval()
    assert mean[2, 0] == pytest.approx(0.4)
    assert 0.05 < low[2, 0] < 0.25
    assert 0.55 < high[2, 0] < 0.8
    assert found.interval("causality").mean[2, 0] == 1
    table = found.to_dataframe().set_index(["measure", "layer", "way"])
    assert table.loc[("faithfulness", 8, "linear relation"), "share"] == pytest.approx(0.4)
    assert table.loc[("causality", 8, "subject swap"), "share"] == 0
    again = locate.load_relation_linearity(found.save(tmp_path / "linearity.nc"))
    assert again.data.identical(found.data)
    assert layers_at(tiny.bridge("llama"), replace(found, data=found.data.assign_coords(layer=[0, 2, 3]))) == (2,)


def test_bad_input(not_resumed):
    model, other = tiny.bridge("llama"), locate.Fact(prompt=ASK, subject="Bern", target="Switzerland", relation="x")
    for layers, told in (([4], "from 0 to 2"), ([3], "from 0 to 2"), ([], "from 0 to 2"), ([1, 1], "each once")):
        with pytest.raises(SiteError, match=told):
            locate.relation_linearity(model, FACTS, layers=layers, **ASKED)
    with pytest.raises(SiteError, match=r"from 0 to 1, each once; found \[2\]"):
        locate.LinearRelation.fit(model, FACTS, layer=2, to_layer=2, **ASKED)
    with pytest.raises(SiteError, match="to_layer: the model has layers 0 to 3, found 4"):
        locate.LinearRelation.fit(model, FACTS, layer=2, to_layer=4, **ASKED)
    with pytest.raises(LocateError, match="rank: from 1 to the width of the model's states, 32; found 33"):
        locate.LinearRelation.fit(model, FACTS, layer=2, rank=33, **ASKED)
    with pytest.raises(LocateError, match="beta: must be positive"):
        locate.LinearRelation.fit(model, FACTS, layer=2, beta=0.0, **ASKED)
    with pytest.raises(FactError, match="of 2 relations"):
        locate.LinearRelation.fit(model, [*FACTS, other], layer=2, **ASKED)
    with pytest.raises(FactError, match="has 7 subjects; 7 examples and one subject"):
        locate.LinearRelation.fit(model, FACTS, layer=2, **{**ASKED, "n": 7})
    with pytest.raises(FactError, match="n must be 1 or more"):
        locate.LinearRelation.fit(model, FACTS, layer=2, **{**ASKED, "n": 0})
    with pytest.warns(UserWarning, match="cannot be resumed"), pytest.raises(ModelError, match="cannot be resumed"):
        locate.LinearRelation.fit(model, FACTS, layer=2, **ASKED)


def test_a_relation_of_another_model_is_refused():
    fitted = locate.LinearRelation.fit(tiny.bridge("llama"), FACTS, layer=1, **ASKED)
    small = locate.LinearRelation(
        data=fitted.data.isel(input=slice(8)), layer=1, to_layer=3, beta=1.0, rank=2, info=fitted.info
    )  # fmt: skip
    with pytest.raises(LocateError, match="from states of width 8; the model has 4 layers with states of width 32"):
        small.test(tiny.bridge("llama"), progress=False)
