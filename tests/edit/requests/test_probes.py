"""Probes: what each role is measured by, and the model's own answers where the old ones are not known."""

import warnings

import pytest
import torch

import edit
import locate
from edit.propagation.roles import ROLE_STYLES
from edit.requests.answers import own_answer
from edit.requests.probes import ROLES, named_roles
from tests import tiny


def consequence(hops, target="Italy"):
    return locate.Consequence(prompt="{} is in the country of", target=target, target_before="France", hops=hops)


FACT = locate.Fact(
    prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    subject_aliases=("The iron tower",), paraphrases=("To visit {}, fly to",), neighbours=("The Louvre is in",),
    other_relations=(locate.OtherRelation(prompt="{} was built by", target="Eiffel"),), chat=True,
    consequences=tuple(map(consequence, (1, 2, 3, None))),
)  # fmt: skip
UNRELATED = edit.Unrelated(prompt="The Iliad was written by", target="Homer")


def test_every_role_is_measured_by_its_own_answers():
    request = edit.EditRequest(FACT, unrelated=(UNRELATED, edit.Unrelated(prompt="Its seat is", target="Rome")))
    probes = edit.probes_for(request)
    assert [(probe.role, probe.text, probe.new, probe.old) for probe in probes] == [
        ("edit", "The Eiffel Tower is located in the city of", "Rome", "Paris"),
        ("paraphrase", "To visit The Eiffel Tower, fly to", "Rome", "Paris"),
        ("alias", "The iron tower is located in the city of", "Rome", "Paris"),
        *((role, "The Eiffel Tower is in the country of", "Italy", "France")
          for role in ("one-hop", "two-hop", "consequence", "consequence")),
        ("same subject", "The Eiffel Tower was built by", "Rome", "Paris"),
        ("neighbour", "The Louvre is in", "Rome", "Paris"),
        # Where the answer is the new object anyway, none is a mistake.
        ("unrelated", "The Iliad was written by", "Rome", "Homer"),
    ]  # fmt: skip
    assert {probe.chat for probe in probes} == {True}
    assert [one.role for one in edit.probes_for(edit.EditRequest(FACT, "Oslo"))].count("consequence") == 0


def test_each_role_has_a_style_of_its_own():
    assert tuple(ROLE_STYLES) == ROLES
    assert len(set(ROLE_STYLES.values())) == len({marker for _, marker in ROLE_STYLES.values()}) == len(ROLES)


def test_roles_are_named_together():
    assert named_roles("alias") == ("alias",)
    assert named_roles(["consequence", "edit"]) == ("edit", "one-hop", "two-hop", "consequence")
    with pytest.raises(locate.FactError, match="mediate: there are no probes of role 'hop'; roles are edit, para"):
        named_roles(["edit", "hop"], "mediate")


def test_the_models_own_answer_is_its_likeliest_word():
    model = tiny.bridge("llama")
    text = "The Eiffel Tower is located in the city of"
    tokens = torch.tensor(model.tokenizer(text)["input_ids"])
    with torch.no_grad():
        order = model(tokens[None])[0, -1].argsort(descending=True).tolist()
    words = [word for word in map(model.tokenizer.decode, order) if word[:1] == " " and word[1:2].isalnum()]
    assert (" " + own_answer(model, text)).startswith(words[0])
    starts = [word for word in map(model.tokenizer.decode, order) if word.strip()[:1].isalnum()]
    assert own_answer(model, text, joined=True).startswith(starts[0])


def test_only_what_is_not_known_is_asked_of_the_model():
    model = tiny.bridge("llama")
    known = edit.Probe(role="one-hop", text="The Louvre is in", new="Rome", old="Paris")
    open_one = edit.Probe(role="one-hop", text="The Louvre is in", new="Rome")
    own = own_answer(model, "The Louvre is in")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [probe.old for probe in edit.with_model_answers(model, [known, open_one])] == ["Paris", own]
    answered = edit.Probe(role="one-hop", text="The Louvre is in", new=own)
    with pytest.warns(UserWarning, match="Left out 1 of 2 probes.*\n.*one begins with all of the other"):
        assert edit.with_model_answers(model, [answered, known]) == [known]
