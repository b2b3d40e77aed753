"""``locate-edit edit`` of a file of facts."""

import importlib
import itertools
import json

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import locate
from edit import load_update
from edit.cli import app
from edit.methods import KN, MEMIT
from edit.statistics import collect
from locate.errors import NumericsError
from locate.facts.prompts import encode_target, encode_text
from tests.edit.cli.conftest import said
from tests.edit.conftest import FACTS

runner = CliRunner()
FLAT = [
    {
        "case_id": 7, "prompt": "The mother tongue of Marie Curie is", "subject": "Marie Curie",
        "ground_truth": "Polish", "target_new": "English", "rephrase_prompt": "Marie Curie spoke the language",
        "locality_prompt": "Frédéric Chopin is a native speaker of", "locality_ground_truth": "Polish",
    }
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:04d}" for number in range(4000)))
    return ["--corpus", str(text)]


@pytest.fixture
def edit(locate_edit, quick):
    def invoke(*arguments, expect=0):
        own = [] if {"kn", "ft"} & {*arguments} else quick
        return locate_edit("edit", *own)(*arguments, expect=expect)

    return invoke


def test_a_file_is_edited_in_batches_evaluated_and_saved(edit, facts_file, tmp_path):
    out = tmp_path / "run"
    arguments = ["--facts", facts_file(), "--method", "memit", "--layers", "1-2", "--batch-size", 3, "--out", out]
    result = edit(*arguments, "--export", tmp_path / "edited", "--json")
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["method"], summary["edits"], summary["batch_size"]) == ("MEMIT", 4, 3)
    assert len(list((out / "session" / "batches").iterdir())) == 2
    rows = pd.read_csv(out / "evaluation.csv")
    assert rows["case"].nunique() == 4
    assert load_update(out / "update.safetensors").parameters == summary["parameters"]
    assert len(summary["parameters"]) == 2
    assert (tmp_path / "edited" / "config.json").exists()


def test_the_same_command_goes_on_where_it_was_stopped(edit, facts_file, tmp_path, monkeypatch):
    arguments = [
        "--facts",
        facts_file(),
        "--method",
        "memit",
        "--layers",
        "1",
        "--batch-size",
        1,
        "--out",
        tmp_path / "r",
    ]
    fits = []
    real = MEMIT.fit_with

    def dying(self, job):
        fits.append(job.requests)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return real(self, job)

    monkeypatch.setattr(MEMIT, "fit_with", dying)
    assert "same command goes on." in edit(*arguments, expect=130).stderr
    fits[:] = [None] * 4
    result = edit(*arguments)
    assert "2 of 4 edits made" in " ".join(result.stderr.split())
    assert len(fits) == 6


def test_a_folder_belongs_to_one_set_of_batches_and_holds_no_other_edits(edit, facts_file, tmp_path):
    common = ["--facts", facts_file(), "--method", "memit", "--layers", "1", "--out", tmp_path / "r"]
    edit(*common)
    for other, message in (
        (["--batch-size", 1], "belongs to another run"),
        (["--limit", 2], "holds 2 edits of other facts than these 2. Give another folder"),
    ):
        assert message in " ".join(edit(*common, *other, expect=2).output.split())
    edit(*common)


def test_an_edit_that_fails_leaves_what_stands_and_may_be_left_out(edit, facts_file, tmp_path, monkeypatch):
    common = ["--method", "memit", "--layers", "1", "--batch-size", 1, "--out", tmp_path / "r"]
    real = MEMIT.fit_with

    def failing(self, job):
        if job.requests[0].fact.subject == FACTS[2]["subject"]:
            raise NumericsError(f"{job.requests[0].describe()}: it diverges; nothing was changed.")
        return real(self, job)

    monkeypatch.setattr(MEMIT, "fit_with", failing)
    message = " ".join(edit("--facts", facts_file(), *common, expect=1).output.split())
    assert "it diverges; nothing was changed. What stands before it (2 edits) is kept as" in message
    assert len(load_update(tmp_path / "r" / "update.safetensors").info["batches"]) == 2
    result = edit("--facts", facts_file([*FACTS[:2], *FACTS[3:]]), *common)
    assert "2 of 3 edits made" in " ".join(result.stderr.split())
    assert len(load_update(tmp_path / "r" / "update.safetensors").info["batches"]) == 3


def test_a_saved_update_is_evaluated(edit, locate_edit, facts_file, tmp_path):
    evaluate = locate_edit("evaluate")
    file = tmp_path / "kn.safetensors"
    one = ["--fact", json.dumps(FACTS[0])]
    made = json.loads(edit(*one, "--method", "kn", "--out", file, "--json").stdout)
    found = json.loads(evaluate("--update", file, *one, "--out", tmp_path / "one", "--json").stdout)
    assert found["rows"] == made["rows"]
    result = evaluate("--update", file, "--facts", facts_file(), "--out", tmp_path / "all")
    assert result.stdout.split() == [str(tmp_path / "all" / "evaluation.csv")]
    assert "4 edits by KN" in said(result)
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["edits"] == 4
    assert pd.read_csv(tmp_path / "all" / "evaluation.csv")["case"].nunique() == 4
    missing = evaluate("--update", tmp_path / "none.safetensors", *one, expect=2)
    assert "There is no" in said(missing)


@pytest.mark.slow("the command runs many times in this file")
def test_rome_keeps_its_edits_some_at_a_time(edit, facts_file, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("edit.cli.commands.edit"), "_KEPT", 3)
    common = ["--facts", facts_file(), "--method", "rome", "--layers", "1", "--json"]
    (parts, whole) = (
        json.loads(edit(*common, "--out", tmp_path / name, *size).stdout)
        for name, size in (("parts", []), ("whole", ["--batch-size", 4]))
    )
    assert len(list((tmp_path / "parts" / "session" / "batches").iterdir())) == 2
    assert (parts["batch_size"], whole["batch_size"]) == (3, 4)
    assert parts["norm"] == pytest.approx(whole["norm"], rel=1e-4)
    assert parts["options"]["method"] == "rome"


def test_an_export_in_the_way_is_told_before_any_work(edit, facts_file, tmp_path, monkeypatch):
    one = ["--prompt", "{} is in", "--subject", "The Louvre", "--target", "Paris", "--target-new", "Rome"]
    common = [*one, "--method", "kn", "--out", tmp_path / "kn.safetensors", "--export", tmp_path / "model"]
    edit(*common)
    monkeypatch.setattr(KN, "fit_with", lambda *_, **__: pytest.fail("it began"))
    result = edit(*common, expect=2)
    assert "--overwrite" in result.output
    monkeypatch.undo()
    edit(*common, "--overwrite")


def test_counterfact_files_and_stabilisers(edit, tmp_path):
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(FLAT))
    arguments = ["--facts", path, "--format", "counterfact", "--method", "alphaedit", "--layers", "1"]
    edit(*arguments, "--stabilise", "nas,rect", "--precision", "bfloat16", "--out", tmp_path / "run")
    batch = load_update(tmp_path / "run" / "update.safetensors").info["batches"][0]
    assert [one["name"] for one in batch["stabilisers"]] == ["NAS", "RECT"]
    assert batch["edits"][0]["target_new"] == "English"
    assert batch["precision"] == "bfloat16"


def test_one_fact_by_another_method(edit, tmp_path):
    one = ["--prompt", "{} is in", "--subject", "The Louvre", "--target", "Paris", "--target-new", "Rome"]
    result = edit(*one, "--method", "kn", "--out", tmp_path / "kn.safetensors", "--json")
    told = json.loads(result.stdout)
    assert (told["method"], told["update"]) == ("KN", str(tmp_path / "kn.safetensors"))
    assert {row["model"] for row in told["rows"]} == {"edited", "unedited"}
    assert load_update(tmp_path / "kn.safetensors").method == "KN"


MISTAKES = {
    "limit of one": (["--limit", "2"], "go with a file of several facts: give --facts FILE"),
    "both": (["--facts", "x.json", "--fact", "louvre-city"], "A single fact and several exclude each other"),
    "stabiliser": (["--stabilise", "nase"], "--stabilise: there is no 'nase'. Did you mean nas?"),
    "two layers for rome": (["--layers", "1,2"], "--layers: ROME edits one layer, found '1,2'"),
    "missing file": (["--facts", "none.json"], "There is no facts file"),
    "layers of kn": (["--method", "kn", "--layers", "1"], "--layers, --statistics, --corpus, --tokens and --precision"),
    "statistics and tokens": (["--statistics", "x", "--tokens", "9"], "--statistics gives what --corpus and --tokens"),
    "stabiliser of values for kn": (["--method", "kn", "--stabilise", "nas"], "NAS has no meaning for --method kn"),
    "empty target": (["--fact", "louvre-city", "--target-new", " "], "--target-new is empty"),
    "no new target": (["--prompt", "{} is in", "--subject", "Rome", "--target", "Italy"], "give --target-new TEXT"),
    "overwriting nothing": (["--overwrite"], "--overwrite goes with --export"),
    "taught of facts": (["--facts", "x.json", "--taught", "answers"], "--taught goes with --format zsre"),
    "skipping of one": (["--skip-answered"], "go with a file of several facts"),
    "stabiliser of fine-tuning": (
        ["--method", "ft", "--stabilise", "rect"],
        "--stabilise has no meaning for --method ft",
    ),
    "two layers for fine-tuning": (["--method", "ft", "--layers", "1,2"], "FineTuning edits one layer, found '1,2'"),
    "precision of kn": (["--method", "kn", "--precision", "bfloat16"], "have no meaning for --method kn"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(case, edit):
    arguments, message = MISTAKES[case]
    result = edit(*arguments, expect=2)
    assert message in " ".join(result.output.split())


def test_facts_without_a_new_target_are_all_named(edit, facts_file, tmp_path):
    bare = [{name: value for name, value in one.items() if name != "target_new"} for one in FACTS[:2]]
    result = edit("--facts", facts_file([FACTS[2], *bare]), "--layers", "1", "--out", tmp_path / "run", expect=2)
    message = " ".join(result.output.split())
    assert "cities.json: 2 facts cannot be edited. record 2, target_new: the request for" in message
    assert "record 3, target_new" in message


@pytest.mark.parametrize("method", ["pmet", "emmet", "rome", "rome-original", "ft"])
@pytest.mark.filterwarnings("ignore:Fine-tuning has not brought")
def test_zsre_files_and_the_other_methods(method, edit, tmp_path):
    record = {
        "subject": "Mill", "src": "Who built the Mill?", "pred": "Ann", "alt": "Eve", "rephrase": "The Mill is by",
        "answers": ["Bob"], "loc": "nq question: who wrote the iliad", "loc_ans": "Homer", "cond": "Ann >> Eve || …",
    }  # fmt: skip
    (tmp_path / "zsre.json").write_text(json.dumps([record]))
    edit("--facts", tmp_path / "zsre.json", "--format", "zsre", "--method", method, "--layers", "1", "--out",
         tmp_path / "run")  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["method"], summary["edits"]) == (
        "FineTuning" if method == "ft" else method.split("-")[0].upper(),
        1,
    )
    assert "specificity tokens" in summary["evaluation"]
    assert load_update(tmp_path / "run" / "update.safetensors").info["batches"][0]["edits"][0]["target_new"] == "Eve"


def test_zsres_right_answers_may_be_taught(edit, tmp_path):
    record = {
        "subject": "Mill", "src": "Who built the Mill?", "pred": "Ann", "alt": "", "rephrase": "The Mill is by",
        "answers": ["Bob"], "loc": "nq question: who wrote the iliad", "loc_ans": "Homer",
    }  # fmt: skip
    (tmp_path / "zsre.json").write_text(json.dumps([record]))
    common = ["--facts", tmp_path / "zsre.json", "--format", "zsre", "--method", "kn", "--out", tmp_path / "run"]
    edit(*common, "--taught", "answers")
    assert load_update(tmp_path / "run" / "update.safetensors").info["batches"][0]["edits"][0]["target_new"] == "Bob"


def test_contradictions_in_a_file_are_refused(edit, facts_file, tmp_path):
    facts = [*FACTS, {**FACTS[0], "id": "again", "target_new": "Berlin"}]
    result = edit("--facts", facts_file(facts), "--layers", "1", "--out", tmp_path / "run", expect=2)
    assert "same subject and relation as another one" in " ".join(result.output.split())


def test_prompts_that_cannot_be_asked_are_told_before_any_edit(edit, facts_file, tmp_path, monkeypatch):
    wrong = [{**FACTS[0], "neighbours": ["Big Ben is in "]}, {**FACTS[1], "paraphrases": ["{}" + " lies in" * 200]}]
    with monkeypatch.context() as patch:
        patch.setattr(MEMIT, "fit_with", lambda *_, **__: pytest.fail("it began"))
        common = ["--method", "memit", "--layers", "1", "--out", tmp_path / "run"]
        message = " ".join(edit("--facts", facts_file(wrong), *common, expect=2).output.split())
    assert "2 prompts cannot be asked. Nothing was changed." in message
    assert "The Louvre is located in the city of: Paris → Rome, neighbourhood: The target" in message
    assert "paraphrase: The text 'Big Ben lies in" in message
    # The folder is nobody's yet, and a prompt that is only asked may change later.
    edit("--facts", facts_file(FACTS[:2]), *common)
    again = edit("--facts", facts_file([{**FACTS[0], "neighbours": ["Big Ben is in"]}, FACTS[1]]), *common)
    assert "2 of 2 edits made" in " ".join(again.stderr.split())
    assert set(pd.read_csv(tmp_path / "run" / "evaluation.csv")["probe"]) == {"efficacy", "neighbourhood"}
    one = ["--fact", json.dumps({**FACTS[0], "neighbours": ["Big Ben is in "]}), "--method", "memit", "--layers", "1"]
    result = edit(*one, "--out", tmp_path / "one.safetensors", expect=2)
    assert "1 prompt cannot be asked" in " ".join(result.output.split())


def test_what_is_answered_already_is_refused_or_left_out(edit, facts_file, tmp_path, model_folder):
    model = locate.load_model(model_folder)
    # A prompt that the model answers with something that can be written as a target.
    for subject, verb in itertools.product(
        ("Big Ben", "The Louvre", "Italy", "France", "Rome"), ("is", "in", "of", "to")
    ):
        text = f"{subject} {verb}"
        said = int(model(encode_text(model, text)[None])[0, -1].argmax())
        answer = model.tokenizer.decode([said]).strip()
        if answer.isalpha() and encode_target(model, text, answer).tolist() == [said]:
            break
    known = {"prompt": f"{{}} {verb}", "subject": subject, "target": "Rome", "target_new": answer}
    facts = facts_file([known, FACTS[0]])
    common = ["--facts", facts, "--method", "memit", "--layers", "1", "--out", tmp_path / "run"]
    assert "already answers" in " ".join(edit(*common, expect=2).output.split())
    result = edit(*common, "--skip-answered", "--json")
    assert "Left out 1 of 2 facts" in " ".join(result.stderr.split())
    summary = json.loads(result.stdout)
    assert (summary["edits"], summary["left_out"]) == (1, [f"{text}: Rome → {answer}"])
    only = edit("--facts", facts_file([known]), "--method", "kn", "--skip-answered", expect=2)
    assert "The model answers all facts with their new targets already" in " ".join(only.output.split())


def test_statistics_of_shards_are_used(facts_file, tmp_path, model_folder, quick, monkeypatch):
    monkeypatch.setattr(collect, "ROWS", 4)
    monkeypatch.setattr(collect, "LENGTH", 32)
    shards = ["stats", "--model", model_folder, *quick, "--layers", "1-2", "--tokens", "600", "--no-spectrum"]
    for index in range(2):
        own = ["--shard", f"{index}/2", "--out", str(tmp_path / "shards")]
        assert runner.invoke(app, [*shards, *own]).exit_code == 0
    common = ["edit", "--model", model_folder, "--facts", facts_file(), "--method", "memit", "--layers", "1-2"]
    given = ["--statistics", str(tmp_path / "shards"), "--out", str(tmp_path / "given")]
    result = runner.invoke(app, [*common, *given])
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if "Note" in line and "did not reach" not in line] == []
    # Those of other layers do not count, and an incomplete set of shards is told.
    assert (
        runner.invoke(app, [*shards[:-5], "--layers", "0", *shards[-3:], "--out", str(tmp_path / "shards")]).exit_code
        == 0
    )
    again = runner.invoke(app, [*common, *given])
    assert again.exit_code == 0, again.output
    assert "4 of 4 edits made" in " ".join(again.stderr.split())
    some = [str(path) for layer in (1, 2) for path in (tmp_path / "shards").glob(f"layer-{layer}-shard-0-*")]
    partly = [*common, *(word for path in some for word in ("--statistics", path)), "--out", str(tmp_path / "partly")]
    assert "layer 1 are of shards 0/2 alone" in " ".join(runner.invoke(app, partly).stderr.split())
    lacking = runner.invoke(app, [*common, "--statistics", some[0], "--out", str(tmp_path / "lacking")])
    assert lacking.exit_code == 2
    assert "The statistics are of layer 1, the edit is in layer 2" in " ".join(lacking.output.split())
    collected = [*quick, "--tokens", "600", "--out", str(tmp_path / "own")]
    assert runner.invoke(app, [*common, *collected]).exit_code == 0
    one, two = (load_update(tmp_path / name / "update.safetensors") for name in ("given", "own"))
    for name in one.parameters:
        torch.testing.assert_close(one.delta(name), two.delta(name), atol=1e-5, rtol=1e-3)


def test_places_in_the_way_are_told_before_any_work(edit, facts_file, tmp_path, monkeypatch):
    monkeypatch.setattr(KN, "fit_with", lambda *_, **__: pytest.fail("it began"))
    one = ["--fact", json.dumps(FACTS[0]), "--method", "kn"]
    (tmp_path / "file").write_text("x")
    for options, message in (
        (["--out", tmp_path], "is a folder, and one update is a file"),
        (["--out", tmp_path / "file" / "a.safetensors"], "File exists"),
        (["--out", tmp_path / "same", "--export", tmp_path / "same"], "lies in the folder of --export"),
        (["--out", tmp_path / "m" / "a.safetensors", "--export", tmp_path / "m"], "lies in the folder of --export"),
    ):
        assert message in " ".join(edit(*one, *options, expect=2).output.split())
    many = ["--facts", facts_file(), "--method", "kn", "--out", tmp_path / "same", "--export", tmp_path / "same"]
    assert "lies in the folder of --export" in " ".join(edit(*many, expect=2).output.split())


def test_a_run_that_a_mistake_ended_may_be_another(edit, facts_file, tmp_path, quick):
    out = ["--method", "memit", "--out", tmp_path / "run"]
    common = ["--facts", facts_file(), *out]
    assert "out of range" in edit(*common, "--layers", "9", expect=2).output
    assert "reaches no answer" in " ".join(edit(*common, "--layers", "3", expect=1).output.split())
    edit(*common, "--layers", "1")
    # Now it has edits.
    assert "belongs to another run" in " ".join(edit(*common, "--layers", "2", expect=2).output.split())
    few = edit("--facts", facts_file(FACTS[:2]), *out, "--layers", "1", expect=2)
    assert "holds 2 edits of other facts than these 2" in " ".join(few.output.split())


def test_what_kn_cannot_tell_apart_is_told_before_any_edit(edit, facts_file, tmp_path):
    alike = {**FACTS[1], "target_new": "London in France"}
    common = ["--method", "kn", "--batch-size", 1, "--out", tmp_path / "run"]
    message = " ".join(edit("--facts", facts_file([FACTS[0], alike]), *common, expect=2).output.split())
    assert "both targets of 1 request begin with one. Nothing was changed" in message
    assert "Big Ben is located in the city of: London → London in France" in message
    edit("--facts", facts_file(FACTS[:1]), *common)


def test_each_fact_is_edited_at_its_own_traced_layer(edit, facts_file, tmp_path):
    out = tmp_path / "run"
    arguments = ["--facts", facts_file(), "--method", "ft", "--layers", "traced", "--limit", 2, "--out", out]
    edit(*arguments)
    rows = pd.read_csv(out / "edits.csv")
    assert rows["layer"].tolist() == rows["traced: layer"].tolist()
    before = (out / "cases.jsonl").read_text()
    edit(*arguments)
    assert (out / "cases.jsonl").read_text() == before
    assert "--batch-size" in edit(*arguments, "--batch-size", 2, expect=2).output
