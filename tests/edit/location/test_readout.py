"""What changed columns say: ranks by plain matrix products, on every form of norm and matrix."""

import numpy as np
import pytest
import torch

import edit
from edit.requests.requests import EditRequest
from locate import Fact, FactError, UpdateError
from locate.facts.prompts import encode_fact, encode_target
from locate.model.weights import down_projection
from tests import tiny
from tests.edit.location.test_concentration import random_matrix, update_of
from tests.figures import check_fits
from tests.sampling import slow

REQUESTS = [
    EditRequest(Fact(prompt="{} is located in the city of", subject=name, target="Paris"), "Rome")
    for name in ("The Louvre", "The Eiffel Tower")
]


def gemma(norm, vector):
    return vector * (1 + norm.weight)


def plain(norm, vector):
    return vector * norm.weight


def centred(norm, vector):
    return (vector - vector.mean()) * norm.weight


# What a norm does to a direction, the final norm, and the norm after the MLP where there is one.
FORMS = {
    "gpt2": (centred, lambda hf: hf.transformer.ln_f, None),
    "llama": (plain, lambda hf: hf.model.norm, None),
    "gemma3_text": (gemma, lambda hf: hf.model.norm, lambda hf, at: hf.model.layers[at].post_feedforward_layernorm),
    "olmo2": (plain, lambda hf: hf.model.norm, lambda hf, at: hf.model.layers[at].post_feedforward_layernorm),
    "gptj": (centred, lambda hf: hf.transformer.ln_f, None),
}


@pytest.mark.parametrize(
    "kind", ["gpt2", "gemma3_text", *(pytest.param(k, marks=slow) for k in ("llama", "olmo2", "gptj"))]
)
def test_ranks_are_those_of_plain_products(kind):
    norm, final, after = FORMS[kind]
    hf = tiny.hf_model(kind)
    with torch.no_grad():  # gains that count
        draw = torch.Generator().manual_seed(1)
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 1 and "bias" not in name:
                parameter.copy_(torch.rand(parameter.shape, generator=draw) * 2 - 0.5)
            elif parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    plain_hf = tiny.hf_model(kind)
    plain_hf.load_state_dict(hf.state_dict())
    model = tiny.locate.load_model(hf, tiny.tokenizer())
    matrices = {1: random_matrix(model, 1, 0), 3: random_matrix(model, 3, 1) * 1.1}
    update = update_of(model, matrices)
    found = edit.column_readout(model, update, REQUESTS, columns=6)
    norms = torch.cat([matrices[1].norm(dim=0), matrices[3].norm(dim=0)])
    size = matrices[1].shape[1]
    prompt = encode_fact(model, REQUESTS[0].fact)
    token = int(encode_target(model, prompt, "Rome")[0])
    unembedding = plain_hf.get_output_embeddings().weight.double()
    for place, index in enumerate(norms.argsort(descending=True)[:6].tolist()):
        layer, neuron = (1, 3)[index // size], index % size
        assert (int(found.data["layer"][0, place]), int(found.data["neuron"][0, place])) == (layer, neuron)
        assert float(found.data["share"][0, place]) == pytest.approx(float(norms[index] ** 2 / norms.square().sum()))
        weight = down_projection(model, layer).parameter.detach()
        weight = weight.T if down_projection(model, layer).transposed else weight
        for state, vector in zip(
            ("before", "after"), (weight[:, neuron], weight[:, neuron] + matrices[layer][:, neuron]), strict=True
        ):
            vector = vector.double()
            if after is not None:
                vector = norm(after(plain_hf, layer), vector)
            logits = unembedding @ norm(final(plain_hf), vector)
            rank = 1 + int((logits > logits[token]).sum())
            assert int(found.data["rank"].sel(state=state)[0, place]) == rank
    with update.applied(model):
        again = edit.column_readout(model, update, REQUESTS, columns=6)
    np.testing.assert_array_equal(again.data["rank"], found.data["rank"])


def test_an_object_that_is_written_into_the_columns_is_found_after_the_edit(tmp_path):
    model = tiny.bridge("llama")
    changes = []
    for request in REQUESTS:
        token = int(encode_target(model, encode_fact(model, request.fact), "Rome")[0])
        matrix = torch.zeros(32, 80)
        matrix[:, [3, 9]] = 50 * model.unembed.original_component.weight[token].detach()[:, None]
        changes.append(update_of(model, {2: matrix}))
    found = edit.column_readout(model, changes, REQUESTS, columns=2)
    assert found.hits(1).sel(state="after").all()
    table = found.rates(first=[1, 400]).set_index("first")
    assert table.loc[1, "after"] == 1
    assert table.loc[400, ["before", "after", "gain"]].tolist() == [1, 1, 0]
    assert table.loc[1, "gain"] == 1 - table.loc[1, "before"]
    again = edit.load_column_readout(found.save(tmp_path / "r.nc"))
    assert again.rates().equals(found.rates())
    assert len(again.to_dataframe()) == 2 * 2 * 2
    check_fits(again.plot())
    check_fits(edit.plot_column_readout({"a_$x$": found, "b": again}, figsize=(2.6, 2.8)))


def test_bad_input():
    model = tiny.bridge("gpt2")
    update = update_of(model, {1: random_matrix(model, 1, 0)})
    with pytest.raises(FactError, match="found 1 for 2"):
        edit.column_readout(model, [update], REQUESTS)
    with pytest.raises(UpdateError, match="columns: this change has 128, found 200"):
        edit.column_readout(model, update, REQUESTS, columns=200)
    with pytest.raises(UpdateError, match="columns: must be 1 or more"):
        edit.column_readout(model, update, REQUESTS, columns=0)
    name = "transformer.h.1.attn.c_attn.weight"
    elsewhere = edit.WeightUpdate.make(model, {name: edit.LowRank.exactly(torch.ones(32, 96))}, method="other")
    with pytest.raises(UpdateError, match="adds to no down-projection, whose columns could be read: transformer"):
        edit.column_readout(model, elsewhere, REQUESTS)
