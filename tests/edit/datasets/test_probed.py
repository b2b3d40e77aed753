"""KnowEdit, MQuAKE and RippleEdits: every prompt becomes a probe of its role, or is counted among those left out."""

import copy
import json
import warnings
from collections import Counter
from pathlib import Path

import pytest

import edit
from edit.datasets.ripple import common_subject
from edit.requests.answers import own_answer
from locate import DataError
from tests import tiny

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder ../shared/data with the published files")


def asked(prompt, answers):
    return {"prompt": prompt, "ground_truth": answers}


KNOWEDIT = {
    "subject": "The Old Mill", "prompt": "The Old Mill was built in", "target_new": " Norway",
    "ground_truth": ["Denmark", "Kingdom of Denmark"], "rephrase_prompt": "The Old Mill stands in ",
    "portability": {
        "Reasoning": [asked("The king where The Old Mill stands is", [["Harald", "Harald V"]]),
                      asked("The home of the baker of The Old Mill is", "Norway")],
        "Subject_Aliasing": [asked("That Mill was built in", "Norway")],
        "Logical_Generalization": [asked("Norway is the home of", ["The Old Mill"]), asked("It has", [[]])],
    },
    "locality": {
        "Relation_Specificity": [asked("The Old Mill was built by", [["Ann"]]), asked("The Old Mill saw", "Norway")],
        "Forgetfulness": [asked("The Old Mill was built in, not Norway but", [["Norway"], ["Sweden", "Sverige"]])],
    },
}  # fmt: skip
PROBES = [
    ("edit", "The Old Mill was built in", "Norway", "Denmark"),
    ("paraphrase", "The Old Mill stands in", "Norway", "Denmark"),
    ("one-hop", "The king where The Old Mill stands is", "Harald", ""),
    # A step that leads to the edited fact has its two answers.
    ("one-hop", "The home of the baker of The Old Mill is", "Norway", "Denmark"),
    ("alias", "That Mill was built in", "Norway", "Denmark"),
    ("consequence", "Norway is the home of", "The Old Mill", ""),
    ("same subject", "The Old Mill was built by", "Norway", "Denmark"),
    ("same subject", "The Old Mill was built in, not Norway but", "Norway", "Sweden"),
]


def link(cloze, answer, *names):
    return {"question": "?", "cloze": cloze, "answer": answer, "answer_alias": list(names)}


MQUAKE = {
    "case_id": 9, "answer": "Margrethe", "new_answer": "Harald", "answer_alias": [], "new_answer_alias": [],
    "requested_rewrite": [{
        "prompt": "{} was built in", "relation_id": "P1", "subject": "The Old Mill",
        "target_new": {"str": "Norway", "id": "Q1"}, "target_true": {"str": "Denmark", "id": "Q2"},
        "question": "Where was The Old Mill built?",
    }],
    "questions": ["Who rules where The Old Mill was built?", "Whose is The Old Mill?"],
    "single_hops": [link("The Old Mill was built in", "Denmark"), link("Denmark is ruled by", "Margrethe")],
    "new_single_hops": [link("The Old Mill was built in", "Norway", "Norge"), link("Norway is ruled by", "Harald"),
                        link("Oslo is in", "Norge", "Norway")],
}  # fmt: skip


def query(prompt, *answers, ids=(), **fields):
    values = [{"value": names[0], "aliases": list(names[1:])} for names in answers]
    fields = {"query_type": "regular", "subject_id": "Q0", "relation": "R", "phrase": None, **fields}
    return {"prompt": prompt, "answers": values, "target_ids": list(ids), **fields}


def cases(*queries, **fields):
    return [{"test_queries": [one], "test_condition": "OR", "condition_queries": [], **fields} for one in queries]


def stated(prompt, target, **fields):
    return {"prompt": prompt, "subject_id": "Q0", "relation": "COUNTRY", "target_id": target, **fields}


RIPPLE = {
    "example_type": "popular",
    "edit": stated("The name of the country of The Old Mill is New Denmark.", "Q1",
                   original_fact=stated("The name of the country of The Old Mill is New Norway.", "Q2")),
    "Relation_Specifity": cases(query("The builder of The Old Mill is", ["Ann"]),
                                query("The owner of The Old Mill is")),
    "Logical_Generalization": cases(query("The continent of The Old Mill is", ["Europe"])),
    "Subject_Aliasing": cases(query("The name of the country of That Mill is", ["New Denmark", "ND"], ids=["Q1"],
                                    phrase="The name of the country of That Mill is")),
    "Compositionality_I": cases(query("The king of the country of The Old Mill is", ["Harald"], query_type="two_hop",
                                      phrase="…", ids=["Q1"], second_hop_target_ids=["Q5"])),
    "Compositionality_II": cases(query("The country of Ann is", ["New Denmark", "ND"], query_type="two_hop",
                                       subject_id="Q7", phrase="…", second_hop_target_ids=["Q1"])),
    "Forgetfulness": cases(query("The country of The Old Mill, which is not New Denmark, is", ["Sweden"], phrase="…")),
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(kind, *records, **options):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        return edit.load_probed_edits(path, kind, **options)

    return read


def told(probes):
    return [(probe.role, probe.text, probe.new, probe.old) for probe in probes]


def changed(record, **fields):
    return {**copy.deepcopy(record), **fields}


def test_knowedit_gives_each_prompt_its_role(read):
    # The empty answer, and the other relation whose own answer is the new object.
    reasons = "1 probes without an answer\n  1 probes whose own answer is the new object"
    with pytest.warns(UserWarning, match=reasons):
        [(requests, probes)] = read("knowedit", KNOWEDIT)
    assert told(probes) == PROBES
    assert requests[0].fact.prompt == "{} was built in"
    assert requests[0].aliases_before == ("Kingdom of Denmark",)
    bio = {"concept": "the mill", "text": "This is about the mill.", "labels": "It runs.", "ground_truth": "It is."}
    [(requests, probes)] = read("knowedit", bio)
    assert told(probes) == [("edit", "This is about the mill.", "It runs.", "It is.")]


def test_mquake_asks_over_the_whole_chain(read):
    with pytest.warns(UserWarning, match="1 probes whose own answer is the new object"):
        [(requests, probes)] = read("mquake", MQUAKE)
    assert (requests[0].fact.id, requests[0].aliases) == ("mquake-9", ("Norge",))
    assert told(probes) == [
        ("edit", "The Old Mill was built in", "Norway", "Denmark"),
        ("paraphrase", "Where was The Old Mill built?", "Norway", "Denmark"),
        *(("two-hop", question, "Harald", "Margrethe") for question in MQUAKE["questions"]),
        ("unrelated", "Denmark is ruled by", "Norway", "Margrethe"),
        ("unrelated", "Norway is ruled by", "Norway", "Harald"),
    ]
    second = {**MQUAKE["requested_rewrite"][0], "prompt": "{} is ruled by", "subject": "Norway"}
    several = changed(MQUAKE, requested_rewrite=[*MQUAKE["requested_rewrite"], second])
    several["new_single_hops"].append(link("Mill", "x"))
    with pytest.warns(UserWarning, match="1 probes whose own answer is the new object"):
        [(requests, probes)] = read("mquake", several)
    assert [request.fact.id for request in requests] == ["mquake-9", "mquake-9-1"]
    counts = Counter(probe.role for probe in probes)
    assert (counts["consequence"], counts["edit"], counts["unrelated"]) == (2, 2, 2)


def test_rippleedits_statements_are_taken_apart(read):
    with pytest.warns(UserWarning, match="1 probes without an answer"):
        [(requests, probes)] = read("rippleedits", RIPPLE)
    request = requests[0]
    assert (request.fact.prompt, request.fact.subject) == ("The name of the country of {} is", "The Old Mill")
    assert (request.fact.target, request.target_new, request.aliases) == ("New Norway", "New Denmark", ("ND",))
    assert told(probes) == [
        ("edit", "The name of the country of The Old Mill is", "New Denmark", "New Norway"),
        ("same subject", "The builder of The Old Mill is", "New Denmark", "New Norway"),
        ("consequence", "The continent of The Old Mill is", "Europe", ""),
        ("alias", "The name of the country of That Mill is", "New Denmark", "New Norway"),
        ("one-hop", "The king of the country of The Old Mill is", "Harald", ""),
        ("one-hop", "The country of Ann is", "New Denmark", "New Norway"),
        ("same subject", "The country of The Old Mill, which is not New Denmark, is", "New Denmark", "Sweden"),
    ]
    # Without a name for either object, statements part behind the verb; with the subject's name, that is it.
    bare = {key: RIPPLE[key] for key in ("example_type", "edit")}
    named = cases(query("The mill of Ann is", ["Old Mill"], ids=["Q0"], subject_id="Q7"))
    [(requests, _)] = read("rippleedits", {**bare, "Relation_Specificity": named})
    assert (requests[0].fact.prompt, requests[0].target_new) == ("The name of the country of The {} is", "New Denmark")
    with pytest.raises(DataError, match="Left out were:\n  1 edits of which the record does not tell the subject"):
        read("rippleedits", bare)


def test_what_is_not_published_the_model_says(read):
    model = tiny.bridge("llama")
    recent = {key: value for key, value in KNOWEDIT.items() if key not in ("ground_truth", "locality")}
    with pytest.raises(DataError, match="1 edits whose present object is not in the record"):
        read("knowedit", recent)
    with pytest.warns(UserWarning, match="1 probes without an answer"):
        [(requests, probes)] = read("knowedit", recent, model=model)
    assert requests[0].fact.target == own_answer(model, "The Old Mill was built in") == probes[0].old
    assert all(probe.old for probe in probes)
    same = {**recent, "target_new": requests[0].fact.target}
    with pytest.raises(DataError, match="1 edits whose new object the model answers already"):
        read("knowedit", same, model=model)
    [hop] = [probe for probe in probes if probe.text == PROBES[2][1]]
    given = {"Reasoning": [asked(hop.text, hop.old)]}
    with pytest.warns(UserWarning, match="1 probes whose new answer the model gives already"):
        [(_, probes)] = read("knowedit", {**KNOWEDIT, "portability": given, "locality": {}}, model=model)
    assert [probe.role for probe in probes] == ["edit", "paraphrase"]


def test_other_sets_give_what_their_requests_do(read):
    flat = {"case_id": 5, "prompt": "The Mill was built in", "subject": "The Mill", "ground_truth": "Denmark",
            "target_new": "Norway", "rephrase_prompt": "The Mill stands in", "locality_prompt": "The sun is",
            "locality_ground_truth": "hot"}  # fmt: skip
    [(requests, probes)] = read("counterfact", flat)
    assert probes == edit.probes_for(requests[0])
    assert told(probes)[-1] == ("unrelated", "The sun is", "Norway", "hot")


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("knowedit", {**KNOWEDIT, "target_new": " "}, "json: 1 problem in 1 record:\n  line 1, record 1, target_new"),
        ("knowedit", {**KNOWEDIT, "locality": {"Forgetfulness": [{"prompt": "x"}]}},
         r"record 1, locality\.Forgetfulness\.0\.ground_truth: Field required"),
        ("knowedit", {**KNOWEDIT, "ground_truth": "Norway"}, "1 edits whose new object is the present one"),
        ("mquake", {**MQUAKE, "questions": None}, "record 1, questions: Input should be a valid list"),
        ("rippleedits", {**RIPPLE, "edit": {}}, r"record 1, edit\.prompt: Field required"),
        ("rippleedits", {**RIPPLE, "edit": stated("Mill.", "Q9")}, "does not tell where the object begins"),
        ("ripple", {}, "benchmark: must be one of knowedit, mquake, .*, found 'ripple'"),
    ],
)  # fmt: skip
def test_bad_records_are_named(read, kind, record, message):
    with pytest.raises(DataError, match=message):
        read(kind, record)


@shared
def test_the_published_files_are_read_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counterfactual = edit.load_probed_edits(SHARED / "knowedit" / "wiki_counterfact_300.json", "knowedit")
        chains = edit.load_probed_edits(SHARED / "mquake_100.json", "mquake")
    roles = Counter(probe.role for one in counterfactual for probe in one.probes)
    assert (len(counterfactual), roles["alias"], roles["one-hop"], roles["consequence"]) == (298, 297, 116, 64)
    assert {len(one.requests) for one in chains} == {4}
    assert Counter(probe.role for one in chains for probe in one.probes)["consequence"] == 300


@shared
def test_subjects_are_found_where_only_prompts_tell_them():
    for name in ("wiki_recent_200", "wiki_counterfact_300"):
        for record in json.loads((SHARED / "knowedit" / f"{name}.json").read_text(encoding="utf-8")):
            about = [one["prompt"] for one in record["locality"].get("Relation_Specificity", [])]
            assert common_subject(record["prompt"], about) == (record["subject"] if about else None)
