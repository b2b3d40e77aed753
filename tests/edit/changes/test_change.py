"""The life cycle of a change that is none of the weights: a hook, which evaluation judges as it does an update."""

from weakref import WeakKeyDictionary

import pytest
import torch

import edit
from edit.changes.change import Change, within, without
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import hyperparameters
from edit.methods import EditingMethod, Fitted
from edit.requests.requests import EditRequest
from locate import Fact, UpdateError
from locate.model.weights import fingerprint, hf_parameters
from tests import tiny

CASES = [
    EditRequest(Fact(prompt="{} is located in the city of", subject=name, target="Paris",
                     neighbours=("The Louvre is in",)), "Rome")
    for name in ("The Eiffel Tower", "Big Ben")
]  # fmt: skip
TEXT = torch.arange(3, 11)[None]


class Hooked(Change):
    """Adds a number to what a block gives, by a forward hook."""

    def __init__(self, layer, size):
        self.method, self.info, self.layer, self.size = "hook", {"layer": layer}, layer, size
        self._handles = WeakKeyDictionary()

    @property
    def parameters(self):
        return []

    def is_applied(self, model):
        return model in self._handles

    def apply(self, model):
        if self.is_applied(model):
            raise UpdateError("The hook is there already.")

        def add(module, inputs, output):
            return (output[0] + self.size, *output[1:]) if isinstance(output, tuple) else output + self.size

        self._handles[model] = model.blocks[self.layer].mlp.register_forward_hook(add)

    def revert(self, model):
        if not self.is_applied(model):
            raise UpdateError("There is no such hook.")
        self._handles.pop(model).remove()

    def save(self, path):
        path.write_text(f"{self.layer} {self.size}")
        return path


@hyperparameters
class Hooking(EditingMethod[Hooked]):
    changes_weights = False

    def fit_with(self, job):
        return Fitted(update=Hooked(self.edited_layers(job.model, job.layer)[0], 0.1 * len(job.requests)))

    def check(self, model, requests):
        pass


@pytest.fixture
def model():
    return tiny.bridge("llama")


@torch.no_grad()
def logits(model):
    return model(TEXT).clone()


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


def test_a_hook_goes_in_and_out_and_leaves_the_model_bitwise_as_it_was(model):
    before, weights, change = logits(model), prints(model), Hooked(1, 0.1)
    with change.applied(model) as same:
        assert same is model
        assert change.is_applied(model)
        edited = logits(model)
        assert not torch.equal(edited, before)
        with pytest.raises(UpdateError, match="already"):
            change.apply(model)
    assert not change.is_applied(model)
    assert torch.equal(logits(model), before)
    with pytest.raises(UpdateError, match="no such"):
        change.revert(model)
    with pytest.raises(KeyError), change.applied(model):
        raise KeyError
    assert torch.equal(logits(model), before)
    # Taken out within the block, as by hand.
    with change.applied(model):
        change.revert(model)
    assert prints(model) == weights


def update_of(model):
    name = next(iter(edit.KN(steps=2, share=0.3, prefix_lengths=((2, 2),)).fit(model, CASES[0], progress=False).deltas))
    shape = hf_parameters(model)[name].shape
    delta = edit.LowRank(left=torch.ones(shape[0], 1), right=torch.ones(1, shape[1]))
    return WeightUpdate.make(model, {name: delta}, method="test")


@pytest.mark.parametrize("make", [lambda _: Hooked(2, 0.3), update_of], ids=["hook", "weights"])
def test_within_and_without_take_any_change(make, model):
    change = make(model)
    before = logits(model)
    with change.applied(model):
        edited = logits(model)
    assert not torch.equal(edited, before)
    for held in (False, True):
        if held:
            change.apply(model)
        with within(model, change):
            assert torch.equal(logits(model), edited)
        assert change.is_applied(model) == held
        with without(model, change):
            assert torch.equal(logits(model), before)
        assert change.is_applied(model) == held
    change.revert(model)
    assert torch.equal(logits(model), before)
    assert set(change.describe()) == {"method", "parameters", "info"}


@pytest.mark.parametrize("held", [False, True])
def test_a_change_of_no_weights_is_evaluated(held, model):
    before, change = logits(model), Hooked(1, 0.4)
    if held:
        change.apply(model)
    rows = edit.evaluate(model, change, CASES, max_new_tokens=2, progress=False).rows
    assert change.is_applied(model) == held
    # The unedited rows are those of the model as it is without it; nothing was hooked when they were asked.
    nothing = edit.evaluate(tiny.bridge("llama"), Hooked(1, 0.0), CASES, max_new_tokens=2, progress=False).rows
    unedited = rows.query("model == 'unedited'")["probability_new"].tolist()
    assert unedited == pytest.approx(nothing.query("model == 'edited'")["probability_new"].tolist(), rel=1e-5)
    assert (rows.query("model == 'edited'")["kl"] > 1e-6).all()
    assert (nothing["kl"] < 1e-9).all()
    if held:
        change.revert(model)
    assert torch.equal(logits(model), before)


def test_a_method_that_leaves_such_changes_is_evaluated_and_no_session_takes_it(model, tmp_path):
    before = logits(model)
    rows = edit.evaluate_each(model, Hooking(), CASES, layer=2, generate=False, progress=False).rows
    alone = edit.evaluate(model, Hooked(2, 0.1), CASES[1], generate=False, progress=False).rows
    assert rows.query("case == 1 and model == 'edited'")["kl"].tolist() == pytest.approx(
        alone.query("model == 'edited'")["kl"].tolist(), rel=1e-4
    )
    with pytest.raises(UpdateError, match="Hooking leaves no change of weights, and a session adds those up"):
        edit.EditSession(model, Hooking(), folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert torch.equal(logits(model), before)


def test_what_needs_weights_says_so(model, tmp_path):
    change = Hooked(1, 0.1)
    with pytest.raises(UpdateError, match=r"An export takes the weights .* by hook leaves them as they are"):
        edit.export(model, change, tmp_path / "model")
    with pytest.raises(UpdateError, match="Propagation takes the weights"):
        edit.propagate(model, change, CASES[0], progress=False)
    assert not (tmp_path / "model").exists()
    assert not change.is_applied(model)


def test_a_change_has_all_of_the_life_cycle():
    class Half(Change):
        def apply(self, model):
            pass

    with pytest.raises(TypeError, match="abstract"):
        Half()
    assert issubclass(WeightUpdate, Change)
