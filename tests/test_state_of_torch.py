"""Whatever state a model and torch are left in, what is found is the same, and the state stays what it was."""

import warnings
from contextlib import contextmanager, nullcontext
from functools import cache
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch

import edit
import locate
from edit.values.objective import ValueObjective
from locate.model.running import running
from locate.model.weights import down_projection
from tests import tiny

FACT = locate.Fact(
    prompt="In Europe, {} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    paraphrases=("{} is in",), neighbours=("The Louvre is in",),
)  # fmt: skip
HOW = {"progress": False}
ZERO = locate.ZeroEmbedding()
NEURONS = [locate.Site("neuron", layer=layer, neuron=5) for layer in (1, 2)]
FEW = {"objective": ValueObjective(steps=3), "prefixes": ("I am. ",), "corpus": "sampled", "statistics_tokens": 300}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "training": nullcontext,
    "inference mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


def update(method, model):
    found = method.fit(model, [FACT], **HOW)
    return {name: found.delta(name) for name in found.parameters}


def given(model):
    """An update that is not fitted."""
    down = down_projection(model, 1)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, generator=generator, dtype=torch.float32) / 2 for n in down.parameter.shape)
    delta = edit.LowRank(left=left[:, None], right=right[None])
    return edit.WeightUpdate.make(model, {down.name: delta}, method="made up")


ENTRIES = {
    "trace": lambda model: locate.causal_trace(model, FACT, corruption=locate.GaussianNoise(samples=2), **HOW).data,
    "patch": lambda model: locate.patch(model, FACT, ZERO, sites="mlp_neurons", screen=5, **HOW).data,
    "attribution": lambda model: locate.attribute(model, FACT, ZERO, sites="mlp_out", steps=3, **HOW).data,
    "circuit": lambda model: locate.find_circuit(model, FACT, ZERO, steps=3, **HOW).scores,
    "paths": lambda model: locate.path_patch(model, FACT, ZERO, senders=["a1.h2", "m0"], **HOW).data,
    "knockout": lambda model: locate.attention_knockout(model, FACT, window=2, **HOW).data,
    "neurons": lambda model: locate.knowledge_neurons(model, FACT, steps=3, **HOW).data,
    "first order": lambda model: locate.neuron_attribution(model, FACT, positions="subject", **HOW).data,
    "gain": lambda model: locate.neuron_logprob_gain(model, FACT, **HOW).data,
    "screened gain": lambda model: locate.neuron_logprob_gain(model, FACT, screen=5, heads=False, **HOW).data,
    "queries": lambda model: locate.query_neurons(model, FACT, heads=3, neurons=4, **HOW).scores,
    "verification": lambda model: locate.verify_neurons(model, FACT, NEURONS, random=2, **HOW).data,
    "logit attribution": lambda model: locate.logit_attribution(model, FACT, by="neuron", **HOW).contributions,
    "lens": lambda model: locate.logit_lens(model, FACT, **HOW).of("logit"),
    "tuned lens": lambda model: locate.TunedLens.fit(model, [FACT.text], steps=2, **HOW).weights,
    "vocabulary": lambda model: locate.neuron_vocabulary(model, locate.Site("neuron", layer=1, neuron=3)),
    "extraction": lambda model: locate.attribute_extraction_rate(model, [FACT], **HOW),
    "generation": lambda model: edit.sample_prefixes(model, ((2, 5),)),
    "statistics": lambda model: edit.key_statistics(model, 1, tokens=300, cache=False, **HOW).second_moment,
    "ROME": lambda model: update(edit.ROME(layer=1, **FEW), model),
    "MEMIT": lambda model: update(edit.MEMIT(layers=(1, 2), **FEW), model),
    "AlphaEdit": lambda model: update(edit.AlphaEdit(layers=(1, 2), **FEW), model),
    "KN": lambda model: update(edit.KN(steps=2, prefixes=("I am. ",)), model),
    "evaluation": lambda model: edit.evaluate(model, given(model), [edit.EditRequest(FACT)], **HOW).rows,
    "propagation": lambda model: edit.mediate(model, given(model), edit.EditRequest(FACT), **HOW).data,
}

# The others ask the model in the same ways.
SAMPLE = (
    "trace", "circuit", "neurons", "logit attribution", "generation", "statistics", "ROME", "evaluation", "propagation",
)  # fmt: skip
slow = pytest.mark.slow("a sample of the analyses stands for all")


def numbers(found):
    """What was found as plain values with names."""
    if isinstance(found, dict):
        return {name: value.numpy() for name, value in found.items()}
    if isinstance(found, torch.Tensor):
        return {"": found.numpy()}
    if isinstance(found, pd.DataFrame):
        return {name: found[name].to_numpy() for name in found}
    return (
        {str(name): value.values for name, value in found.data_vars.items()}
        if hasattr(found, "data_vars")
        else {"": np.array(found)}
    )


def ask(entry, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return numbers(ENTRIES[entry](model))


@cache
def expected(entry):
    """What is found in a usual state."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setenv("LOCATE_EDIT_CACHE", folder)
        return ask(entry, tiny.bridge("gpt2"))


@pytest.fixture(scope="module", params=STATES)
def left(request):
    """A model, and the state that it and torch are left in."""
    model = tiny.bridge("gpt2")
    assert model.original_model.config.resid_pdrop > 0
    if request.param == "training":
        model.original_model.train()
        model.blocks[2].eval()  # as one who froze a block
    return model, STATES[request.param]


@pytest.mark.parametrize("entry", [name if name in SAMPLE else pytest.param(name, marks=slow) for name in ENTRIES])
def test_nothing_depends_on_it_and_it_stays(entry, left, tmp_path, monkeypatch):
    usual = expected(entry)
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path))
    model, state = left
    modes = {name: module.training for name, module in model.named_modules()}
    with state():
        dtype = torch.get_default_dtype()
        found = ask(entry, model)
        assert torch.get_default_dtype() == dtype
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert found.keys() == usual.keys()
    for name, values in found.items():
        if values.dtype.kind == "f":  # kernels round in another way outside of autograd
            np.testing.assert_allclose(values, usual[name], rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(values, usual[name], err_msg=name)


def test_a_mode_comes_back_after_an_error():
    model = tiny.bridge("gpt2")
    model.original_model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    assert {True, False} == set(modes)

    def fail(value, hook):
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"), model.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", fail)]):
        locate.causal_trace(model, FACT, **HOW)
    assert [module.training for module in model.modules()] == modes
    with running(model):
        assert not any(module.training for module in model.modules())


def test_a_model_in_training_is_another_one():
    """Otherwise nothing was compared above."""
    model = tiny.bridge("gpt2")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        calm = model(tokens)
        model.original_model.train()
        assert not torch.equal(model(tokens), model(tokens))
        with running(model):
            assert torch.equal(model(tokens), calm)
