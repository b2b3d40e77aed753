"""Facts, and the files that they come in."""

import copy
import csv
import json
import re

import pytest

from locate import Consequence, DataError, Fact, FactError, OtherRelation, bundled_facts, load_facts
from locate.facts.files import parse_fact, read_facts

GOOD = {
    "prompt": "{} is in",
    "subject": "The Louvre",
    "target": "Paris",
    "target_new": "Rome",
    "id": "a",
    "relation": "r",
}
OTHER = {"prompt": "The capital of {} is", "subject": "Curaçao, “CW”", "target": "Willemstad"}


def write(path, records):
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(records), encoding="utf-8")
        case ".jsonl":
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        case ".csv":
            names = list(GOOD)
            quoted = [['"' + record.get(n, "").replace('"', '""') + '"' for n in names] for record in records]
            path.write_text("\n".join(",".join(row) for row in [names, *quoted]), encoding="utf-8")
    return path


def test_a_fact_fills_templates():
    fact = Fact(**GOOD)
    assert fact.text == "The Louvre is in"
    assert fact.fill("Where is {}?") == "Where is The Louvre?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "It is in"}, "prompt: needs exactly one {}.*found 0 in 'It is in'"),
        ({"prompt": "{} and {} are in"}, "prompt: needs exactly one {}.*found 2"),
        ({"subject": " "}, "subject: is empty"),
        ({"target": ""}, "target: is empty"),
        ({"target": "Paris "}, "target: 'Paris ' has space after it; give it bare"),
        ({"target_new": " Paris"}, "target_new: equals the target"),
        ({"target_new": "Rome\n"}, "target_new: .*has space after it"),
        ({"target_new": ""}, "target_new: is empty"),
        ({"target_new": "Paris"}, "target_new: equals the target"),
        ({"paraphrases": ("{} is", "is")}, r"paraphrases\[1\]: needs exactly one {}"),
        ({"neighbours": ("",)}, r"neighbours\[0\]: is empty"),
    ],
)
def test_a_fact_that_cannot_be_used_is_refused(change, message):
    with pytest.raises(FactError, match=message):
        Fact(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Consequence(prompt="It", target="a", target_before="b"), "prompt: needs exactly one"),
        (lambda: Consequence(prompt="{}", target="a", target_before="b "), "target_before: .*space after"),
        (
            lambda: Consequence(prompt="{}", target="a", target_before="b", hops=0),
            "hops: must be 1 or more, found 0",
        ),
        (lambda: OtherRelation(prompt="{}", target=""), "target: is empty"),
    ],
)
def test_probes_that_cannot_be_used_are_refused(make, message):
    with pytest.raises(FactError, match=message):
        make()


def test_numbers_of_a_data_set_become_names():
    fact = Fact(prompt="{} is in", subject="Rome", target="Italy", id="7")
    given = copy.copy(fact)
    object.__setattr__(given, "id", 7)  # as a caller without type checks gives it
    given.__post_init__()
    assert given == fact


def test_json_jsonl_and_csv_give_the_same_facts(tmp_path):
    expected = [Fact(**GOOD), Fact(**OTHER)]
    for name in ("facts.json", "facts.jsonl", "facts.csv", "FACTS.JSON"):
        path = write((tmp_path / name.lower()), [GOOD, OTHER]).rename(tmp_path / name)
        assert load_facts(path) == expected
        assert load_facts(str(path)) == expected


def test_nested_records_become_objects(tmp_path):
    record = {
        **GOOD,
        "subject_aliases": ["The old palace"],
        "paraphrases": ["Where is {}? In"],
        "neighbours": ["Notre-Dame is in"],
        "other_relations": [{"prompt": "{} is a", "target": "museum"}],
        "consequences": [{"prompt": "{}'s country is", "target": "Italy", "target_before": "France", "hops": 2}],
        "ranks": {"m": 3},
    }
    [fact] = load_facts(write(tmp_path / "facts.json", [record]))
    assert fact.other_relations == (OtherRelation(prompt="{} is a", target="museum"),)
    assert fact.consequences[0].hops == 2
    assert (fact.paraphrases, fact.neighbours) == (("Where is {}? In",), ("Notre-Dame is in",))
    assert fact.subject_aliases == ("The old palace",)
    assert fact.ranks == {"m": 3}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_unusual_line_separators_inside_a_text_do_not_split_it(tmp_path, suffix):
    record = {**GOOD, "prompt": "One\u2028two\x85{} is in"}
    assert load_facts(write(tmp_path / f"facts{suffix}", [record]))[0].prompt == record["prompt"]


def test_a_quoted_csv_cell_may_hold_a_line_break(tmp_path):
    record = {**GOOD, "prompt": "Question:\n{} is in"}
    assert load_facts(write(tmp_path / "facts.csv", [record]))[0].prompt == record["prompt"]


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, suffix):
    path = write(tmp_path / f"facts{suffix}", [GOOD])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_facts(path) == [Fact(**GOOD)]


def test_records_are_placed_by_line_in_every_form(tmp_path):
    (tmp_path / "facts.json").write_text('[\n {"prompt":\n  "{} is in"},\n\n {}]')
    (tmp_path / "facts.jsonl").write_text('{"prompt": "{} is in"}\n\n{oops\n')
    (tmp_path / "facts.csv").write_text('prompt,subject,target\n"{} is\nin",Rome,\n"{} is in",,Italy\n')
    for name, places in ((".json", (2, 5)), (".jsonl", (1, 3)), (".csv", (2, 4))):
        with pytest.raises(DataError) as caught:
            load_facts(tmp_path / f"facts{name}")
        assert re.findall(r"\n  line (\d+), record (\d+), ", str(caught.value)) == [
            (str(places[0]), "1"), (str(places[1]), "2"),
        ]  # fmt: skip


@pytest.mark.parametrize("text", ['[{"a": 1} {"b": 1}]', '[{"a": 1},]', '[{"a": 1}', "[1] 2", "[,1]"])
def test_what_is_no_json_is_no_list_of_records(tmp_path, text):
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(DataError, match="not readable as JSON"):
        load_facts(tmp_path / "facts.json")


def test_good_records_can_be_read_without_the_bad_ones(tmp_path):
    path = write(tmp_path / "facts.json", [GOOD, {**GOOD, "target": " "}, OTHER])
    facts, problems = read_facts(path)
    assert facts == [Fact(**GOOD), Fact(**OTHER)]
    (problem,) = problems
    assert problem.startswith("line 1, record 2, target: is empty")


def test_a_prompt_may_be_written_out_with_its_subject(tmp_path):
    written = {**GOOD, "prompt": GOOD["prompt"].replace("{}", GOOD["subject"])}
    for name in ("facts.json", "facts.jsonl", "facts.csv"):
        assert load_facts(write(tmp_path / name, [written])) == [Fact(**GOOD)]
    assert parse_fact(written, "here") == Fact(**GOOD)


def test_csv_cells_hold_lists(tmp_path):
    path = tmp_path / "facts.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "subject", "target", "paraphrases", "neighbours", "other_relations", "ranks"])
        rows.writerow(["{} is in", "Rome", "Italy", "{} lies in|Where is {}? In", '["Pisa is in | near"]',
                       '[{"prompt": "{} is a", "target": "city"}]', '{"m": 2}'])  # fmt: skip
    assert load_facts(path) == [
        Fact(
            prompt="{} is in", subject="Rome", target="Italy", paraphrases=("{} lies in", "Where is {}? In"),
            neighbours=("Pisa is in | near",), other_relations=(OtherRelation(prompt="{} is a", target="city"),),
            ranks={"m": 2},
        )
    ]  # fmt: skip
    path.write_text(path.read_text().replace('{""m"": 2}', "{m: 2}"))
    with pytest.raises(DataError, match=r"line 2, record 1, ranks: not readable as JSON: .* at column 2 of '\{m: 2\}'"):
        load_facts(path)


def test_a_file_with_a_single_fact_is_read(tmp_path):
    assert load_facts(write(tmp_path / "fact.json", GOOD)) == [Fact(**GOOD)]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"prompt": "{} is in", "target": "x"}, "subject: Field required"),
        ({**GOOD, "target": 7}, "target: Input should be a valid string"),
        ({**GOOD, "targett": "x"}, "targett: "),
        (
            {**GOOD, "consequences": [{"prompt": "{}", "target": "x"}]},
            r"consequences\.0\.target_before: Field required",
        ),
        ({**GOOD, "prompt": "{} is {}"}, "prompt: needs exactly one {}"),
        ({**GOOD, "prompt": "It is in"}, r"subject: '.*' does not occur in the prompt 'It is in'\. Write {} in the"),
        ({**GOOD, "subject_aliases": [" "]}, r"subject_aliases\[0\]: is empty"),
        ("The Louvre", ""),
    ],
)
def test_bad_records_are_reported_with_file_index_and_field(tmp_path, bad, field):
    path = write(tmp_path / "mine.json", [GOOD, OTHER, bad])
    with pytest.raises(DataError, match=rf"mine\.json: 1 problem in 3 records:\n  line 1, record 3, {field}"):
        load_facts(path)


def test_every_bad_record_is_counted_and_ten_are_shown(tmp_path):
    path = write(tmp_path / "mine.json", [GOOD, *[{**GOOD, "target": ""}] * 12])
    with pytest.raises(DataError) as caught:
        load_facts(path)
    message = str(caught.value)
    assert "12 problems in 13 records" in message
    assert message.count("\n  line 1, record ") == 10
    assert "record 2, target: is empty" in message
    assert "… and 2 more" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("facts.json", b"[{", r"facts\.json: not readable as JSON"),
        ("facts.jsonl", b'\n{"prompt": 1}\n{', r"line 3, record 2, not readable as JSON: .* at column 2"),
        ("facts.json", b"\xff\xfe\x00", r"facts\.json: not readable as JSON"),
        ("facts.json", b"[]", "expected a non-empty list of facts"),
        ("facts.json", b"7", "expected a non-empty list of facts, found int"),
        ("facts.csv", b"", "expected a non-empty list of facts"),
        ("facts.csv", b"prompt,subject,target\n{} is in,Rome,Italy,extra\n", "line 2, record 1, has 1 cell more"),
        ("facts.pkl", b"x", r"unknown file type '\.pkl'; facts come as \.json, \.jsonl or \.csv"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_facts(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no facts file '.*none\.json'"):
        load_facts(tmp_path / "none.json")


def test_one_record_is_parsed_with_its_place():
    assert parse_fact(GOOD, "here") == Fact(**GOOD)
    with pytest.raises(DataError, match="row 3, subject: is empty"):
        parse_fact({**GOOD, "subject": ""}, "row 3")


def test_an_unknown_relation_is_refused_with_those_there_are():
    with pytest.raises(DataError, match=r"No shipped fact has the relation 'colour'. Known: \["):
        bundled_facts("colour")
