"""Sessions: batches with memory, undo and removal by solving again, checkpoints, conflicts."""

import dataclasses
import hashlib
import json
import shutil
import warnings
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save

import edit
from edit.changes.lowrank import LowRank
from edit.methods import EMMET, KN, MEMIT, ROME, AlphaEdit, Job
from edit.methods.rewriting import rewriting
from edit.methods.rewriting.stabilisers import BLUE, NAS, PRUNE, RECT, reference_norm
from edit.requests.conflicts import find_conflicts
from edit.requests.requests import EditRequest
from edit.sessions.batches import Memory
from edit.sessions.files import load_batch
from edit.values.objective import ValueObjective
from locate import DataError, Fact, FactError, NumericsError, UpdateError
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny
from tests.edit.methods.problems import solved

PREFIXES = ("I am. ",)
OBJECTIVE = ValueObjective(steps=3, clamp=0.75, stop="loss", loss_threshold=-1.0)
PLACES = ["The Eiffel Tower", "The Louvre", "Big Ben", "The Colosseum", "Europe"]
REQUESTS = [
    EditRequest(Fact(prompt="{} is located in the city of", subject=name, target="Paris", id=f"f{i}"), "Rome")
    for i, name in enumerate(PLACES)
]
METHODS = {
    "MEMIT": MEMIT(weight=20.0, layers=(1, 2)), "AlphaEdit": AlphaEdit(ridge=0.5, layers=(1, 2)),
    "EMMET": EMMET(layers=(1,)), "ROME": ROME(layer=1),
}  # fmt: skip


@pytest.fixture
def method(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))

    def make(name="MEMIT", **changes):
        options = {"objective": OBJECTIVE, "prefixes": PREFIXES, "corpus": corpus, "statistics_tokens": 1500}
        return dataclasses.replace(METHODS[name], **{**options, **changes})

    return make


@pytest.fixture
def llama():
    return tiny.bridge("llama")


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


def weight(model, layer=1):
    return down_projection(model, layer).parameter.detach().clone()


def edited(session, *batches):
    for batch in batches:
        session.edit(batch, progress=False)
    return weight(session.model)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_a_session_edits_the_model_and_puts_it_back(kind, method):
    model = tiny.bridge(kind)
    before = prints(model)
    with edit.EditSession(model, method()) as session:
        first = session.edit(REQUESTS[:2], progress=False)
        after_one = weight(model)
        second = session.edit(REQUESTS[2:], progress=False)
        assert session.requests == REQUESTS
        assert [batch["edits"] for batch in session.log] == [2, 3]
        assert not torch.equal(weight(model), after_one)
        assert second.is_applied(model)
        assert not first.is_applied(model)
        changed = prints(model)
    assert prints(model) == before
    # The update of the whole session is one of the unedited model.
    with second.applied(model):
        assert prints(model) == changed
    assert prints(model) == before


def test_later_batches_know_the_keys_of_earlier_ones(llama, method):
    own = method()
    with edit.EditSession(llama, own) as session:
        knowing = dataclasses.replace(own, statistics=own.statistics_for(llama, progress=False))
        session.edit(REQUESTS[:2], progress=False)
        with pytest.raises(NumericsError, match="must be those of the unedited model"):
            own.fit(llama, REQUESTS[2:], earlier=session.earlier(), progress=False)
        fitted = knowing.fit_with(Job(model=llama, requests=REQUESTS[2:], earlier=session.earlier(), progress=False))
        session.edit(REQUESTS[2:], progress=False)
        earlier = session.earlier()
    assert earlier.written[1].keys.shape == (5, 80)
    torch.testing.assert_close(earlier.written[1].keys[2:], fitted.written[1].keys)
    # What the edits wrote is in the log of wanted values: keys and values fit the final weights as well as the
    # regularised solve lets them.
    assert list(earlier.anchors) == [2]


def test_the_unedited_models_statistics_are_collected_once(llama, method, monkeypatch):
    import edit.methods.rewriting.locate_then_edit as module

    calls = count_calls(monkeypatch, module, "collect_statistics")
    with edit.EditSession(llama, method()) as session:
        edited(session, REQUESTS[:1], REQUESTS[1:2], REQUESTS[2:3])
    assert len(calls) == 1


@pytest.mark.parametrize("name", METHODS)
def test_undoing_whole_batches_gives_back_the_weights_bit_for_bit(name, llama, method):
    with edit.EditSession(llama, method(name)) as session:
        before = edited(session, REQUESTS[:2])
        edited(session, REQUESTS[2:4], REQUESTS[4:])
        assert session.undo(3) == REQUESTS[2:]
        assert torch.equal(weight(llama), before)
        assert session.requests == REQUESTS[:2]


@pytest.mark.parametrize("name", METHODS)
def test_a_removed_edit_leaves_what_the_others_alone_would_give_at_their_values(name, llama, method):
    """Fixed keys and values, one edit fewer: solved here from scratch, in one batch for the methods with memory."""
    own = method(name)
    with edit.EditSession(llama, own) as session:
        original = weight(llama).double()
        edited(session, REQUESTS[:2], REQUESTS[2:4])
        written = session.earlier().written[1]
        session.remove("f1")
        assert session.requests == [REQUESTS[0], *REQUESTS[2:4]]
        found = weight(llama).double() - original
    keep = [0, 2, 3]
    keys, wanted = written.keys[keep].double(), written.values[keep].double()
    statistics = own.statistics_for(llama, progress=False)[1]
    none = torch.zeros(0, keys.shape[1])
    if name == "EMMET":
        first = product(solved(own, keys[:1], wanted[:1] - keys[:1] @ original.T, statistics, none))
        left = wanted[1:] - keys[1:] @ (original + first).T
        expected = first + product(solved(own, keys[1:], left, statistics, keys[:1].float()))
    else:
        expected = product(solved(own, keys, wanted - keys @ original.T, statistics, none))
    assert (found - expected).norm() < 1e-4 * expected.norm()


def product(factors):
    left, right = factors
    return (left @ right).double()


def test_undoing_part_of_a_batch_solves_it_again(llama, method):
    with edit.EditSession(llama, method()) as session:
        edited(session, REQUESTS[:3])
        written = session.earlier().written[1]
        session.undo(1)
        assert session.requests == REQUESTS[:2]
        torch.testing.assert_close(session.earlier().written[1].keys, written.keys[:2])
        session.undo(2)
        with pytest.raises(UpdateError, match="This session has no edits"):
            _ = session.update
        with pytest.raises(UpdateError, match="This session has 0 edits; 1 cannot be undone"):
            session.undo()


def test_what_cannot_be_solved_again_is_refused_and_nothing_changes(llama, method):
    original = method("ROME", original=True)
    with edit.EditSession(llama, original) as session:
        after = edited(session, REQUESTS[:2])
        with pytest.raises(UpdateError, match="ROME in this form cannot solve a batch again"):
            session.remove("f0")
        assert torch.equal(weight(llama), after)
        with pytest.raises(UpdateError, match=r"no edit 'f9' in this session"):
            session.remove("f9")


def test_kn_edits_add_up_so_that_one_can_go(llama):
    own = KN(steps=2, share=0.3, prefix_lengths=((2, 2),), most=2)
    with edit.EditSession(llama, own) as session:
        edited(session, REQUESTS[:1], REQUESTS[1:2])
        deltas = [dict(batch.deltas) for batch in session._batches]
        session.remove("f0")
        assert session.requests == [REQUESTS[1]]
        assert {n: d.rank for n, d in session.update.deltas.items()} == {n: d.rank for n, d in deltas[1].items()}


def test_a_killed_session_goes_on_where_it_was(llama, method, tmp_path, monkeypatch):
    before = prints(llama)
    folder = tmp_path / "session"
    with edit.EditSession(llama, method()) as session:
        session.edit(REQUESTS, batch_size=2, progress=False)
        expected = weight(llama)
    fits = []
    real = MEMIT.fit_with

    def dying(self, job):
        fits.append(job.requests)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return real(self, job)

    monkeypatch.setattr(MEMIT, "fit_with", dying)
    session = edit.EditSession(llama, method(), folder=folder)
    with pytest.raises(KeyboardInterrupt):
        session.edit(REQUESTS, batch_size=2, progress=False)
    assert session.requests == REQUESTS[:2]
    session.close()
    assert prints(llama) == before
    fits[:] = [None, None]
    with edit.EditSession(llama, method(), folder=folder) as again:
        assert again.requests == REQUESTS[:2]
        again.edit(REQUESTS, batch_size=2, progress=False)
        assert [len(batch) for batch in fits[2:]] == [2, 1]
        torch.testing.assert_close(weight(llama), expected, atol=1e-5, rtol=1e-5)
        again.remove("f2")
    with edit.EditSession(llama, method(), folder=folder) as third:
        assert [request.fact.id for request in third.requests] == ["f0", "f1", "f3", "f4"]
        third.undo(2)
    with edit.EditSession(llama, method(), folder=folder) as fourth:
        assert [request.fact.id for request in fourth.requests] == ["f0", "f1"]
    assert prints(llama) == before


def test_a_folder_belongs_to_one_method_and_undamaged_files(llama, method, tmp_path):
    folder = tmp_path / "session"
    with edit.EditSession(llama, method(), folder=folder) as session:
        edited(session, REQUESTS[:1])
    with pytest.raises(DataError, match="belongs to another run: method"):
        edit.EditSession(llama, method(weight=99.0), folder=folder)
    (file,) = (folder / "batches").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    other = file.with_name(f"{'0' * 24}.safetensors")
    other.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: its content does not match its name"):
        load_batch(other)
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: its checksum does not match.*begin the session again"):
        edit.EditSession(llama, method(), folder=folder)


def test_batches_that_were_named_by_a_hash_of_their_file_are_read(llama, method, tmp_path):
    """Written out by hand, as sessions wrote them before files had a version and a checksum."""
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        edited(session, REQUESTS[:2])
        (batch,) = session._batches
    tensors = {f"{n}.{side}": getattr(delta, side) for n, delta in batch.deltas.items() for side in ("left", "right")}
    for layer, one in batch.written.items():
        tensors |= {f"written.{layer}.keys": one.keys, f"written.{layer}.values": one.values}
    described = {
        "requests": [dataclasses.asdict(request) for request in batch.requests], "anchors": dict(batch.anchors),
        "info": batch.info, "parameters": list(batch.deltas), "layers": list(batch.written), "before": None,
    }  # fmt: skip
    content = save(tensors, {"locate_edit_batch": json.dumps(described)})
    path = tmp_path / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
    path.write_bytes(content)
    loaded = load_batch(path)
    assert (loaded.requests, loaded.info, loaded.anchors) == (batch.requests, batch.info, batch.anchors)
    assert all(torch.equal(loaded.deltas[name].dense(), own.dense()) for name, own in batch.deltas.items())
    assert torch.equal(loaded.written[1].values, batch.written[1].values)
    damaged = bytearray(content)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="is damaged: its content does not match its name"):
        load_batch(path)


def test_conflicts_are_found_and_refused_before_anything_changes(llama, method):
    tower = REQUESTS[0].fact
    contradiction = EditRequest(dataclasses.replace(tower, subject="the eiffel tower", id="other"), "London")
    related = EditRequest(
        dataclasses.replace(tower, prompt="The city of {} is", relation="city", id="related"), "London"
    )
    named = EditRequest(dataclasses.replace(tower, relation="city"), "Rome")
    assert find_conflicts([REQUESTS[0], contradiction]) == [(REQUESTS[0], contradiction)]
    assert find_conflicts([related], [named]) == [(named, related)]
    assert find_conflicts(REQUESTS) == []
    with edit.EditSession(llama, method()) as session:
        after = edited(session, REQUESTS[:2])
        with pytest.raises(FactError, match=r"same subject and relation as another one. Nothing was changed"):
            session.edit([REQUESTS[2], contradiction], progress=False)
        assert torch.equal(weight(llama), after)
        session.edit(contradiction, on_conflict="replace", progress=False)
        assert session.requests == [REQUESTS[1], contradiction]
        with pytest.raises(FactError, match="on_conflict: must be 'error' or 'replace'"):
            session.edit(REQUESTS[3], on_conflict="ignore")
        with pytest.raises(NumericsError, match="batch_size: must be 1 or more, found 0"):
            session.edit(REQUESTS[3], batch_size=0)


def saying(model, word, once_edited=False):
    """The model with one answer to everything, or only where its weights are not these."""
    unedited = weight(model)
    token = tiny.tokenizer()(f" {word}")["input_ids"][0]

    def say(logits, hook):
        logits = logits.clone()
        if not (once_edited and torch.equal(weight(model), unedited)):
            logits[..., token] += 100
        return logits

    return model.hooks(fwd_hooks=[("unembed.hook_out", say)])


@pytest.mark.parametrize("name", ["MEMIT", "KN"])
def test_what_the_unedited_model_answers_is_refused_before_anything_changes(name, llama, method):
    known = [EditRequest(dataclasses.replace(r.fact, target="Rome"), "Paris") for r in REQUESTS[1:3]]
    own = KN(threshold=0.0) if name == "KN" else method()
    before = prints(llama)
    with edit.EditSession(llama, own) as session, saying(llama, "Paris"):
        with pytest.raises(FactError, match=r"The Louvre.*the model already answers 'Paris', so there is nothing"):
            session.edit([REQUESTS[0], known[0]], batch_size=1, progress=False)
        with pytest.raises(FactError, match=r"2 requests for what the model already answers[\s\S]*Big Ben"):
            session.edit([REQUESTS[0], *known], batch_size=1, progress=False)
        with pytest.raises(FactError, match="already answers"):
            own.fit(llama, known, progress=False)
        assert session.requests == []
        assert prints(llama) == before


@contextmanager
def ignored(words):
    """No warnings that hold these words, among others that are errors."""
    warnings.filterwarnings("ignore", f".*{words}")
    yield


@pytest.mark.parametrize("name", ["MEMIT", "ROME", "KN"])
def test_what_earlier_edits_made_true_is_written_all_the_same(name, llama, method):
    own = KN(threshold=0.0) if name == "KN" else method(name)
    untouched = saying(llama, "Rome", once_edited=True)
    with edit.EditSession(llama, own) as session:
        before = edited(session, REQUESTS[:2])
        with untouched:
            session.edit(REQUESTS[2:4], batch_size=1, progress=False)
        # What it said before any edit is refused also now.
        with saying(llama, "Rome"), pytest.raises(FactError, match="already answers"):
            session.edit(REQUESTS[4], progress=False)
        assert session.requests == REQUESTS[:4]
        if name != "ROME":  # which writes the key with the value that it has
            assert (weight(llama) - before).norm() > 0
        if name != "KN":  # which has no keys
            assert len(session.earlier().written[1].keys) == 4


def test_a_batch_that_fails_leaves_the_earlier_ones_in_place(llama, method):
    with edit.EditSession(llama, method()) as session:
        after = edited(session, REQUESTS[:1])
        session._fitting = dataclasses.replace(
            session._fitting, objective=dataclasses.replace(OBJECTIVE, learning_rate=float("inf"))
        )
        with pytest.raises(NumericsError, match="loss is nan"):
            session.edit(REQUESTS[1:], progress=False)
        assert torch.equal(weight(llama), after)
        assert session.requests == REQUESTS[:1]


def test_stabilisers_see_the_whole_session(llama, method):
    with edit.EditSession(llama, method(stabilisers=(NAS(), PRUNE()))) as session:
        edited(session, REQUESTS[:2])
        anchors = dict(session.earlier().anchors)
        edited(session, REQUESTS[2:])
        assert session.earlier().anchors == anchors


def test_every_stage_has_an_anchor_of_its_own(llama, method):
    asked = []

    class Recorded(NAS):
        def values(self, values, anchor):
            asked.append((reference_norm(values), anchor))
            return super().values(values, anchor)

    with edit.EditSession(llama, method(stabilisers=(BLUE(), Recorded()))) as session:
        edited(session, REQUESTS[:2], REQUESTS[2:])
    assert [anchor for _, anchor in asked[:2]] == [None, None]
    assert [anchor for _, anchor in asked[2:]] == [norm for norm, _ in asked[:2]]
    assert asked[0][0] != pytest.approx(asked[1][0], rel=1e-3)


def test_romes_anchor_is_of_values_found_on_the_model_as_it_is(llama, method):
    own = method("ROME", stabilisers=(NAS(),))
    clean = reference_norm(own.values_for(llama, REQUESTS[:3], progress=False))
    fitted = own.fit_with(Job(model=llama, requests=REQUESTS[:3], progress=False))
    assert fitted.anchors == {1: pytest.approx(clean, rel=1e-5)}


def test_an_anchor_outlives_the_batch_that_gave_it(llama, method):
    with edit.EditSession(llama, method(stabilisers=(edit.NAS(),))) as session:
        for request in REQUESTS[:2]:
            session.edit(request, progress=False)
        anchors = dict(session.earlier().anchors)
        session.remove(REQUESTS[0])
        assert session.requests == REQUESTS[1:2]
        assert session.earlier().anchors == anchors


def test_the_record_tells_only_of_edits_that_stand(llama, method):
    with edit.EditSession(llama, method()) as session:
        edited(session, REQUESTS[:3])
        session.undo()
        session.remove(REQUESTS[0])
        (batch,) = session.update.info["batches"]
        assert [one["request"] for one in batch["edits"]] == [REQUESTS[1].describe()]


def test_given_statistics_belong_to_a_folder(llama, method, tmp_path):
    usual = method()
    known = usual.statistics_for(llama, progress=False)
    own = dataclasses.replace(usual, statistics=known)
    with edit.EditSession(llama, own, folder=tmp_path / "session") as session:
        edited(session, REQUESTS[:1])
    with edit.EditSession(llama, own, folder=tmp_path / "session") as session:
        assert session.requests == REQUESTS[:1]
    others = {layer: dataclasses.replace(one, second_moment=2 * one.second_moment) for layer, one in known.items()}
    with pytest.raises(DataError, match="belongs to another run: statistics was"):
        edit.EditSession(llama, dataclasses.replace(usual, statistics=others), folder=tmp_path / "session")


def test_a_closed_session_keeps_its_update_and_edits_no_more(llama, method):
    before = prints(llama)
    with edit.EditSession(llama, method()) as session:
        edited(session, REQUESTS[:2])
        update = session.update
    assert session.update is update
    for ask in (lambda: session.edit(REQUESTS[2]), session.undo, lambda: session.remove("f0"),
                lambda: session.export("nowhere")):  # fmt: skip
        with pytest.raises(UpdateError, match="This session is closed"):
            ask()
    session.close()
    assert prints(llama) == before


def test_a_replacement_that_fails_leaves_what_was_there(llama, method, tmp_path):
    tower = REQUESTS[0].fact
    new = EditRequest(dataclasses.replace(tower, id="new"), "London")
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        after = edited(session, REQUESTS[:2])
        sound = session._fitting
        session._fitting = dataclasses.replace(
            sound, objective=dataclasses.replace(OBJECTIVE, learning_rate=float("inf"))
        )
        with pytest.raises(NumericsError, match="loss is nan"):
            session.edit(new, on_conflict="replace", progress=False)
        assert session.requests == REQUESTS[:2]
        assert torch.equal(weight(llama), after)
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as again:
        assert again.requests == REQUESTS[:2]


def test_a_session_killed_while_it_replaces_has_the_old_edit_on_disk(llama, method, tmp_path, monkeypatch):
    new = EditRequest(dataclasses.replace(REQUESTS[0].fact, id="new"), "London")
    folder, copy = tmp_path / "session", tmp_path / "copy"
    with edit.EditSession(llama, method(), folder=folder) as session:
        edited(session, REQUESTS[:2])
        real = session._know_the_unedited

        def killed(progress):
            if session.requests == [REQUESTS[1]]:  # the old edit is out of the model
                shutil.copytree(folder, copy)
            real(progress)

        monkeypatch.setattr(session, "_know_the_unedited", killed)
        session.edit(new, on_conflict="replace", progress=False)
    with edit.EditSession(llama, method(), folder=copy) as left:
        assert left.requests == REQUESTS[:2]


def test_a_script_that_replaces_an_edit_can_be_run_again(llama, method, tmp_path):
    new = EditRequest(dataclasses.replace(REQUESTS[0].fact, id="new"), "London")

    def script(session, killed=False):
        edited(session, REQUESTS[:2])
        session.edit(new, on_conflict="replace", progress=False)
        if not killed:
            session.edit(REQUESTS[2], progress=False)
        return weight(llama)

    with edit.EditSession(llama, method()) as session:
        expected = script(session)
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        script(session, killed=True)
    for _ in range(2):
        with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
            with pytest.warns(UserWarning, match=r"Left out 1 request, as in a script that is run again"):
                script(session)
            assert torch.equal(weight(llama), expected)
            assert session.requests == [REQUESTS[1], new, REQUESTS[2]]
            assert len(session.log) == 3
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        # What was replaced comes back where its replacement is gone.
        session.remove(new)
        edited(session, REQUESTS[:1])
        assert session.requests == [REQUESTS[1], REQUESTS[2], REQUESTS[0]]


@pytest.mark.parametrize("stop", range(6))
def test_a_script_that_replaces_back_and_forth_goes_on_where_it_was(stop, llama, method, tmp_path, monkeypatch):
    old, new = (EditRequest(dataclasses.replace(REQUESTS[0].fact, id=name), "London") for name in ("old", "new"))
    calls = [REQUESTS[1], old, new, old, REQUESTS[2], new]

    def script(session, calls):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for request in calls:
                session.edit(request, on_conflict="replace", progress=False)
        return weight(llama)

    with edit.EditSession(llama, method()) as session:
        expected = script(session, calls)
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        script(session, calls[:stop])
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        made = count_calls(monkeypatch, session, "_edit_batch")
        assert torch.equal(script(session, calls), expected)
        assert session.requests == [REQUESTS[1], REQUESTS[2], new]
        assert len(made) == len(calls) - stop
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        with pytest.warns(UserWarning, match="Ask again for what is to come back"):
            session.edit(old, on_conflict="replace", progress=False)
        assert session.requests[-1] == new
        # It was replaced twice.
        with pytest.warns(UserWarning, match="Ask again"):
            session.edit(old, on_conflict="replace", progress=False)
        session.edit(old, on_conflict="replace", progress=False)
        assert session.requests[-1] == old


def count_calls(monkeypatch, owner, name):
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **options: calls.append(args) or real(*args, **options))
    return calls


def test_a_folder_that_does_not_say_what_stands_is_refused(llama, method, tmp_path):
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        edited(session, REQUESTS[:1])
    cases = tmp_path / "session" / "cases.jsonl"
    cases.write_text(cases.read_text().replace('"last"', '"others"'))
    with pytest.raises(DataError, match="is damaged: it does not say which batches stand"):
        edit.EditSession(llama, method(), folder=tmp_path / "session")


def test_one_request_may_replace_several_and_several_one(llama, method):
    tower = REQUESTS[0].fact
    asked = EditRequest(dataclasses.replace(tower, id="asked"), "Rome")
    named = EditRequest(dataclasses.replace(tower, prompt="The city of {} is", relation="city", id="named"), "Rome")
    both = EditRequest(dataclasses.replace(tower, relation="city", id="both"), "London")
    with edit.EditSession(llama, method()) as session:
        edited(session, [asked, named, REQUESTS[1]])
        session.edit(both, on_conflict="replace", progress=False)
        assert session.requests == [REQUESTS[1], both]
        session.edit([asked, named], on_conflict="replace", progress=False)
        assert session.requests == [REQUESTS[1], asked, named]


def test_prefixes_are_those_of_the_unedited_model(llama, method):
    own = method(prefixes=None, prefix_lengths=((4, 2),))
    expected = edit.sample_prefixes(llama, ((4, 2),))[1:]
    with edit.EditSession(llama, own) as session:
        edited(session, REQUESTS[:2], REQUESTS[2:])
        assert [batch["info"]["prefixes"] for batch in session.log] == [expected, expected]


def test_a_session_goes_on_with_the_prefixes_and_statistics_it_began_with(llama, method, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:04d}" for number in range(4000)))
    own = method(prefixes=None, prefix_lengths=((3, 2),), corpus=str(text))
    with edit.EditSession(llama, own, folder=tmp_path / "s") as session:
        session.edit(REQUESTS[:1], progress=False)
        prefixes = session.log[0]["info"]["prefixes"]
    with (
        warnings.catch_warnings(action="error"),
        ignored("did not reach"),
        pytest.MonkeyPatch.context() as patch,
        edit.EditSession(llama, own, folder=tmp_path / "s") as session,
    ):
        patch.setattr(rewriting, "sample_prefixes", lambda *_: ["", "Another device samples others. "])
        session.edit(REQUESTS[1:2], progress=False)
        assert session.log[1]["info"]["prefixes"] == prefixes
    text.write_text(" ".join(f"{number:04d}" for number in range(7000, 3000, -1)))
    with edit.EditSession(llama, own, folder=tmp_path / "s") as session:
        with pytest.warns(UserWarning, match=r"of layers 1, 2 are not those that this session began with"):
            session.edit(REQUESTS[2:3], progress=False)
        assert len(session.requests) == 3


def test_kn_asks_every_batch_under_the_unedited_models_texts(llama):
    with edit.EditSession(llama, KN(write=20.0, prefix_lengths=((4, 2),))) as session:
        for request in REQUESTS[:2]:
            session.edit(request, progress=False)
        first, second = (batch["info"]["prefixes"] for batch in session.log)
        assert len(first) == 2
        assert first == second


def test_a_name_of_several_edits_is_refused(llama, method):
    twins = [EditRequest(dataclasses.replace(one.fact, id="same"), "Rome") for one in REQUESTS[:2]]
    with edit.EditSession(llama, method()) as session:
        session.edit(twins, progress=False)
        with pytest.raises(UpdateError, match=r"2 edits of this session go by 'same'\. Give the request itself"):
            session.remove("same")
        assert session.remove(twins[1]) == twins[1]


@pytest.mark.parametrize("stabiliser", [RECT(), PRUNE()], ids=["RECT", "PRUNE"])
def test_romes_stabilisers_act_on_each_request_also_when_solved_again(stabiliser, llama, method):
    own = method("ROME", stabilisers=(stabiliser,))
    with edit.EditSession(llama, own) as session:
        expected = edited(session, REQUESTS[:2])
        session.undo(2)
        edited(session, REQUESTS[:3])
        session.undo(1)
        found = weight(llama)
        original = weight(llama) - session.update.delta(session.update.parameters[0])
    assert (found - expected).norm() < 1e-4 * (expected - original).norm()


def test_kn_with_a_stabiliser_cannot_take_an_edit_out_of_the_middle(llama):
    own = KN(steps=2, share=0.3, prefix_lengths=((2, 2),), most=2, stabilisers=(RECT(),))
    with edit.EditSession(llama, own) as session:
        after = edited(session, REQUESTS[:1], REQUESTS[1:2])
        with pytest.raises(UpdateError, match=r"KN in this form cannot solve .* undo whole batches"):
            session.remove("f0")
        assert torch.equal(weight(llama), after)
        session.undo()
        assert session.requests == REQUESTS[:1]


def test_what_a_batch_adds_is_added_once(llama, method, monkeypatch):
    with edit.EditSession(llama, method()) as session:
        edited(session, *([request] for request in REQUESTS[:4]))
        joins = []
        real = LowRank.joined
        monkeypatch.setattr(LowRank, "joined", lambda self, other: joins.append(1) or real(self, other))
        edited(session, REQUESTS[4:])
        assert len(joins) == 2  # one for each layer
        monkeypatch.undo()
        memory = session.earlier()
        session._memory = Memory()
        again = session.earlier()
    for name, change in memory.changes.items():
        torch.testing.assert_close(change.dense(), again.changes[name].dense(), rtol=0, atol=0)
    assert torch.equal(memory.written[1].keys, again.written[1].keys)
    assert memory.anchors == again.anchors


def test_the_edited_model_can_be_exported(llama, method, tmp_path):
    from transformers import AutoModelForCausalLM

    with edit.EditSession(llama, method()) as session:
        edited(session, REQUESTS[:2])
        session.export(tmp_path / "model")
        wanted = weight(llama)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(plain.model.layers[1].mlp.down_proj.weight, wanted)


def test_what_cannot_be_written_down_is_not_undone(llama, method, tmp_path, monkeypatch):
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        after = edited(session, REQUESTS[:2], REQUESTS[2:3])

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr(session._disk, "keep", full)
        for call in (session.undo, lambda: session.undo(2), lambda: session.remove("f0")):
            with pytest.raises(OSError, match="No space left"):
                call()
            assert session.requests == REQUESTS[:3]
            assert torch.equal(weight(llama), after)
        monkeypatch.undo()
        session.undo()
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        assert session.requests == REQUESTS[:2]


def test_a_folder_is_released_where_the_model_cannot_be_put_back(llama, method, tmp_path):
    session = edit.EditSession(llama, method(), folder=tmp_path / "session")
    session.edit(REQUESTS[:1], progress=False)
    other = method("ROME").fit(llama, REQUESTS[1], progress=False)
    before = prints(llama)
    other.apply(llama)
    with pytest.raises(UpdateError, match="was changed after"):
        session.close()
    with pytest.raises(UpdateError, match="This session is closed"):
        session.edit(REQUESTS[1], progress=False)
    other.revert(llama)
    assert prints(llama) == before
    session.close()
    session.update.apply(llama)
    session.close()
    assert prints(llama) == before
    session.update.revert(llama)
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        assert session.requests == REQUESTS[:1]


def test_what_is_only_asked_does_not_make_another_edit(llama, method, tmp_path, monkeypatch):
    asked = [
        EditRequest(dataclasses.replace(request.fact, neighbours=("Big Ben is in",)), "Rome", aliases=("Roma",))
        for request in REQUESTS
    ]
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        after = edited(session, REQUESTS[:2])
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        made = count_calls(monkeypatch, session, "_edit_batch")
        assert torch.equal(edited(session, asked[:2]), after)
        assert not made
        assert session.remove(asked[1]) == REQUESTS[1]
        # A script that replaces, run again with other prompts to ask.
        london = EditRequest(REQUESTS[0].fact, "London")
        session.edit(london, on_conflict="replace", progress=False)
        after = weight(llama)
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        made = count_calls(monkeypatch, session, "_edit_batch")
        with pytest.warns(UserWarning, match=r"Left out 1 request"):
            session.edit(asked[0], progress=False)
        session.edit(london, on_conflict="replace", progress=False)
        assert not made
        assert torch.equal(weight(llama), after)
    own = KN(steps=2, share=0.3, prefix_lengths=((2, 2),), most=2)
    paraphrased = EditRequest(dataclasses.replace(REQUESTS[0].fact, paraphrases=("Where is {}?",)), "Rome")
    with edit.EditSession(llama, own, folder=tmp_path / "kn") as session:
        edited(session, REQUESTS[:1])
        with pytest.raises(FactError, match="same subject and relation"):
            session.edit(paraphrased, progress=False)


def test_memory_may_change_between_turns_and_a_difference_is_named(llama, method, tmp_path):
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        edited(session, REQUESTS[:1])
    with edit.EditSession(llama, method(budget=64), folder=tmp_path / "session") as session:
        edited(session, REQUESTS[1:2])
    with pytest.raises(DataError, match=r'another run: method\.weight was "20\.0" and is "30\.0" now\. Give'):
        edit.EditSession(llama, method(weight=30.0), folder=tmp_path / "session")
    with pytest.raises(DataError, match=r'another run: method\.layers was "\(1, 2\)" and is "\(0, 1\)" now\. Give'):
        edit.EditSession(llama, method(), layer=1, folder=tmp_path / "session")
    with edit.EditSession(llama, method(weight=20), folder=tmp_path / "session") as session:
        assert session.requests == REQUESTS[:2]
    noted = tmp_path / "session" / "run.json"  # by an earlier version, which kept the integer that it was given
    assert noted.read_text().count('"20.0"') == 1
    noted.write_text(noted.read_text().replace('"20.0"', '"20"'))
    with edit.EditSession(llama, method(), folder=tmp_path / "session") as session:
        assert session.requests == REQUESTS[:2]
    # The same layers, said in another way.
    with edit.EditSession(llama, method(layers=None), layer=(1, 2), folder=tmp_path / "session") as session:
        assert session.requests == REQUESTS[:2]


def test_no_requests_are_a_mistake(llama, method):
    with edit.EditSession(llama, method()) as session, pytest.raises(FactError, match="There is nothing to edit"):
        session.edit([], progress=False)


def test_a_sessions_notes_do_not_grow_with_its_length(llama, method, tmp_path):
    folder = tmp_path / "session"
    with edit.EditSession(llama, method(), folder=folder) as session:
        after = edited(session, *([request] for request in REQUESTS))
    lines = (folder / "cases.jsonl").read_text().splitlines()
    assert len(lines) == len(REQUESTS)
    assert len({len(line) for line in lines}) == 1
    with edit.EditSession(llama, method(), folder=folder) as session:
        assert torch.equal(weight(llama), after)
        # A batch in the middle that goes takes the names of those after it along.
        session.remove("f1")
        expected = weight(llama)
        names = [(batch.before, batch.file) for batch in session._batches]
    assert [before for before, _ in names] == [None, *(file for _, file in names[:-1])]
    with edit.EditSession(llama, method(), folder=folder) as session:
        assert torch.equal(weight(llama), expected)
    own = KN(steps=2, share=0.3, prefix_lengths=((2, 2),), most=2)
    with edit.EditSession(llama, own, folder=tmp_path / "kn") as session:
        edited(session, REQUESTS[:1], REQUESTS[1:2], REQUESTS[2:3])
        session.remove("f1")
        expected = weight(llama)
    with edit.EditSession(llama, own, folder=tmp_path / "kn") as session:
        assert session.requests == [REQUESTS[0], REQUESTS[2]]
        assert torch.equal(weight(llama), expected)
