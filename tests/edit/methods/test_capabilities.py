"""What a method can is asked of it: a new one is a class of its own, and no caller changes."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import edit
from edit import methods
from edit.changes.lowrank import LowRank
from edit.hyperparameters import Positive, hyperparameters
from edit.methods import EditingMethod, Fitted
from edit.methods.rewriting import stabilisers
from edit.requests.requests import EditRequest
from locate import DataError, Fact, UpdateError
from locate.model.weights import down_projection
from tests import tiny

REQUESTS = [
    EditRequest(
        Fact(prompt="{} is located in the city of", subject=name, target="Paris", id=name,
             paraphrases=("{} stands in",), neighbours=("Big Ben is in",)),
        "Rome",
    )
    for name in ("The Eiffel Tower", "The Louvre", "Big Ben")
]  # fmt: skip


@hyperparameters
class Adding(EditingMethod):
    """Adds the same to a layer's weights for every request: all that there is to a new method."""

    strength: Positive = 0.5

    @property
    def adds_up(self):
        return True

    def fit_with(self, job):
        down = down_projection(job.model, self.edited_layers(job.model, job.layer)[-1])
        deltas = {
            down.name: LowRank(
                left=torch.full((32, 1), self.strength), right=torch.eye(80)[: len(job.requests)].sum(0)[None]
            )
        }
        return Fitted(update=edit.WeightUpdate.make(job.model, deltas, method=self.name))

    def check(self, model, requests):
        pass


class Stubborn(Adding):
    @property
    def adds_up(self):
        return False


@pytest.fixture
def llama():
    return tiny.bridge("llama")


def weight(model, layer=3):
    return down_projection(model, layer).parameter.detach().clone()


def test_a_new_method_edits_in_sessions(llama, tmp_path):
    before = weight(llama)
    with edit.EditSession(llama, Adding(), folder=tmp_path / "s") as session:
        session.edit(REQUESTS[:1], progress=False)
        once = weight(llama)
        session.edit(REQUESTS[1:], progress=False)
        session.remove(REQUESTS[0])
        assert session.requests == REQUESTS[1:]
        assert session.update.method == "Adding"
        with pytest.raises(UpdateError, match="Adding in this form cannot solve a batch again"):
            session.undo(1)
        session.undo(2)
        assert torch.equal(weight(llama), before)
        session.edit(REQUESTS[:1], progress=False)
        assert torch.equal(weight(llama), once)
    with edit.EditSession(llama, Adding(), folder=tmp_path / "s") as session:
        assert session.requests == REQUESTS[:1]
    with pytest.raises(DataError, match=r'method\.strength was "0\.5" and is "0\.25"'):
        edit.EditSession(llama, Adding(strength=0.25), folder=tmp_path / "s")
    with edit.EditSession(llama, Stubborn()) as session:
        session.edit(REQUESTS[:1], progress=False)
        session.edit(REQUESTS[1:], progress=False)
        after = weight(llama)
        with pytest.raises(UpdateError, match="Stubborn in this form cannot solve a batch again"):
            session.remove(REQUESTS[0])
        assert torch.equal(weight(llama), after)


def test_a_new_method_is_evaluated_and_has_its_layer_chosen(llama):
    each = edit.evaluate_each(llama, Adding(strength=5.0), REQUESTS, layer=1, generate=False, progress=False)
    moved = each.rows.query("model == 'edited'")
    assert (moved["kl"] > 0).any()
    alone = Adding(strength=5.0).fit(llama, REQUESTS[0], layer=1)
    assert alone.parameters == [down_projection(llama, 1).name]
    rows = edit.evaluate(llama, alone, REQUESTS[:1], generate=False, progress=False).rows.query("model == 'edited'")
    assert moved.query("case == 0")["kl"].tolist() == pytest.approx(rows["kl"].tolist(), rel=1e-4)
    choice = edit.choose_layer(llama, Adding(), REQUESTS, layers=[0, 1], progress=False)
    assert list(choice.table.index) == [0, 1]


def test_what_the_methods_of_this_project_can():
    rome, memit, kn = edit.ROME(), edit.MEMIT(), edit.KN()
    assert (rome.one_by_one, memit.one_by_one, kn.one_by_one) == (True, False, False)
    assert (rome.writes_again, memit.writes_again, kn.writes_again) == (True, True, False)
    assert not replace(rome, original=True).writes_again
    assert (rome.adds_up, memit.adds_up, kn.adds_up, edit.KN(stabilisers=(edit.RECT(),)).adds_up) == (
        False, False, True, False,
    )  # fmt: skip
    assert (rome.uses_paraphrases, memit.uses_paraphrases, kn.uses_paraphrases) == (False, False, True)
    assert (rome.uses_statistics, memit.uses_statistics, kn.uses_statistics) == (True, True, False)
    tuned = edit.FineTuning()
    assert (tuned.one_by_one, tuned.writes_again, tuned.adds_up, tuned.uses_paraphrases) == (False,) * 4
    assert (tuned.changes_weights, tuned.uses_statistics) == (True, False)
    on_values = {name: getattr(edit, name)().acts_on_values for name in ("NAS", "ENCORE", "BLUE", "PRUNE", "RECT")}
    assert on_values == {"NAS": True, "ENCORE": True, "BLUE": True, "PRUNE": False, "RECT": False}


def test_no_caller_asks_which_method_or_stabiliser_it_is():
    everything = {**vars(methods), **vars(stabilisers)}.values()
    ours = {one.__name__ for one in everything if isinstance(one, type) and one.__module__.startswith("edit.methods")}
    root = Path(edit.__file__).parent
    asked = []
    for path in root.rglob("*.py"):
        if "methods" in path.relative_to(root).parts[:1]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("isinstance", "issubclass")
            ):
                names = {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)}
                asked += [(path.name, name) for name in names & ours]
    assert {"MEMIT", "EditingMethod", "PRUNE", "Stabiliser"} <= ours
    assert not asked
