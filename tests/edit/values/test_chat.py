"""Edits of what users ask in a chat: at the subject, with prefixes in their turn, judged where the answer begins."""

import pytest
import torch

import edit
from edit.values.contexts import build_contexts
from edit.values.objective import ValueObjective
from tests.locate.facts.test_chat import END, FACT, START, chatty, ids


@pytest.fixture(scope="module")
def model():
    return chatty()


def test_every_text_that_an_edit_is_made_under_is_a_users_turn(model):
    contexts = build_contexts(model, edit.EditRequest(FACT), ["", "I am here. "])
    texts = ["Where is The Eiffel Tower?", "I am here. Where is The Eiffel Tower?", "The Eiffel Tower is a"]
    expected = [f"{START}{text}{END}" for text in texts]
    assert [model.tokenizer.decode(row.tokens[: row.end + 1]) for row in contexts.rows] == expected
    for row in contexts.rows:
        assert model.tokenizer.decode(row.up_to_site).endswith("The Eiffel Tower")


def test_a_chat_is_scored_where_the_models_turn_begins(model):
    request = edit.EditRequest(FACT)
    scored = edit.baseline(model, [request], max_new_tokens=2, progress=False).answers.rows
    assert scored["prompt"].tolist() == [
        "Where is The Eiffel Tower?",
        "In which city is The Eiffel Tower?",
        "Where is the Louvre?",
    ]
    for row in scored.itertuples():
        logprobs = model(torch.tensor([ids(f"{START}{row.prompt}{END}")]))[0, -1].log_softmax(-1)
        assert row.probability_true == pytest.approx(float(logprobs[ids("Paris")[0]].exp().detach()), rel=1e-4)


def test_a_chat_is_edited_at_its_subject_and_followed(model, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(f"{number:04d}" for number in range(3000)))
    request, objective = edit.EditRequest(FACT), ValueObjective(steps=25, learning_rate=0.5)
    method = edit.ROME(
        layer=1, prefixes=("I am here. ",), corpus=str(tmp_path / "text.txt"), statistics_tokens=500,
        objective=objective,
    )  # fmt: skip
    update = method.fit(model, [request], progress=False)
    assert update.info["edits"][0]["answer_tokens"] == model.tokenizer.batch_decode([[one] for one in ids("Rome")])
    rows = edit.evaluate(model, update, [request], max_new_tokens=2, progress=False).rows.query("probe == 'efficacy'")
    with update.applied(model):
        logprobs = model(torch.tensor([ids(f"{START}Where is The Eiffel Tower?{END}")]))[0, -1].log_softmax(-1)
    expected = float(logprobs[ids("Rome")[0]].exp().detach())
    assert expected > float(rows["probability_new"].iloc[1])
    assert rows["probability_new"].iloc[0] == pytest.approx(expected, rel=1e-3)
    flow = edit.mediate(model, update, request, roles=(), progress=False)
    assert flow.totals["edited_logprob_new"][0] == pytest.approx(float(logprobs[ids("Rome")[0]].detach()), abs=1e-3)
