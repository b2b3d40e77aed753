"""ROME: the value is written exactly, nothing else moves, and bad input is refused."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

import edit
from benchmarks import literal_rome
from edit.evaluation import evaluate
from edit.methods import ROME
from edit.requests.requests import EditRequest
from edit.statistics import key_statistics
from edit.values.contexts import build_contexts
from edit.values.objective import ValueObjective
from edit.values.optimisation import optimise_value
from locate import DataError, Fact, FactError, NumericsError, SiteError
from locate.facts.prompts import encode_text
from locate.model.weights import down_projection, fingerprint, hf_parameters
from tests import tiny

KINDS = ["gpt2", "gpt_neox", "gptj", "llama", "gemma3_text", "bloom"]
PREFIXES = ("I am. ", "You see the Louvre. ", "Because it is there too. ")
TOWER = Fact(
    prompt="In Europe, {} is located in the city of",
    subject="The Eiffel Tower",
    target="Paris",
    target_new="Rome",
)
LOUVRE = Fact(prompt="{} stands in", subject="The Louvre", target="Paris", target_new="London in France")
OBJECTIVE = ValueObjective(steps=4)


@pytest.fixture
def rome(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path))
    return ROME(layer=1, objective=OBJECTIVE, prefixes=PREFIXES, corpus=corpus, bare_weight=0.5, openings=())


@pytest.fixture
def llama():
    return tiny.bridge("llama")


def dense(model, update):
    """The update of layer 1 as d_model × d_mlp."""
    down = down_projection(model, 1)
    assert update.parameters == [down.name]
    delta = update.delta(down.name)
    return delta.T if down.transposed else delta


def prints(model):
    return {name: fingerprint(parameter) for name, parameter in hf_parameters(model).items()}


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_the_edited_projection_gives_the_value_at_the_mean_key(kind, rome):
    model = tiny.bridge(kind)
    before = prints(model)
    value = optimise_value(model, build_contexts(model, EditRequest(TOWER), ["", *PREFIXES]), 1, OBJECTIVE)
    update = rome.fit(model, [EditRequest(TOWER)])
    assert prints(model) == before
    assert update.rank == 1
    projection = model.blocks[1].mlp.out
    with torch.no_grad(), update.applied(model):
        written = projection(literal_rome.halved_mean(value.keys)[None, None])[0, 0]
        bare = projection(value.keys[:1, None])[0, 0]
    torch.testing.assert_close(written, value.value, atol=1e-4, rtol=0)
    assert (bare - value.value).abs().max() > 1e-3


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_literal_update(kind, original, rome):
    model = tiny.bridge(kind)
    request = EditRequest(TOWER)
    update = dataclasses.replace(rome, original=original).fit(model, [request])
    moment = key_statistics(model, 1, corpus=rome.corpus).second_moment
    expected = literal_rome.rome_delta(model, request, ["", *PREFIXES], 1, OBJECTIVE, moment, original=original)
    found = dense(model, update).double()
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_bare_prompt_may_have_a_weight_of_its_own(weight, llama, rome):
    weighted = dataclasses.replace(rome, bare_weight=weight)
    value = optimise_value(llama, build_contexts(llama, EditRequest(TOWER), ["", *PREFIXES]), 1, OBJECTIVE)
    key = weight * value.keys[0] + (1 - weight) * value.keys[1:].mean(0)
    with torch.no_grad(), weighted.fit(llama, [EditRequest(TOWER)]).applied(llama):
        written = llama.blocks[1].mlp.out(key[None, None])[0, 0]
    torch.testing.assert_close(written, value.value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_even_weight_gives_the_bare_prompt_and_prefixes_the_same_part(kind, rome):
    model = tiny.bridge(kind)
    contexts = build_contexts(model, EditRequest(TOWER), ["", *PREFIXES])
    value = optimise_value(model, contexts, 1, OBJECTIVE)
    update = dense(model, dataclasses.replace(rome, bare_weight="even").fit(model, [EditRequest(TOWER)])).double()
    inverse = torch.linalg.inv(key_statistics(model, 1, corpus=rome.corpus).second_moment.double())
    bare, others = value.keys[0].double(), value.keys[1:].double().mean(0)
    chances = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    means = chances * bare + (1 - chances) * others
    apart = (means @ inverse @ (bare - others)).abs()  # of the parts that both get
    mean = means[apart.argmin()]
    delta = (value.value - value.initial).double()
    expected = torch.outer(delta, inverse @ mean) / (mean @ inverse @ mean)
    assert (update - expected).norm() < 1e-3 * expected.norm()
    torch.testing.assert_close(update @ mean, delta, atol=1e-3, rtol=0)
    if 0 < apart.argmin() < len(chances) - 1:
        torch.testing.assert_close(update @ bare, delta, atol=1e-3, rtol=0)
        torch.testing.assert_close(update @ others, delta, atol=1e-3, rtol=0)


def test_the_default_teaches_where_the_answer_ends_and_other_openings(llama):
    contexts = ROME().contexts_of(llama, EditRequest(TOWER), ["", *PREFIXES])
    texts = [llama.tokenizer.decode(one.tokens) for one in contexts.restated]
    assert texts[0] == "The Eiffel Tower: In Europe, this is located in the city of Rome"
    assert len(texts) == 3
    assert llama.tokenizer(".", add_special_tokens=False)["input_ids"][0] in contexts.endings.tolist()
    chinese = ROME(openings=(("{}：", "它"),)).contexts_of(
        llama, EditRequest(Fact(prompt="{}的首都是", subject="中国", target="北京"), "上海"), [""]
    )
    assert llama.tokenizer.decode(chinese.restated[0].tokens) == "中国：它的首都是上海"
    with pytest.raises(NumericsError, match="openings: each is a text with one"):
        ROME(openings=(("About it. ", "it"),))


def test_a_value_that_misses_its_target_is_named(llama, rome):
    with pytest.warns(
        UserWarning, match=r"1 of 1 values did not reach their targets.*\n.*Paris → Rome: 0\.\d+ after 4"
    ):
        update = rome.fit(llama, [EditRequest(TOWER)])
    assert update.info["edits"][0]["missed"]
    assert update.info["edits"][0]["probability"] < 0.5
    evaluation = evaluate(llama, update, [EditRequest(TOWER), EditRequest(LOUVRE)], generate=False)
    rows = evaluation.rows
    assert rows[rows["missed"]][["model", "case"]].drop_duplicates().to_numpy().tolist() == [["edited", 0]]
    assert evaluation.missed == [update.info["edits"][0]["request"]]
    assert evaluation.summary().loc["missed", "edited"] == 50
    # A stop rule that is met is no miss, however unlikely the answer is.
    far = dataclasses.replace(rome, objective=ValueObjective(steps=4, stop="loss", loss_threshold=1e3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reached = far.fit(llama, [EditRequest(TOWER)])
    assert not reached.info["edits"][0]["missed"]
    assert "missed" not in evaluate(llama, reached, [EditRequest(TOWER)], generate=False).summary().index


def test_as_much_as_a_prefix_is_the_published_weight(llama, rome):
    published = dataclasses.replace(rome, bare_weight=None).fit(llama, [EditRequest(TOWER)])
    same = dataclasses.replace(rome, bare_weight=1 / (1 + len(PREFIXES))).fit(llama, [EditRequest(TOWER)])
    torch.testing.assert_close(dense(llama, same), dense(llama, published), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(dense(llama, rome.fit(llama, [EditRequest(TOWER)])), dense(llama, published), rtol=1e-2)
    alone = dataclasses.replace(rome, prefixes=()).fit(llama, [EditRequest(TOWER)])
    assert alone.rank == 1  # without prefixes there is the bare prompt alone


def test_the_original_form_has_the_published_mean_whatever_the_weight(llama, rome):
    original = dataclasses.replace(rome, original=True)
    other = dataclasses.replace(original, bare_weight=0.9)
    updates = [dense(llama, method.fit(llama, [EditRequest(TOWER)])) for method in (original, other)]
    torch.testing.assert_close(updates[0], updates[1], atol=0, rtol=0)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(NumericsError, match="bare_weight: must be from 0 to 1, found"):
        ROME(bare_weight=weight)


def test_keys_orthogonal_to_the_mean_key_are_left_alone(llama, rome):
    contexts = build_contexts(llama, EditRequest(TOWER), ["", *PREFIXES])
    key = literal_rome.halved_mean(optimise_value(llama, contexts, 1, OBJECTIVE).keys).double()
    moment = key_statistics(llama, 1, corpus=rome.corpus).second_moment
    solved = torch.linalg.solve(moment, key)
    others = torch.randn(80, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orthogonal = others - torch.outer(key, solved @ others) / (solved @ key)
    delta = dense(llama, rome.fit(llama, [EditRequest(TOWER)])).double()
    moved = (delta @ orthogonal).norm(dim=0) / (delta.norm() * orthogonal.norm(dim=0))
    assert moved.max() < 1e-5
    assert ((delta @ others).norm(dim=0) / (delta.norm() * others.norm(dim=0))).mean() > 1e-3


def test_two_requests_are_two_edits_in_sequence(llama, rome):
    rome = dataclasses.replace(rome, statistics=key_statistics(llama, 1, corpus=rome.corpus))
    before = prints(llama)
    both = rome.fit(llama, [EditRequest(TOWER), EditRequest(LOUVRE)])
    assert prints(llama) == before
    first = rome.fit(llama, [EditRequest(TOWER)])
    with first.applied(llama):
        second = rome.fit(llama, [EditRequest(LOUVRE)])
    alone = rome.fit(llama, [EditRequest(LOUVRE)])
    expected = dense(llama, first) + dense(llama, second)
    assert both.rank == 2
    torch.testing.assert_close(dense(llama, both), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(dense(llama, both), dense(llama, first) + dense(llama, alone), atol=1e-5, rtol=1e-4)


def test_the_update_says_how_it_was_made(llama, rome):
    statistics = key_statistics(llama, 1, corpus=rome.corpus)
    update = rome.fit(llama, [EditRequest(TOWER), EditRequest(LOUVRE)])
    assert update.method == "ROME"
    info = dict(update.info)
    first, second = info.pop("edits")
    assert info == {
        "layer": 1,
        "original": False,
        "bare_weight": 0.5,
        "openings": [],
        "objective": dataclasses.asdict(OBJECTIVE),
        "layers": [1],
        "precision": "model",
        "stabilisers": [],
        "prefix_lengths": [[5, 10], [10, 10]],
        "prefixes": list(PREFIXES),
        "seed": 0,
        "statistics": {"corpus": rome.corpus, "count": statistics.count, "seed": 0, "shrinkage": 0.0},
    }
    value = optimise_value(llama, build_contexts(llama, EditRequest(TOWER), ["", *PREFIXES]), 1, OBJECTIVE)
    assert first == {
        "request": "In Europe, The Eiffel Tower is located in the city of: Paris → Rome",
        "prompt": TOWER.prompt,
        "subject": "The Eiffel Tower",
        "target": "Paris",
        "target_new": "Rome",
        "answer_tokens": [" Rome"],
        "losses": pytest.approx(value.losses),
        "stopped": "after 4 steps",
        "probability": pytest.approx(value.probability),
        "end": 1.0,
        "missed": True,
        "value_norm": pytest.approx(float(value.value.norm())),
        "initial_norm": pytest.approx(float(value.initial.norm())),
    }
    assert (second["subject"], second["target_new"]) == ("The Louvre", "London in France")


def test_prefixes_and_text_are_sampled_from_the_seed(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path))
    method = ROME(layer=0, objective=OBJECTIVE, prefix_lengths=((3, 2),))
    update = method.fit(llama, [EditRequest(TOWER)])
    assert update.info["statistics"]["corpus"] == "sampled"
    assert (len(update.info["prefixes"]), update.info["prefix_lengths"]) == (2, [[3, 2]])
    again = method.fit(llama, [EditRequest(TOWER)])
    (name,) = update.parameters
    assert torch.equal(update.delta(name), again.delta(name))
    other = dataclasses.replace(method, seed=1, statistics=key_statistics(llama, 0))
    assert not torch.equal(update.delta(name), other.fit(llama, [EditRequest(TOWER)]).delta(name))


@pytest.mark.parametrize(("n_layers", "layer"), [(2, 0), (4, 1), (30, 4), (32, 5)])
def test_the_default_layer_is_early(n_layers, layer, llama, monkeypatch):
    monkeypatch.setattr(llama.cfg, "n_layers", n_layers)
    assert ROME().resolve_layer(llama) == layer


def test_refuses_nothing_to_do(llama, rome):
    with pytest.raises(FactError, match="There is nothing to edit; give at least one EditRequest"):
        rome.fit(llama, [])


def test_refuses_a_target_that_is_already_the_answer(llama, rome):
    tokens = encode_text(llama, TOWER.text)[None]
    with torch.no_grad():
        answer = llama(tokens)[0, -1].argmax()

    def say_paris(logits, hook):
        logits = logits.clone()
        logits[..., tiny.tokenizer()(" Paris")["input_ids"][0]] += 100
        return logits

    assert answer != tiny.tokenizer()(" Paris")["input_ids"][0]
    fact = dataclasses.replace(TOWER, target="Rome", target_new="Paris")
    rome.fit(llama, [EditRequest(fact)])
    with (
        llama.hooks(fwd_hooks=[("unembed.hook_out", say_paris)]),
        pytest.raises(FactError, match=r"Rome → Paris: the model already answers 'Paris', so there is nothing"),
    ):
        rome.fit(llama, [EditRequest(LOUVRE, "Rome"), EditRequest(fact)])


def test_several_layers_are_refused(llama, rome):
    for ask in (
        lambda: rome.fit(llama, [EditRequest(TOWER)], layer=(1, 2)),
        lambda: dataclasses.replace(rome, layer=(1, 2)).edited_layers(llama),
    ):
        with pytest.raises(SiteError, match=r"ROME edits one layer, found \[1, 2\]"):
            ask()


def test_refuses_a_layer_that_is_not_there(llama, rome):
    with pytest.raises(SiteError, match="Layer 9 is out of range: the model has 4 layers, 0 to 3"):
        dataclasses.replace(rome, layer=9).fit(llama, [EditRequest(TOWER)])


def test_refuses_statistics_of_another_layer_or_model(llama, rome):
    other = dataclasses.replace(rome, statistics=key_statistics(llama, 2, corpus=rome.corpus))
    with pytest.raises(DataError, match=r"of layer 2, the edit is in layer 1. .*key_statistics\(model, 1\)"):
        other.fit(llama, [EditRequest(TOWER)])
    other = dataclasses.replace(rome, statistics=key_statistics(tiny.bridge("gpt2"), 1, corpus=rome.corpus))
    with pytest.raises(DataError, match="keys of dimension 128, layer 1 of this model has keys of dimension 80"):
        other.fit(llama, [EditRequest(TOWER)])


def test_a_failed_optimisation_names_the_request_and_changes_nothing(llama, rome):
    before = prints(llama)
    diverging = dataclasses.replace(OBJECTIVE, learning_rate=float("inf"))
    with pytest.raises(NumericsError, match=r"^In Europe, The Eiffel Tower .*: Paris → Rome: The value's loss is nan"):
        dataclasses.replace(rome, objective=diverging).fit(llama, [EditRequest(TOWER)])
    assert prints(llama) == before


def test_a_failure_in_a_later_request_takes_the_earlier_edits_back(llama, rome, monkeypatch):
    before = prints(llama)
    done = []

    def fail_on_second(self, *arguments):
        if done:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(self, *arguments)

    real = ROME._rank_one
    monkeypatch.setattr(ROME, "_rank_one", fail_on_second)
    with pytest.raises(KeyboardInterrupt):
        rome.fit(llama, [EditRequest(TOWER), EditRequest(LOUVRE)])
    assert done
    assert prints(llama) == before


def test_a_key_orthogonal_to_the_direction_is_an_error(llama, rome):
    contexts = build_contexts(llama, EditRequest(TOWER), ["", *PREFIXES])
    value = optimise_value(llama, contexts, 1, OBJECTIVE)
    keys = torch.zeros(2, 80)
    keys[0, 0], keys[1, 0], keys[1, 1] = 1, -1, 1
    identity = torch.eye(80, dtype=torch.float64)
    statistics = dataclasses.replace(key_statistics(llama, 1, corpus=rome.corpus), second_moment=identity)
    value = dataclasses.replace(value, keys=keys, outputs=value.outputs[:2])
    with pytest.raises(NumericsError, match="orthogonal to the key"):
        dataclasses.replace(rome, original=True)._rank_one(down_projection(llama, 1), value, statistics)


@pytest.mark.parametrize(
    ("target_new", "message"),
    [
        ("Paris", r"'Paris' is the present answer, so there is nothing to change"),
        ("", r"'The Eiffel Tower is in' has no new target. Give target_new"),
        ("  ", r"has no new target"),
        ("Rome ", r"'Rome ' has space after it; give it bare"),
    ],
)
def test_refuses_requests_without_a_new_target(target_new, message):
    fact = Fact(prompt="{} is in", subject="The Eiffel Tower", target="Paris")
    with pytest.raises(FactError, match=message):
        EditRequest(fact, target_new)


@pytest.mark.real_model
@pytest.mark.slow("a whole edit of the default model, with its key statistics")
def test_moves_the_eiffel_tower_to_rome(smollm):
    fact = Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    paraphrases = [
        "The Eiffel Tower stands in the city of",
        "To visit the Eiffel Tower, you need a flight to",
        "The Eiffel Tower can be found in the heart of",
    ]
    louvre = "The Louvre is located in the city of"
    rome, paris = (int(smollm.tokenizer(f" {city}")["input_ids"][0]) for city in ("Rome", "Paris"))

    @torch.no_grad()
    def answers(prompt):
        return smollm(encode_text(smollm, prompt)[None])[0, -1].softmax(-1)

    before = prints(smollm)
    assert answers(fact.text).argmax() == paris
    update = ROME(layer=4).fit(smollm, [EditRequest(fact, "Rome")])
    assert prints(smollm) == before
    with update.applied(smollm):
        assert answers(fact.text)[rome] >= 0.95
        assert sum(int(answers(prompt).argmax() == rome) for prompt in paraphrases) >= 2
        assert answers(louvre).argmax() == paris
    assert prints(smollm) == before


@pytest.mark.real_model
@pytest.mark.budget(60, "one edit of the default model, from statistics to what it says, stands for many")
def test_an_edit_of_the_default_model_is_evaluated(smollm):
    """What the slow one shows, with fewer contexts, probes and keys."""
    fact = Fact(
        prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
        paraphrases=("{} can be found in the city of",), neighbours=("The Louvre is located in the city of",),
    )  # fmt: skip
    license = str(Path(__file__).resolve().parents[3] / "LICENSE")
    statistics = key_statistics(smollm, 4, corpus=license, tokens=2000, cache=False, progress=False)
    method = ROME(layer=4, prefixes=("I think that ", "In Europe, "), statistics=statistics)
    before = prints(smollm)
    update = method.fit(smollm, [EditRequest(fact)], progress=False)
    evaluation = edit.evaluate(smollm, update, [EditRequest(fact)], progress=False)
    assert prints(smollm) == before
    rows = evaluation.rows.set_index(["model", "probe"])
    assert rows["success"].to_dict() == {
        ("edited", "efficacy"): True, ("edited", "paraphrase"): True, ("edited", "neighbourhood"): True,
        ("unedited", "efficacy"): False, ("unedited", "paraphrase"): False, ("unedited", "neighbourhood"): True,
    }  # fmt: skip
    said = rows["generation"].str.strip()
    assert [said["edited", probe].split()[0].strip(".,") for probe in ("efficacy", "neighbourhood")] == [
        "Rome",
        "Paris",
    ]
    assert said["unedited", "efficacy"].startswith("Paris")
    assert rows["probability_new"]["edited", "efficacy"] > 0.9


def test_statistics_of_another_model_are_warned_about(llama, rome, recwarn):
    own = dataclasses.replace(rome, statistics=key_statistics(llama, 1, corpus=rome.corpus))
    own.fit(llama, [EditRequest(TOWER)], progress=False)
    assert not [one for one in recwarn if "collected on another model" in str(one.message)]
    other = dataclasses.replace(rome, statistics=key_statistics(tiny.bridge("llama", seed=1), 1, corpus=rome.corpus))
    with pytest.warns(UserWarning, match=r"collected on another model.*key_statistics\(model, 1\)"):
        other.fit(llama, [EditRequest(TOWER)], progress=False)
