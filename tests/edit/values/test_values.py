"""Value optimisation: resumed steps against whole passes, stop rules, clamp and clean-up."""

import dataclasses

import pytest
import torch

from benchmarks import literal_rome, strength
from edit.requests.requests import EditRequest
from edit.values.contexts import build_contexts
from edit.values.objective import ValueObjective
from edit.values.optimisation import optimise_value
from locate import Fact, NumericsError
from locate.model.parameters import frozen_parameters
from locate.model.weights import fingerprint, hf_parameters
from tests import tiny

KINDS = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]
PREFIXES = ["", "I am. ", "You see the Louvre. ", "Because it is there too. "]
FACT = Fact(prompt="In Europe, {} is located in the city of", subject="The Eiffel Tower", target="Paris")
# The subject ends this prompt, so that the value acts on the answer directly.
LAST = Fact(prompt="In the city of Paris there is {}", subject="The Eiffel Tower", target="Paris")
# A heavy drift term and large steps make every term of the loss count.
OBJECTIVE = ValueObjective(steps=6, learning_rate=0.2, kl_weight=1.0, weight_decay=0.1)


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def found(model, target_new="Rome", objective=OBJECTIVE, prefixes=PREFIXES, fact=FACT, **options):
    batch = build_contexts(model, EditRequest(fact, target_new), prefixes)
    return optimise_value(model, batch, 1, objective, **options)


def literal(model, target_new="Rome", objective=OBJECTIVE, fact=FACT):
    return literal_rome.optimise_value(model, EditRequest(fact, target_new), PREFIXES, 1, objective)


def assert_equals_literal(value, expected):
    wanted, losses = expected
    assert value.losses == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(value.value, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("target_new", ["Rome", "London in France"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_whole_passes(kind, target_new):
    model = tiny.bridge(kind)
    value = found(model, target_new)
    assert len(value.losses) == OBJECTIVE.steps + 1
    assert len(set(value.losses)) > 1
    assert value.stopped == "after 6 steps"
    assert_equals_literal(value, literal(model, target_new))


@pytest.mark.parametrize("place", ["mlp", "resid", "attn+mlp"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_bfloat16_is_near_also_where_prefixes_are_padded(kind, place):
    model = tiny.bridge(kind)
    exact, near = (found(model, place=place, precision=precision) for precision in ("model", "bfloat16"))
    assert near.losses == pytest.approx(exact.losses, abs=0.05)
    assert near.losses != exact.losses
    # Adam's first steps go by the sign of a gradient, so that small ones may go the other way.
    moved = [one.value - one.initial for one in (exact, near)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.8


def test_equals_whole_passes_where_the_model_cannot_be_resumed(not_resumed):
    model = tiny.bridge("llama")  # one that nothing is known of
    with pytest.warns(UserWarning, match="cannot be resumed"):
        value = found(model)
    assert_equals_literal(value, literal(model))
    with pytest.warns(UserWarning, match="cannot be resumed"):
        near = found(model, precision="bfloat16")
    assert near.losses == pytest.approx(value.losses, abs=0.05)


def test_keys_and_outputs_are_those_of_the_texts_alone(model):
    value = found(model, prefixes=PREFIXES[:2])
    for row, prefix in enumerate(PREFIXES[:2]):
        text = prefix + FACT.text
        site = len(tiny.tokenizer()(text[: text.index("Tower") + 5])["input_ids"]) - 1
        tokens = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
        _, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(value.keys[row], cache["blocks.1.mlp.out.hook_in"][0, site])
        torch.testing.assert_close(value.outputs[row], cache["blocks.1.mlp.out.hook_out"][0, site])
    assert torch.equal(value.initial, value.outputs[0])


def test_order_of_prefixes_and_size_of_batches_change_nothing(model):
    value = found(model)
    for other in (found(model, prefixes=["", *PREFIXES[:0:-1]]), found(model, budget=1)):
        assert other.losses == pytest.approx(value.losses, abs=1e-5)
        torch.testing.assert_close(other.value, value.value, atol=2e-5, rtol=0)


def test_the_clamp_is_reached_and_kept(model):
    objective = dataclasses.replace(OBJECTIVE, steps=8, clamp=0.25)
    value = found(model, objective=objective, fact=LAST)
    distance = (value.value - value.initial).norm()
    assert distance == pytest.approx(float(0.25 * value.initial.norm()), rel=1e-5)
    assert_equals_literal(value, literal(model, objective=objective, fact=LAST))


def test_stops_below_the_loss_threshold(model):
    objective = dataclasses.replace(OBJECTIVE, learning_rate=0.02, kl_weight=0.0, stop="loss")
    losses = found(model, objective=objective, fact=LAST).losses
    threshold = (losses[2] + losses[3]) / 2
    assert losses[3] < threshold < min(losses[:3])
    objective = dataclasses.replace(objective, loss_threshold=threshold)
    value = found(model, objective=objective, fact=LAST)
    assert len(value.losses) == 4
    assert value.stopped == f"loss below {threshold}"
    assert_equals_literal(value, literal(model, objective=objective, fact=LAST))


@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_stops_once_the_target_is_first_everywhere(probability):
    model = tiny.bridge("llama", scale=12.0)
    objective = ValueObjective(steps=40, kl_weight=0.0, clamp=50.0, stop="first", probability=probability)
    value = found(model, objective=objective, fact=LAST)
    assert value.stopped == "the new object is first under every prefix"
    assert is_first(model, value, probability)
    short = dataclasses.replace(objective, steps=len(value.losses) - 2)
    before = found(model, objective=short, fact=LAST)
    assert before.stopped == f"after {short.steps} steps"
    assert before.losses == value.losses[:-1]
    assert not is_first(model, before, probability)


def test_one_run_up_to_a_high_probability_passes_what_lower_ones_stop_at():
    model = tiny.bridge("llama", scale=12.0)
    objective = ValueObjective(steps=40, kl_weight=0.0, clamp=50.0)
    passed = strength.values_at(
        model, build_contexts(model, EditRequest(LAST, "Rome"), PREFIXES), 1, objective, [0.2, 0.0, 0.1]
    )
    steps = {probability: len(value.losses) for probability, value in passed.items()}
    assert steps[0.0] < steps[0.1] < steps[0.2] <= 40
    for probability, value in passed.items():
        alone = found(model, objective=dataclasses.replace(objective, probability=probability), fact=LAST)
        assert alone.losses == value.losses
        torch.testing.assert_close(value.value, alone.value, atol=0, rtol=0)


@torch.no_grad()
def is_first(model, value, probability):
    """Whether, with δ in place, the target is first after every prefix and likely enough on average."""
    (target,) = tiny.tokenizer()(" Rome")["input_ids"]
    delta = value.value - value.initial
    scores = []
    for prefix in PREFIXES:

        def write(output, hook):
            # The subject ends the prompt, so that the site is the last position.
            return torch.cat([output[:, :-1], output[:, -1:] + delta], 1)

        with model.hooks(fwd_hooks=[("blocks.1.mlp.out.hook_out", write)]):
            tokens = torch.tensor([tiny.tokenizer()(prefix + LAST.text)["input_ids"]])
            scores.append(model(tokens)[0, -1].log_softmax(-1))
    firsts = all(score.argmax() == target for score in scores)
    return firsts and torch.stack(scores)[:, target].mean().exp() >= probability


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 0}, "steps: must be 1 or more, found 0"),
    ({"steps": 1.5}, r"steps: must be a whole number, found 1\.5"),
    ({"learning_rate": float("nan")}, "learning_rate: must be positive, found nan"),
    ({"clamp": -1.0}, r"clamp: must be positive, found -1\.0"),
    ({"kl_weight": -1.0}, r"kl_weight: must be 0 or more, found -1\.0"),
    ({"weight_decay": float("nan")}, "weight_decay: must be 0 or more, found nan"),
    ({"probability": 1.0}, r"probability: must be at least 0 and below 1, found 1\.0"),
    ({"stop": "soon"}, "stop: must be one of .*found 'soon'"),
])  # fmt: skip
def test_objectives_that_make_no_sense_are_refused(options, message):
    with pytest.raises(NumericsError, match=message):
        ValueObjective(**options)


def test_an_optimisation_that_diverges_is_an_error(model):
    far = dataclasses.replace(OBJECTIVE, learning_rate=1e3, clamp=1e3, stop="loss", loss_threshold=-1.0)
    with pytest.raises(NumericsError, match=r"layer 1 diverges: its loss is .* at first.* Lower the learning rate"):
        found(model, objective=far)


def test_a_loss_that_is_not_finite_is_an_error(model):
    before = {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}
    asking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(NumericsError, match=r"loss is nan at step 1 in layer 1; nothing was changed"):
        found(model, objective=dataclasses.replace(OBJECTIVE, learning_rate=float("inf")))
    assert {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()} == before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asking


def test_parameters_get_no_gradients_and_ask_for_them_as_before():
    model = tiny.bridge("gpt_neox")
    still = next(model.original_model.parameters()).requires_grad_(False)
    asking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    found(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asking
    with frozen_parameters(model):
        assert not any(parameter.requires_grad for parameter in model.original_model.parameters())
    assert not still.requires_grad
