"""CounterFact and zsRE: every record becomes a request, or its fault is named."""

import copy
import json

import pytest

from edit.datasets import load_counterfact, load_reference_texts, load_zsre
from edit.requests.requests import EditRequest, Unrelated
from locate import DataError

ORIGINAL = {
    "case_id": 12, "pararel_idx": 3,
    "requested_rewrite": {
        "prompt": "{} was built in ", "relation_id": "P19", "subject": "The Old Mill",
        "target_new": {"str": " Norway", "id": "Q1"}, "target_true": {"str": "Denmark", "id": "Q2"},
    },
    "paraphrase_prompts": [
        "It rained. The Old Mill, or The Old Mill by the lake, stands in", "That mill stands in",
        "The set {} has The Old Mill in",
    ],
    "neighborhood_prompts": ["The New Mill was built in", "The New Mill was built in"],
    "attribute_prompts": ["The Fjord Hotel was built in"],
    "generation_prompts": ["The Old Mill is near", "The Old Mill is near"],
}  # fmt: skip
FLAT = {
    "case_id": 5, "prompt": "Long ago The Old Mill was built in", "subject": "The Old Mill", "ground_truth": "Denmark",
    "target_new": "Norway", "rephrase_prompt": "The Old Mill stands in", "locality_prompt": "The New Mill stands in",
    "locality_ground_truth": "Denmark",
}  # fmt: skip
ZSRE = {
    "subject": "Mill", "src": "Who built the Mill, and is the Mill old?", "pred": "Ann", "alt": " Eve",
    "rephrase": "The builder of the Mill was who?", "answers": ["Bob", "", "Robert "],
    "loc": "nq question: who wrote the iliad", "loc_ans": "Homer", "cond": "Ann >> Eve || …",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(*records, name="data.json"):
        path = tmp_path / name
        path.write_text(json.dumps(records), encoding="utf-8")
        return path

    return write


def without(record, *keys, **changes):
    return {**{key: value for key, value in copy.deepcopy(record).items() if key not in keys}, **changes}


def rewritten(**changes):
    return without(ORIGINAL, requested_rewrite={**ORIGINAL["requested_rewrite"], **changes})


def test_reads_the_original_form(write):
    (request,) = load_counterfact(write(ORIGINAL))
    fact = request.fact
    assert (fact.id, fact.relation, fact.text) == ("counterfact-12", "P19", "The Old Mill was built in")
    assert (fact.target, fact.target_new, request.target_new) == ("Denmark", "Norway", "Norway")
    # The last mention is the subject; what does not name it, or names no single place for it, stays a text.
    assert fact.paraphrases == ("It rained. The Old Mill, or {} by the lake, stands in",)
    assert request.paraphrase_texts == ("That mill stands in", "The set {} has The Old Mill in")
    assert request.paraphrases == (ORIGINAL["paraphrase_prompts"][0], *request.paraphrase_texts)
    assert fact.neighbours == tuple(ORIGINAL["neighborhood_prompts"])
    assert request.attribute_prompts == tuple(ORIGINAL["attribute_prompts"])
    assert request.generation_prompts == tuple(ORIGINAL["generation_prompts"])
    assert request.unrelated == ()


def test_reads_the_flat_form(write):
    same, other = load_counterfact(write(FLAT, without(FLAT, case_id=6, locality_ground_truth="Sweden")))
    assert (same.fact.id, same.fact.prompt) == ("counterfact-5", "Long ago {} was built in")
    assert same.fact.paraphrases == ("{} stands in",)
    assert (same.fact.neighbours, same.unrelated) == (("The New Mill stands in",), ())
    # A locality prompt with another answer is no neighbour.
    assert other.fact.neighbours == ()
    assert other.unrelated == (Unrelated(prompt="The New Mill stands in", target="Sweden"),)


def test_reads_reference_texts_by_relation_and_object(write):
    original = write(
        ORIGINAL, without(ORIGINAL, case_id=13), without(rewritten(relation_id="P20"), case_id=14), name="original.json"
    )
    requests = load_counterfact(original)

    def snippets(relation, target, *texts):
        samples = [{"name": "Mill", "wikipedia_url": "…", "text": text} for text in texts]
        return {"relation_id": relation, "target_id": target, "samples": samples}

    path = write(snippets("P19", "Q1", "aa", "bb"), snippets("P19", "Q2", "cc"), snippets("P19", "Q1", "dd"))
    references = load_reference_texts(path, original)
    # Words are weighted over all texts, those of no fact included.
    assert references.corpus == ("aa", "bb", "dd", "cc")
    assert [references.about(request) for request in requests] == [("aa", "bb", "dd")] * 2 + [()]
    for record, facts, message in (
        ({"relation_id": "P19", "samples": []}, original, "record 1, target_id: Field required"),
        (snippets("P19", "Q1"), original, "has no text for any of the 3 facts in"),
        (snippets("P19", "Q1", "aa"), write(FLAT, name="flat.json"), "record 1, requested_rewrite: Field required"),
    ):
        with pytest.raises(DataError, match=message):
            load_reference_texts(write(record), facts)


def test_reads_zsre_as_questions(write):
    (request,) = load_zsre(write(ZSRE))
    fact = request.fact
    assert (fact.id, fact.text) == ("zsre-0", ZSRE["src"])
    assert fact.prompt == "Who built the Mill, and is the {} old?"
    assert (fact.target, request.target_new) == ("Bob", "Eve")
    assert (request.aliases, request.aliases_before) == ((), ("Robert",))
    assert fact.paraphrases == ("The builder of the {} was who?",)
    assert request.unrelated == (Unrelated(prompt="nq question: who wrote the iliad?", target="Homer"),)


@pytest.mark.parametrize(
    ("changes", "kind", "old", "new", "aliases", "before"),
    [
        ({"alt": "Bob"}, "alt", "Robert", "Bob", (), ()),
        ({"alt": "Bob", "answers": ["Bob"]}, "alt", "Ann", "Bob", (), ()),
        ({"answers": []}, "alt", "Ann", "Eve", (), ()),
        ({"pred": "Bob"}, "alt", "Bob", "Eve", (), ("Robert",)),
        ({}, "answers", "Ann", "Bob", ("Robert",), ()),
        ({"pred": "Robert"}, "answers", "Eve", "Bob", ("Robert",), ()),
        ({"pred": ""}, "answers", "Eve", "Bob", ("Robert",), ()),
        ({"alt": " "}, "answers", "Ann", "Bob", ("Robert",), ()),
    ],
)
def test_zsre_teaches_the_alternative_or_the_right_answer(write, changes, kind, old, new, aliases, before):
    (request,) = load_zsre(write(without(ZSRE, **changes)), target_new=kind)
    assert (request.fact.target, request.target_new) == (old, new)
    assert (request.aliases, request.aliases_before) == (aliases, before)


def test_records_without_an_alternative_are_left_out_of_alternatives_aloud(write):
    path = write(ZSRE, without(ZSRE, alt=""), without(ZSRE, "alt"))
    with pytest.warns(UserWarning, match="left out 2 records that have no alternative answer"):
        (request,) = load_zsre(path)
    assert request.fact.id == "zsre-0"
    assert [request.target_new for request in load_zsre(path, target_new="answers")] == ["Bob"] * 3
    with pytest.raises(DataError, match="no record has an alternative answer"):
        load_zsre(write(without(ZSRE, alt=" ")))


def test_a_question_mark_is_not_doubled(write):
    (request,) = load_zsre(write(without(ZSRE, loc="who? ")))
    assert request.unrelated[0].prompt == "who?"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (rewritten(prompt="The Old Mill is in"), "requested_rewrite.prompt: needs exactly one {} where the subject"),
        (rewritten(target_new={"str": "Denmark"}), "equals target_true ('Denmark'), so there would be nothing to"),
        (rewritten(target_true={"str": " "}), "requested_rewrite.target_true.str: is empty"),
        (rewritten(target_true={"id": "Q2"}), "requested_rewrite.target_true.str: Field required"),
        (rewritten(subject=""), "requested_rewrite.subject: is empty"),
        (without(ORIGINAL, "case_id"), "case_id: Field required"),
        (without(ORIGINAL, generation_prompts=["x", ""]), "generation_prompts.1: is empty"),
        (without(ORIGINAL, neighborhood_prompts="x"), "neighborhood_prompts: Input should be a valid list"),
        (without(FLAT, "locality_prompt"), "locality_prompt: Field required"),
        (without(FLAT, target_new="Denmark "), "target_new: equals ground_truth ('Denmark')"),
        (without(FLAT, rephrase_prompt=7), "rephrase_prompt: Input should be a valid string"),
        ("text", "Input should be a valid dictionary"),
    ],
)
def test_a_bad_counterfact_record_is_named(write, record, message):
    path = write(FLAT, record)
    with pytest.raises(DataError) as caught:
        load_counterfact(path)
    assert str(caught.value).startswith(f"{path}: 1 problem in 2 records:\n  line 1, record 2, ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (without(ZSRE, "src"), "alt", "src: Field required"),
        (without(ZSRE, src="Is {} the Mill?"), "alt", "prompt: needs exactly one {}"),
        (without(ZSRE, loc_ans=None), "alt", "loc_ans: Input should be a valid string"),
        (without(ZSRE, answers=["Eve"], pred="Eve"), "alt", "alt: 'Eve' is the only answer of the record"),
        (without(ZSRE, answers=[" "]), "answers", "answers: is empty, so there is no right answer to teach"),
        (without(ZSRE, alt="Bob", pred="Robert"), "answers", "answers: 'Bob' is the only answer of the record"),
    ],
)
def test_a_bad_zsre_record_is_named(write, record, kind, message):
    path = write(ZSRE, ZSRE, record)
    with pytest.raises(DataError) as caught:
        load_zsre(path, target_new=kind)
    assert str(caught.value).startswith(f"{path}: 1 problem in 3 records:\n  line 1, record 3, ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("load", "good", "bad", "message"),
    [
        (load_counterfact, FLAT, {"prompt": "The mill was built in"}, "subject: 'The Old Mill' does not occur in the"),
        (load_zsre, ZSRE, {"src": "Who built it?"}, "subject: 'Mill' does not occur in the prompt 'Who built it?'"),
        (load_zsre, ZSRE, {"src": "Who owns Millhouse?"}, "as a word of its own, only in 'Millhouse'"),
    ],
)
def test_a_record_without_its_subject_is_left_out_aloud(write, load, good, bad, message):
    path = write(good, without(good, **bad), good)
    with pytest.warns(UserWarning, match="left out 1 of 3 records") as caught:
        assert len(load(path)) == 2
    (said,) = map(str, [one.message for one in caught])
    assert said.startswith(
        f"{path}: left out 1 of 3 records, whose subjects do not occur in their prompts:\n  line 1, record 2, "
    )
    assert message in said
    with pytest.raises(DataError, match=r"1 problem in 1 record:\n  line 1, record 1, subject: "):
        load(write(without(good, **bad)))


def test_all_bad_records_are_told_at_once(write):
    path = write(*[without(FLAT, "subject")] * 12, FLAT)
    with pytest.raises(DataError, match=r"12 problems in 13 records") as caught:
        load_counterfact(path)
    assert "record 10, subject" in str(caught.value)
    assert "… and 2 more" in str(caught.value)


@pytest.mark.parametrize(("load", "record"), [(load_counterfact, FLAT), (load_zsre, ZSRE)])
def test_a_limit_reads_the_first_records(write, load, record):
    path = write(record, without(record, subject="another"), {})
    assert len(load(path, limit=1)) == 1
    with pytest.raises(DataError, match="record 3"):
        load(path)
    with pytest.raises(DataError, match="limit: must be 1 or more, found 0"):
        load(path, limit=0)


def test_unknown_kinds_of_target_and_missing_files_are_refused(write, tmp_path):
    with pytest.raises(DataError, match="target_new: must be one of alt, answers, found 'pred'"):
        load_zsre(write(ZSRE), target_new="pred")
    with pytest.raises(DataError, match="There is no"):
        load_counterfact(tmp_path / "absent.json")


def test_every_public_counterfact_record_loads(shared_data):
    path = shared_data / "counterfact_flat_1000.json"
    requests = load_counterfact(path)
    assert len(requests) == 1000
    assert len({request.fact.id for request in requests}) == 1000
    for record, request in zip(json.loads(path.read_text()), requests, strict=True):
        assert (request.fact.text, *request.paraphrases) == (record["prompt"], record["rephrase_prompt"])
        assert (request.fact.target, request.target_new) == (record["ground_truth"], record["target_new"])
        assert request.fact.neighbours == (record["locality_prompt"],)


@pytest.mark.parametrize("kind", ["alt", "answers"])
def test_every_public_zsre_record_loads(shared_data, kind):
    path = shared_data / "zsre_mend_300.json"
    requests = load_zsre(path, target_new=kind)
    assert len(requests) == 300
    for record, request in zip(json.loads(path.read_text()), requests, strict=True):
        assert (request.fact.text, *request.paraphrases) == (record["src"], record["rephrase"])
        assert request.target_new == (record["alt"].strip() if kind == "alt" else record["answers"][0])
        assert request.unrelated == (Unrelated(prompt=record["loc"] + "?", target=record["loc_ans"]),)
        # Of the right answers none is lost: each is the old, the new, or another name of either.
        known = {request.fact.target, request.target_new, *request.aliases, *request.aliases_before}
        assert set(record["answers"]) <= known


def test_requests_of_a_benchmark_are_plain_requests(write):
    (request,) = load_counterfact(write(ORIGINAL))
    assert isinstance(request, EditRequest)
    assert {request: 1}[load_counterfact(write(ORIGINAL))[0]] == 1
