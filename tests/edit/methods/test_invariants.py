"""What must hold of every edit whatever the model: one test per invariant, on tiny models of each form and a real one.

The keys, values and statistics are each model's own. What an invariant compares with is written down here; whole
methods against literal references are in ``test_rome.py`` and ``test_family.py``.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks.literal_rome import halved_mean
from edit.changes.lowrank import LowRank
from edit.datasets import load_counterfact
from edit.methods import EMMET, MEMIT, PMET, ROME, AlphaEdit, Job
from edit.methods.rewriting.stabilisers import PRUNE, RECT
from edit.requests.requests import EditRequest
from edit.statistics import collect_statistics
from edit.values.contexts import build_contexts
from edit.values.objective import ValueObjective
from edit.values.optimisation import optimise_values
from locate import Fact
from locate.facts.prompts import encode_target
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny
from tests.edit.methods.problems import solved

# Conv1D, gated, a norm after the MLP, parallel blocks with fused projections; and the default model.
KINDS = [
    "gpt2", "llama", "gemma3_text", "gpt_neox",
    pytest.param("smollm2-135m", marks=(pytest.mark.slow("solves for 1,536 keys"), pytest.mark.real_model)),
]  # fmt: skip
REQUESTS = [
    EditRequest(Fact(prompt=prompt, subject=subject, target=old, target_new=new))
    for prompt, subject, old, new in [
        ("In Europe, {} is located in the city of", "The Eiffel Tower", "Paris", "Rome"),
        ("{} stands in", "The Louvre", "Paris", "London in France"),
        ("The city of {} is", "Big Ben", "London", "Paris"),
    ]
]
PREFIXES = ("I am. ", "You see the Louvre. ")
OBJECTIVE = ValueObjective(steps=3, clamp=0.75, stop="loss", loss_threshold=-1.0)


@dataclass(frozen=True, eq=False)
class Case:
    """A model with what edits of it need; matrices are d_model × d_mlp, in float64."""

    model: Any
    layers: tuple[int, int]
    contexts: list[Any]
    values: list[Any]
    statistics: dict[int, Any]

    @property
    def layer(self):
        return self.layers[-1]

    @property
    def down(self):
        return down_projection(self.model, self.layer)

    @property
    def moment(self):
        return self.statistics[self.layer].second_moment

    @property
    def keys(self):
        return torch.stack([halved_mean(value.keys) for value in self.values]).double()

    @property
    def residuals(self):
        return torch.stack([value.value - halved_mean(value.outputs) for value in self.values]).double()

    @property
    def options(self):
        return {"objective": OBJECTIVE, "prefixes": PREFIXES, "statistics": self.statistics}

    def weight(self, layer=None):
        down = down_projection(self.model, self.layer if layer is None else layer)
        weight = down.parameter.detach().double()
        return weight.T if down.transposed else weight

    def delta(self, update, layer=None):
        down = down_projection(self.model, self.layer if layer is None else layer)
        delta = update.delta(down.name).double()
        return delta.T if down.transposed else delta

    def prints(self):
        return {name: fingerprint(parameter) for name, parameter in hf_parameters(self.model).items()}


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    real = request.param == "smollm2-135m"
    model = request.getfixturevalue("smollm") if real else tiny.bridge(request.param)
    layers, tokens = ((3, 4), 16_000) if real else ((1, 2), 1500)
    folder = tmp_path_factory.mktemp("statistics")
    draw = random.Random(0)
    words = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(tokens))
    (folder / "text.txt").write_text(" ".join(words))
    statistics = collect_statistics(
        model, layers, corpus=str(folder / "text.txt"), tokens=tokens, cache=False, progress=False
    )
    contexts = [build_contexts(model, one, ["", *PREFIXES]) for one in REQUESTS]
    values = optimise_values(model, contexts, layers[-1], OBJECTIVE)
    return Case(model=model, layers=layers, contexts=contexts, values=values, statistics=statistics)


def product(factors):
    left, right = factors
    return left @ right


def close(found, expected, tolerance):
    """Near in units of the expected matrix's norm, which must not be zero."""
    assert expected.norm() > 0
    assert (found - expected).norm() < tolerance * expected.norm()


def test_rome_gives_the_mean_key_its_value(case):
    method = ROME(layer=case.layer, bare_weight=0.5, openings=(), **case.options)
    for update, value in zip(method.fit_each(case.model, REQUESTS, values=case.values), case.values, strict=True):
        assert update.rank == 1
        with torch.no_grad(), update.applied(case.model):
            written = case.model.blocks[case.layer].mlp.out(halved_mean(value.keys)[None, None])[0, 0]
        close(written, value.value, 1e-4)


def test_emmet_without_slack_gives_every_key_its_value(case):
    update = EMMET(layers=(case.layer,), slack=0.0, **case.options).fit(case.model, REQUESTS, progress=False)
    close(case.delta(update) @ case.keys.T, case.residuals.T, 1e-4)


def test_memit_without_preservation_gives_every_key_its_value(case):
    method = MEMIT(layers=(case.layer,), weight=1e-10, **case.options)
    fitted = method.fit_with(Job(model=case.model, requests=REQUESTS, progress=False))
    written = fitted.written[case.layer]
    keys, wanted = written.keys.double().T, written.values.double().T
    close((case.weight() + case.delta(fitted.update)) @ keys, wanted, 1e-4)
    assert (case.weight() @ keys - wanted).norm() > 1e-2 * wanted.norm()
    strict = MEMIT(layers=(case.layer,), weight=1e8, **case.options).fit(case.model, REQUESTS, progress=False)
    assert (case.delta(strict) @ keys).norm() < 0.1 * (wanted - case.weight() @ keys).norm()


def test_alphaedit_changes_nothing_outside_its_null_space(case):
    update = AlphaEdit(layers=case.layers, **case.options).fit(case.model, REQUESTS, progress=False)
    for layer in case.layers:
        basis = case.statistics[layer].null_space(energy=AlphaEdit().energy)
        projector = basis @ basis.T
        close(projector @ projector, projector, 1e-10)
        delta = case.delta(update, layer)
        assert 0 < basis.shape[1] < len(basis)
        assert (delta - delta @ projector).norm() < 1e-5 * delta.norm()
        assert (case.keys - case.keys @ projector).norm() > 0.1 * case.keys.norm()


@pytest.mark.parametrize("method", [MEMIT(), AlphaEdit()], ids=["MEMIT", "AlphaEdit"])
def test_one_batch_is_the_same_edits_in_sequence(case, method):
    keys, wanted = case.keys, case.keys @ case.weight().T + case.residuals
    none = keys[:0]
    whole = product(solved(method, keys, case.residuals, case.statistics[case.layer], none))
    for remember in (True, False):
        total = torch.zeros_like(whole)
        for row in range(len(keys)):
            own = keys[row : row + 1]
            residuals = wanted[row : row + 1] - own @ (case.weight() + total).T
            earlier = keys[:row] if remember else none
            total = total + product(solved(method, own, residuals, case.statistics[case.layer], earlier))
        if remember:
            close(total, whole, 1e-8)
        else:  # without the keys of the earlier ones it is another change
            assert (total - whole).norm() > 1e-6 * whole.norm()


def test_woodbury_is_the_direct_solve(case):
    keys, earlier = case.keys[1:], case.keys[:1]
    found = product(solved(MEMIT(weight=50.0), keys, case.residuals[1:], case.statistics[case.layer], earlier))
    preserved = 50 * case.moment + earlier.T @ earlier
    close(found, case.residuals[1:].T @ keys @ torch.linalg.inv(preserved + keys.T @ keys), 1e-7)
    found = product(
        solved(AlphaEdit(ridge=2.0), keys, case.residuals[1:], case.statistics[case.layer], earlier)
    )  # fmt: skip
    basis = case.statistics[case.layer].null_space(energy=AlphaEdit().energy)
    projector = basis @ basis.T
    system = projector @ (keys.T @ keys + earlier.T @ earlier) + 2 * torch.eye(keys.shape[1], dtype=torch.float64)
    close(found, torch.linalg.solve(system, projector @ keys.T @ case.residuals[1:]).T, 1e-7)


def test_prune_lowers_large_singular_values_alone(case):
    # As large as in trained models.
    limit = 3.0
    weight = case.down.parameter.detach()
    weight = weight * (limit / torch.linalg.matrix_norm(weight.double(), 2)).float()
    update = EMMET(layers=(case.layer,), slack=0.0, **case.options).fit(case.model, REQUESTS, progress=False)
    delta = update.delta(case.down.name)
    u, values, v = torch.linalg.svd(delta, full_matrices=False)
    # The edit's own directions, in sizes of which two are too large.
    sizes = torch.tensor([3.0, 1.5, 0.5]) * limit
    large = LowRank(left=u[:, :3] * sizes, right=v[:3])
    found = torch.linalg.svdvals(PRUNE().change(large, weight, None).dense().double())[:4]
    expected = [limit + torch.tensor(3.0).log(), limit + torch.tensor(1.5).log(), 0.5 * limit, 0.0]
    torch.testing.assert_close(found, torch.tensor([float(one) for one in expected]).double(), atol=1e-3, rtol=1e-4)
    small = LowRank(left=u[:, :3] * values[:3] * (0.9 * limit / values[0]), right=v[:3])
    assert PRUNE().change(small, weight, None) is small


def test_rect_keeps_its_share_of_the_entries_exactly(case):
    update = MEMIT(layers=(case.layer,), **case.options).fit(case.model, REQUESTS, progress=False)
    delta, weight = update.deltas[case.down.name], case.down.parameter
    found = RECT(share=0.4).change(delta, weight, None).dense()
    kept = found != 0
    assert int(kept.sum()) == round(0.4 * kept.numel())
    assert torch.equal(found[kept], delta.dense()[kept])
    relative = (delta.dense() / weight.detach()).abs()
    assert relative[kept].min() >= relative[~kept].max()


def test_the_module_computes_what_a_linear_layer_with_the_edited_matrix_does(case):
    update = MEMIT(layers=(case.layer,), **case.options).fit(case.model, REQUESTS, progress=False)
    module, keys = case.model.blocks[case.layer].mlp.out, case.keys.float()
    with torch.no_grad():
        bias = module(torch.zeros_like(keys)[None])[0, 0].double()
        with update.applied(case.model):
            found = module(keys[None])[0].double()
    expected = torch.nn.functional.linear(keys.double(), case.weight() + case.delta(update), bias)
    close(found, expected, 1e-5)


def test_padding_and_the_size_of_batches_change_nothing(case):
    # Each request and prefix without any padding, one at a time.
    for value, request in zip(case.values, REQUESTS, strict=True):
        (alone,) = optimise_values(
            case.model, [build_contexts(case.model, request, ["", *PREFIXES])], case.layer, OBJECTIVE, budget=64
        )
        assert alone.losses == pytest.approx(value.losses, abs=2e-4)
        close(alone.value, value.value, 1e-3)
        for row, prefix in enumerate(["", *PREFIXES]):
            (single,) = optimise_values(
                case.model, [build_contexts(case.model, request, [prefix])], case.layer,
                ValueObjective(steps=1), budget=64,
            )  # fmt: skip
            close(single.keys[0], value.keys[row], 1e-4)
            close(single.outputs[0], value.outputs[row], 1e-4)


def test_a_target_is_the_same_with_its_leading_space(case, tmp_path):
    for request in REQUESTS:
        bare = encode_target(case.model, request.fact.text, request.target_new)
        assert bare.tolist() == encode_target(case.model, request.fact.text, f" {request.target_new}").tolist()
    record = {
        "case_id": 0, "prompt": "The Louvre stands in", "subject": "The Louvre", "ground_truth": "Paris",
        "target_new": "Rome", "rephrase_prompt": "The Louvre is in", "locality_prompt": "Big Ben stands in",
        "locality_ground_truth": "London",
    }  # fmt: skip
    spaced = {**record, "ground_truth": " Paris", "target_new": " Rome", "locality_ground_truth": " London"}
    read = []
    for name, one in (("bare.json", record), ("spaced.json", spaced)):
        (tmp_path / name).write_text(json.dumps([one]))
        read.append(load_counterfact(tmp_path / name))
    assert read[0] == read[1]


@pytest.mark.parametrize("method", [MEMIT(), AlphaEdit(), EMMET()], ids=["MEMIT", "AlphaEdit", "EMMET"])
def test_edits_do_not_depend_on_order(case, method):
    order = [2, 0, 1]
    statistics, none = case.statistics[case.layer], case.keys[:0]
    found = product(solved(method, case.keys[order], case.residuals[order], statistics, none))
    close(found, product(solved(method, case.keys, case.residuals, statistics, none)), 1e-8)
    turned = optimise_values(case.model, [case.contexts[one] for one in order], case.layer, OBJECTIVE)
    for value, one in zip(turned, order, strict=True):
        close(value.value, case.values[one].value, 1e-3)


@pytest.mark.parametrize("make", [ROME, MEMIT, EMMET, PMET, AlphaEdit], ids=lambda make: make.__name__)
def test_revert_is_bit_for_bit(case, make):
    before = case.prints()
    where = {"layer": case.layer} if make is ROME else {"layers": (case.layer,)}
    update = make(**where, **case.options).fit(case.model, REQUESTS, progress=False)
    assert case.prints() == before
    update.apply(case.model)
    try:
        changed = {name for name, now in case.prints().items() if now != before[name]}
    finally:
        update.revert(case.model)
    assert changed == {case.down.name}
    assert case.prints() == before
