"""The texts that a value is optimised under: alignment at the subject, mask, targets and readouts."""

from dataclasses import replace

import pytest
import torch

from edit.requests.requests import EditRequest
from edit.values.contexts import align_contexts, build_contexts, sample_prefixes
from locate import Fact, FactError
from tests import tiny

PREFIXES = ["", "I am. ", "The Louvre is located in the city of Paris too. ", "You. "]
TEMPLATES = [
    "{} is located in the city of",
    "To visit {}, you need a flight to the city of",
    "In Europe there is {}",
]


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("llama")


def request_for(template=TEMPLATES[0], target_new="Rome"):
    fact = Fact(prompt=template, subject="The Eiffel Tower", target="Paris")
    return EditRequest(fact, target_new)


def texts(request):
    return [prefix + request.fact.text for prefix in PREFIXES] + ["The Eiffel Tower is a"]


def plain(text):
    return tiny.tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_site_is_the_subjects_last_token_in_every_row(model, template):
    request = request_for(template)
    batch = align_contexts([build_contexts(model, request, PREFIXES)])
    encoded = tiny.tokenizer()(texts(request), return_offsets_mapping=True)
    for row, (text, offsets) in enumerate(zip(texts(request), encoded["offset_mapping"], strict=True)):
        end = text.rindex("The Eiffel Tower") + len("The Eiffel Tower")
        (own,) = [i for i, (a, b) in enumerate(offsets) if a < end <= b]
        shift = int((batch.attention_mask[row] == 0).sum())
        assert own + shift == batch.site
        assert batch.tokens[row, batch.site] == encoded["input_ids"][row][own]


@pytest.mark.parametrize("target_new", ["Rome", "London in France"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_rows_are_plain_tokens_after_a_left_mask(model, template, target_new):
    request = request_for(template, target_new)
    contexts = build_contexts(model, request, PREFIXES)
    batch = align_contexts([contexts])
    target = contexts.target.tolist()
    for row, text in enumerate(texts(request)):
        expected = plain(text) + (target[:-1] if row < len(PREFIXES) else [])
        assert contexts.rows[row].tokens.tolist() == expected
        shift = int((batch.attention_mask[row] == 0).sum())
        assert batch.tokens[row, shift : shift + len(expected)].tolist() == expected
        # Nothing but the padding before the text is masked.
        assert batch.attention_mask[row, shift:].all()
    assert len(contexts.asking) == len(PREFIXES)
    assert (batch.attention_mask[:, 0] == 1).any()


@pytest.mark.parametrize("target_new", ["Rome", "London in France"])
def test_readouts_predict_the_targets_tokens(model, target_new):
    request = request_for(TEMPLATES[1], target_new)
    contexts = build_contexts(model, request, PREFIXES)
    batch = align_contexts([contexts])
    target = plain(request.fact.text + " " + target_new)[len(plain(request.fact.text)) :]
    assert contexts.target.tolist() == target
    assert batch.targets.tolist() == target * len(PREFIXES)
    rows, columns = (indices.view(len(PREFIXES), len(target)) for indices in batch.readouts)
    for row, text in enumerate(texts(request)[:-1]):
        assert (rows[row] == row).all()
        shift = int((batch.attention_mask[row] == 0).sum())
        assert columns[row].tolist() == [shift + len(plain(text)) - 1 + j for j in range(len(target))]
        assert batch.tokens[row, columns[row, 1:]].tolist() == target[:-1]
    ((row, column),) = torch.stack(batch.essences, dim=1).tolist()
    assert row == len(PREFIXES)
    assert batch.tokens[row, column] == plain("The Eiffel Tower is a")[-1]


def test_requests_of_unlike_length_are_padded_once_to_one_site(model):
    requests = [request_for(template, name) for template in TEMPLATES for name in ("Rome", "London in France")]
    contexts = [build_contexts(model, request, PREFIXES) for request in requests]
    together = align_contexts(contexts)
    first = readout = 0
    for index, one in enumerate(contexts):
        alone = align_contexts([one])
        rows = slice(first, first + len(one.rows))
        asked = slice(readout, readout + len(alone.targets))
        left = together.site - alone.site
        right = together.tokens.shape[1] - left - alone.tokens.shape[1]
        assert min(left, right) >= 0
        wanted = torch.nn.functional.pad(alone.tokens, (left, right))
        assert torch.equal(together.tokens[rows], wanted)
        assert torch.equal(together.attention_mask[rows, left : left + alone.tokens.shape[1]], alone.attention_mask)
        assert not together.attention_mask[rows, :left].any()
        assert together.attention_mask[rows, together.site :].all()
        assert torch.equal(together.readouts[0][asked], alone.readouts[0] + first)
        assert torch.equal(together.readouts[1][asked], alone.readouts[1] + left)
        assert torch.equal(together.targets[asked], alone.targets)
        assert set(together.askers[asked].tolist()) == set(together.owner[rows].tolist()) == {index}
        essence = (together.essences[0][index].item(), together.essences[1][index].item())
        assert essence == (alone.essences[0].item() + first, alone.essences[1].item() + left)
        first, readout = rows.stop, asked.stop
    assert (first, readout) == (len(together.tokens), len(together.targets))
    assert min(one.extent.beside for one in contexts) < together.site


def test_prefixes_come_from_the_seed(model):
    prefixes = sample_prefixes(model, ((3, 6), (5, 2)), seed=3)
    assert len(prefixes) == 9
    assert prefixes[0] == ""
    assert all(prefix.endswith(". ") for prefix in prefixes[1:])
    assert prefixes == sample_prefixes(model, ((3, 6), (5, 2)), seed=3)
    assert prefixes != sample_prefixes(model, ((3, 6), (5, 2)), seed=4)


def test_prefixes_continue_the_openers_by_that_many_tokens(model):
    openers = ["The", "Therefore", "Because", "I", "You"]
    found = sample_prefixes(model, ((0, 5),))
    assert sorted(found) == sorted(["", *(opener + ". " for opener in openers)])
    assert all(prefix.startswith(tuple(openers)) for prefix in sample_prefixes(model, ((4, 7),))[1:])


def test_prefixes_are_among_the_five_likeliest(model):
    def only_five(logits, hook):
        logits = torch.zeros_like(logits)
        logits[..., 70:75] = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5])
        logits[..., 75] = 0.25
        return logits

    with model.hooks(fwd_hooks=[("unembed.hook_out", only_five)]):
        prefixes = sample_prefixes(model, ((40, 5),))
    letters = "".join(tiny.tokenizer().batch_decode([[token] for token in range(70, 75)]))
    openers = ("Therefore", "The", "Because", "I", "You")
    tails = [prefix.removesuffix(". ") for prefix in prefixes[1:]]
    for opener in openers:
        tails = [tail.removeprefix(opener) for tail in tails]
    assert set("".join(tails)) == set(letters)


def test_an_answer_that_begins_with_white_space_alone_is_refused(model):
    fact = Fact(prompt="{}的首都是", subject="中国", target="北京")
    assert build_contexts(model, EditRequest(fact, "上海"), [""]).spelled[0].strip()
    with pytest.raises(
        FactError, match=r"上海: the new answer's first token is white space alone \(\[' ',.*joined=True"
    ):
        build_contexts(model, EditRequest(fact, " 上海"), [""])
    # What both answers begin with is not what is taught.
    numbers = Fact(prompt="{} sank in the year", subject="The Titanic", target="1912")
    assert build_contexts(model, EditRequest(numbers, "1985"), [""]).spelled[0] == " "
    assert build_contexts(model, EditRequest(replace(numbers, prompt="{} sank in the year "), "1985"), [""])
