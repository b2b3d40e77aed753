"""``locate-edit location-report``: many facts, one folder, and what is said of them."""

import json

import pytest

from edit.cli.commands import location_report
from tests.edit.conftest import FACTS

FULL = [
    {**fact, "relation": fact["subject"], "paraphrases": ["{} stands in"], "neighbours": ["Big Ben is in"]}
    for fact in FACTS[1:3]
]


@pytest.fixture
def report(locate_edit, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    return locate_edit("location-report")


def test_a_file_of_facts_gives_a_folder_that_is_gone_on_with(report, facts_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--facts", facts_file(FULL), "--methods", "fine-tuning", "--layers", "1", "--most", "2", "--samples",
                 "2", "--steps", "4", "--out", out]  # fmt: skip
    result = report(*arguments)
    assert result.stdout.split() == [str(out / "report.html"), str(out / "report.md")]
    assert "What changed columns say" in (out / "report.md").read_text()
    monkeypatch.setattr("edit.report.location._write", lambda *_: None)  # a page takes seconds
    told = json.loads(report(*arguments, "--json").stdout.strip().splitlines()[-1])
    assert (told["facts"], told["methods"], told["best"]) == (2, ["fine-tuning"], 1)
    assert told["findings"][0]["title"] == "Where changes are"
    assert "RSim" in told["left_out"]
    message = report(*arguments[:-4], "--steps", "4", "--most", "3", "--out", out, expect=2).stderr
    assert "belongs to another run: most was 2 and is 3 now" in " ".join(message.split())


def test_facts_are_taken_from_all_of_the_file():
    everything = location_report._chosen(None, 27, "smollm2-135m")
    assert len({fact.relation for fact in everything}) > 20
    assert len(location_report._chosen(None, None, "smollm2-135m")) == 30


BAD = {
    "no new object": ([{**FACTS[0], "target_new": None}], [], "1 fact without a new object"),
    "a method that there is not": (
        FULL,
        ["--methods", "rome,memi"],
        "--methods: there is no 'memi'. Did you mean memit",
    ),
    "layers that are no numbers": (FULL, ["--layers", "all"], "--layers: expected numbers or ranges"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_message_and_exit_code_2(case, report, facts_file, tmp_path):
    facts, arguments, message = BAD[case]
    result = report("--facts", facts_file(facts), *arguments, "--out", tmp_path / "out", expect=2)
    assert message in " ".join(result.stderr.split())
