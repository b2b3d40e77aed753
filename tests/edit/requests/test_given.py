"""Probes that users write: dictionaries and files, with or without the edit that they are about."""

import json

import pytest

import edit
import locate

REQUEST = edit.EditRequest(
    locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris", target_new="Rome", chat=True)
)
GIVEN = [
    {"role": "paraphrase", "text": "Fly to {} in"},
    {"role": "one-hop", "text": "{}'s country is", "new": "Italy"},
    {"role": "two-hop", "text": "In {} they speak", "new": "Italian", "old": "French", "chat": "false"},
    {"role": "unrelated", "text": "The sun is", "old": "hot"},
    {"role": "neighbour", "text": "The Seine is in", "new": "Oslo"},
]
READ = [
    edit.Probe(role="paraphrase", text="Fly to The Louvre in", new="Rome", old="Paris", chat=True),
    edit.Probe(role="one-hop", text="The Louvre's country is", new="Italy", chat=True),
    edit.Probe(role="two-hop", text="In The Louvre they speak", new="Italian", old="French"),
    edit.Probe(role="unrelated", text="The sun is", new="Rome", old="hot", chat=True),
    edit.Probe(role="neighbour", text="The Seine is in", new="Oslo", old="Paris", chat=True),
]


def test_what_is_left_out_is_the_edits(tmp_path):
    assert edit.load_probes(GIVEN, REQUEST) == READ
    (tmp_path / "probes.json").write_text(json.dumps(GIVEN))
    assert edit.load_probes(tmp_path / "probes.json", REQUEST) == READ
    rows = [",".join(one.get(key, "") for key in ("role", "text", "new", "old", "chat")) for one in GIVEN]
    (tmp_path / "probes.csv").write_text("\n".join(["role,text,new,old,chat", *rows]))
    assert edit.load_probes(tmp_path / "probes.csv", REQUEST) == READ


@pytest.mark.parametrize(
    ("probe", "request_", "message"),
    [
        (
            {"role": "hop", "text": "a", "new": "b"},
            None,
            "1 problem.*\n  line 1, record 2, role: must be one",
        ),
        ({"role": "edit", "text": " ", "new": "b"}, None, "record 2, text: is empty in a probe of role 'edit'"),
        ({"role": "edit", "text": "a"}, None, "record 2, new: a probe of role 'edit' must say its new answer"),
        ({"role": "one-hop", "text": "a"}, REQUEST, "record 2, new: a probe of role 'one-hop' must say"),
        ({"role": "edit", "new": "b"}, None, "record 2, text: Field required"),
        ({"role": "edit", "text": "a", "target": "b"}, None, "record 2, target: Extra inputs"),
        ("edit", None, "record 2, Input should be a valid dictionary"),
    ],
)
def test_bad_probes_are_named(probe, request_, message, tmp_path):
    good, file = {"role": "edit", "text": "The Louvre is in", "new": "Rome"}, tmp_path / "probes.json"
    file.write_text(json.dumps([good, probe]))  # types are checked of what is handed over, and not of a file
    with pytest.raises(locate.DataError, match=message):
        edit.load_probes(file, request_)


def test_a_missing_file_is_one_of_probes(tmp_path):
    with pytest.raises(locate.DataError, match="There is no probes file"):
        edit.load_probes(tmp_path / "probes.json")
    (tmp_path / "probes.json").write_text("[]")
    with pytest.raises(locate.DataError, match="expected a non-empty list of probes"):
        edit.load_probes(tmp_path / "probes.json")
