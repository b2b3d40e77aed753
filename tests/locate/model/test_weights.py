"""Finding the down projection in every architecture, and hashes of weights."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from locate import ModelError, SiteError
from locate.model import weights
from locate.model.weights import down_projection, fingerprint, hf_modules, hf_parameters, model_fingerprint
from tests import tiny

KINDS = list(tiny.CONFIGS)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_original_ones_and_parameters_are_live(kind):
    hf = tiny.hf_model(kind)
    original = dict(hf.named_parameters())
    found = hf_parameters(locate.load_model(hf, tiny.tokenizer()))
    assert list(found) == list(original)
    assert all(found[name] is original[name] for name in original)


@pytest.mark.parametrize("kind", KINDS)
def test_down_projection_computes_what_the_module_computes(kind):
    model = tiny.bridge(kind)
    for layer in range(model.cfg.n_layers):
        down = down_projection(model, layer)
        module = model.blocks[layer].mlp.out
        weight = down.parameter.T if down.transposed else down.parameter
        assert weight.shape[0] == model.cfg.d_model
        hidden = torch.randn(5, weight.shape[1])
        bias = getattr(module.original_component, "bias", None)
        expected = hidden @ weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(module(hidden), expected, rtol=1e-5, atol=1e-5)
        assert down.layer == layer
        assert hf_parameters(model)[down.name] is down.parameter
        assert down.transposed == (kind == "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_down_projection_is_live(kind):
    model = tiny.bridge(kind)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        before = model(tokens)
        down_projection(model, 1).parameter.mul_(1.5)
        assert not torch.equal(model(tokens), before)


def test_down_projection_counts_layers_from_the_end():
    model = tiny.bridge("llama")
    assert down_projection(model, -1) == down_projection(model, 3)
    assert down_projection(model, 2).name == "model.layers.2.mlp.down_proj.weight"


def test_refuses_a_layer_that_is_not_there():
    with pytest.raises(SiteError, match="Layer 4 is out of range: the model has 4 layers"):
        down_projection(tiny.bridge("llama"), 4)


SQUARE = {
    "gpt2": ({"n_inner": 32}, True),
    "llama": ({"intermediate_size": 32}, False),
    "gpt_neox": ({"intermediate_size": 32}, False),
    "falcon": ({"ffn_hidden_size": 32}, False),
}


def _from_config(kind, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**tiny.CONFIGS[kind], **changes})
    return locate.load_model(AutoModelForCausalLM.from_config(config), tiny.tokenizer())


@pytest.mark.parametrize("kind", SQUARE)
def test_orientation_of_a_square_matrix(kind):
    changes, transposed = SQUARE[kind]
    down = down_projection(_from_config(kind, **changes), 1)
    assert tuple(down.parameter.shape) == (32, 32)
    assert down.transposed == transposed


class _Product(nn.Module):
    """A projection of a class nobody has heard of."""

    def __init__(self, weight, bias, transposed):
        super().__init__()
        self.weight, self.bias, self.transposed = nn.Parameter(weight), nn.Parameter(bias), transposed

    def forward(self, hidden):
        return hidden @ (self.weight if self.transposed else self.weight.T) + self.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("width", [8, 12])
def test_orientation_of_an_unknown_module_comes_from_what_it_computes(width, transposed, dtype):
    torch.manual_seed(0)
    weight = torch.randn(width, 8) if transposed else torch.randn(8, width)
    module = _Product(weight, 10 * torch.randn(8), transposed).to(dtype)
    assert weights._is_transposed(module, module.weight, d_model=8) == transposed


def test_orientation_looks_where_a_nearly_symmetric_matrix_differs():
    weight = torch.eye(8)
    weight[2, 6] = 1.0
    for transposed in (False, True):
        module = _Product(weight.clone(), torch.randn(8), transposed)
        assert weights._is_transposed(module, module.weight, d_model=8) == transposed


def test_refuses_a_matrix_without_the_width_of_the_model():
    module = _Product(torch.randn(3, 5), torch.randn(3), False)
    with pytest.raises(ModelError, match="stored as 3 × 5, and neither is the model's width 8"):
        weights._is_transposed(module, module.weight, d_model=8)


def test_refuses_a_mixture_of_experts():
    changes = {**tiny.CONFIGS["llama"], "head_dim": 8, "num_local_experts": 4}
    config = AutoConfig.for_model("mixtral", **changes)
    model = locate.load_model(AutoModelForCausalLM.from_config(config), tiny.tokenizer())
    with pytest.raises(ModelError, match=r"Layer 1 has no single MLP down projection.*mixture of experts"):
        down_projection(model, 1)


def test_refuses_a_quantised_matrix():
    model = tiny.bridge("llama")
    module = model.blocks[0].mlp.out.original_component
    module.weight = nn.Parameter(torch.zeros(32, 80, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="does not store a plain matrix of floating-point numbers"):
        down_projection(model, 0)


def test_modules_cover_the_persistent_state():
    hf = tiny.hf_model("gpt2")
    original = {prefix.rpartition(".")[0] for prefix in hf.state_dict()}
    model = locate.load_model(hf, tiny.tokenizer())
    assert original <= {prefix.removesuffix(".") for prefix, _ in hf_modules(model)}


def test_fingerprint_sees_every_bit_dtype_and_shape():
    tensor = torch.arange(6.0).reshape(2, 3)
    changed = tensor.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    others = [
        changed,
        tensor.reshape(3, 2),
        tensor.bfloat16(),
        tensor.double(),
        -tensor,
        tensor.view(torch.int32),
    ]
    assert len({fingerprint(other) for other in [tensor, *others]}) == 7
    assert fingerprint(torch.zeros(1)) != fingerprint(-torch.zeros(1))


def test_fingerprint_does_not_depend_on_the_memory_layout():
    tensor = torch.randn(4, 6)
    assert fingerprint(tensor) == fingerprint(tensor.T.contiguous().T)
    assert fingerprint(tensor[1:3]) == fingerprint(tensor[1:3].clone())
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor([1.0]))


def test_fingerprint_refuses_offloaded_values():
    with pytest.raises(ModelError, match="not in memory: they were offloaded"):
        fingerprint(torch.empty(2, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_model_fingerprint_sees_a_rank_one_update(kind, dtype):
    model = tiny.bridge(kind, dtype=dtype)
    first = model_fingerprint(model)
    assert model_fingerprint(model) == first
    assert model_fingerprint(tiny.bridge(kind, dtype=dtype)) == first
    for layer in range(model.cfg.n_layers):
        weight = down_projection(model, layer).parameter
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.01 * torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1])))
            assert model_fingerprint(model) != first
            weight.copy_(kept)
    assert model_fingerprint(model) == first


def test_model_fingerprint_sees_one_changed_value_outside_the_sample():
    model = tiny.bridge("llama")
    first = model_fingerprint(model)
    embedding = hf_parameters(model)["model.embed_tokens.weight"]
    for position in range(0, 24, 3):
        kept = embedding[7, position].item()
        with torch.no_grad():
            embedding[7, position] += 1e-3
            assert model_fingerprint(model) != first
            embedding[7, position] = kept


def test_model_fingerprint_tells_seeds_dtypes_and_configurations_apart():
    models = [
        tiny.bridge("llama"),
        tiny.bridge("llama", seed=1),
        tiny.bridge("llama", dtype=torch.bfloat16),
        tiny.bridge("mistral"),
        tiny.bridge("qwen3"),
        _from_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        _from_config("llama"),
    ]
    assert len({model_fingerprint(model) for model in models}) == len(models)


def test_model_fingerprint_sees_values_that_change_places():
    model = tiny.bridge("llama")
    first = model_fingerprint(model)
    weight = down_projection(model, 0).parameter
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert model_fingerprint(model) != first
