"""Fine-tuning of one matrix, against the same as a plain loop over the Hugging Face model."""

import pytest
import torch
import torch.nn.functional as F

import edit
from edit.methods.finetuning import descent
from edit.requests.requests import EditRequest
from locate import Fact, FactError, ModelError, NumericsError, SiteError
from locate.facts.prompts import encode_fact, encode_target
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny
from tests.sampling import sampled

REQUESTS = [
    EditRequest(Fact(prompt=prompt, subject=subject, target=old, target_new=new))
    for prompt, subject, old, new in [
        ("In Europe, {} is located in the city of", "The Eiffel Tower", "Paris", "Rome"),
        ("{} stands in", "The Louvre", "Paris", "London in France"),
        ("The city of {} is", "Big Ben", "London", "Paris"),
    ]
]
KINDS = [kind for kind in tiny.CONFIGS if kind not in ("mistral", "qwen3")] + ["granite"]
FEW = {"steps": 4, "learning_rate": 1e-2, "enough": 0.0}


def by_hand(model, requests, name, steps, rate, limit=None):
    """Whole passes over the Hugging Face model, one text at a time, and Adam on the matrix itself."""
    texts = []
    for request in requests:
        prompt = encode_fact(model, request.fact)
        texts.append((prompt.tokens, encode_target(model, prompt, request.target_new)))
    weight = hf_parameters(model)[name]
    original = weight.detach().clone()
    weight.requires_grad_(True)
    optimiser = torch.optim.Adam([weight], lr=rate)
    losses = []
    for step in range(steps + 1):
        optimiser.zero_grad()
        own = []
        for tokens, target in texts:
            logits = model.original_model(torch.cat([tokens, target])[None]).logits[0]
            own.append(F.cross_entropy(logits[len(tokens) - 1 : -1], target))
        losses.append([float(one.detach()) for one in own])
        if step < steps:
            torch.stack(own).mean().backward()
            optimiser.step()
            if limit is not None:
                with torch.no_grad():
                    weight.copy_((weight - original).clamp(-limit, limit) + original)
    delta = weight.detach() - original
    with torch.no_grad():
        weight.copy_(original)
    return delta, losses


@pytest.mark.filterwarnings("ignore:Fine-tuning has not brought")
@pytest.mark.parametrize("kind", sampled(KINDS))
def test_it_is_a_plain_loop_over_the_model(kind):
    model = tiny.bridge(kind)
    before = {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}
    update = edit.FineTuning(**FEW).fit(model, REQUESTS, layer=1, progress=False)
    assert {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()} == before
    (name,) = update.parameters
    assert name == down_projection(model, 1).name
    delta, losses = by_hand(tiny.bridge(kind), REQUESTS, name, FEW["steps"], FEW["learning_rate"])
    assert delta.norm() > 0
    assert (update.delta(name) - delta).norm() < 0.02 * delta.norm()  # Adam's first step is the gradient's sign
    found = [edit["losses"] for edit in update.info["edits"]]
    torch.testing.assert_close(torch.tensor(found).T, torch.tensor(losses), atol=2e-2, rtol=1e-2)
    assert sum(losses[-1]) < sum(losses[0])
    with update.applied(model):
        assert fingerprint(hf_parameters(model)[name]) != before[name]
    assert fingerprint(hf_parameters(model)[name]) == before[name]


@pytest.mark.filterwarnings("ignore:Fine-tuning has not brought")
def test_the_limit_holds_at_every_step_and_the_budget_changes_nothing():
    model = tiny.bridge("llama")
    whole = edit.FineTuning(**FEW, limit=0.015).fit(model, REQUESTS, layer=2, progress=False)
    (name,) = whole.parameters
    delta, _ = by_hand(tiny.bridge("llama"), REQUESTS, name, FEW["steps"], FEW["learning_rate"], limit=0.015)
    assert float(whole.delta(name).abs().max()) == pytest.approx(0.015)
    assert (whole.delta(name) - delta).norm() < 0.02 * delta.norm()
    parts = edit.FineTuning(**FEW, limit=0.015, budget=100).fit(model, REQUESTS, layer=2, progress=False)
    assert (whole.delta(name) - parts.delta(name)).norm() < 0.02 * delta.norm()
    assert [edit["request"] for edit in parts.info["edits"]] == [request.describe() for request in REQUESTS]


@pytest.mark.filterwarnings("ignore:Fine-tuning has not brought")
def test_an_architecture_that_cannot_be_resumed_gets_the_same(not_resumed):
    model = tiny.bridge("llama")
    with pytest.warns(UserWarning, match="cannot be resumed"):
        update = edit.FineTuning(**FEW).fit(model, REQUESTS, layer=1, progress=False)
    (name,) = update.parameters
    delta, _ = by_hand(tiny.bridge("llama"), REQUESTS, name, FEW["steps"], FEW["learning_rate"])
    assert (update.delta(name) - delta).norm() < 0.02 * delta.norm()


def test_it_stops_where_the_answer_is_learned_and_the_model_says_it(tmp_path):
    model = tiny.bridge("llama", scale=12.0)  # which can be sure of something
    update = edit.FineTuning(layer=1, steps=60, learning_rate=2e-2, enough=0.5).fit(model, REQUESTS, progress=False)
    assert edit.FineTuning().edited_layers(model) == (round(0.656 * 4),)
    losses = torch.tensor([one["losses"] for one in update.info["edits"]]).mean(0)
    assert losses[-1] < 0.5 <= losses[-2]
    again = edit.load_update(update.save(tmp_path / "ft.safetensors"))
    scores = edit.evaluate(model, again, REQUESTS, progress=False)
    assert scores.rows.query("model == 'edited'")["rank_new"].tolist() == [1, 1, 1]
    assert not scores.missed


@pytest.mark.filterwarnings("ignore:Fine-tuning has not brought")
def test_edits_in_sessions_are_made_on_top_of_each_other():
    model = tiny.bridge("llama")
    method = edit.FineTuning(**FEW)
    before = fingerprint(down_projection(model, 1).parameter)
    with edit.EditSession(model, edit.FineTuning(**FEW, layer=1)) as session:
        session.edit(REQUESTS[:1], progress=False)
        second = method.fit(model, REQUESTS[1:2], layer=1, progress=False)
        session.edit(REQUESTS[1:2], progress=False)
        joint = session.update.delta(down_projection(model, 1).name)
        session.undo(1)
        first = session.update.delta(down_projection(model, 1).name)
        torch.testing.assert_close(joint - first, second.delta(second.parameters[0]), atol=1e-6, rtol=1e-4)
        session.undo(1)
        assert fingerprint(down_projection(model, 1).parameter) == before


def test_bad_input(monkeypatch):
    model = tiny.bridge("llama")
    with pytest.raises(SiteError, match=r"FineTuning trains one layer, found \[0, 1\]"):
        edit.FineTuning().fit(model, REQUESTS, layer=[0, 1])
    with pytest.raises(NumericsError, match="limit: must be positive, found 0"):
        edit.FineTuning(limit=0)
    with pytest.warns(UserWarning, match="has not brought 1 of 1 new answers"):
        edit.FineTuning(steps=1, learning_rate=1e-6).fit(model, REQUESTS[0], layer=1, progress=False)
    with pytest.raises(ModelError, match="no single MLP down projection"):
        edit.FineTuning().fit(tiny.bridge("mixtral"), REQUESTS, layer=1, progress=False)
    model = tiny.bridge("llama", scale=30.0)
    learned = edit.FineTuning(layer=1, steps=3, learning_rate=1.0).fit(model, REQUESTS, progress=False)
    with learned.applied(model), pytest.raises(FactError, match="3 requests for what the model already answers"):
        edit.FineTuning().fit(model, REQUESTS, progress=False)
    monkeypatch.setattr(descent, "_DIVERGED", -100.0)
    with pytest.raises(NumericsError, match=r"diverges: the mean loss is .* Lower the learning rate"):
        edit.FineTuning(steps=1).fit(model, REQUESTS, progress=False)
