"""Every result that locates says where an edit goes: ``fit(…, layer=result)`` takes each."""

from functools import cache

import pytest

import edit
import locate
from edit.methods.where import layers_at
from edit.requests.requests import EditRequest
from locate import Fact, SiteError
from locate.sites.graph import graph
from tests import drawings, tiny

FACT = Fact(prompt="{} is located in the city of", subject="The Louvre", target="Paris", target_new="Rome")
SWAP = locate.TokenSwap("The Colosseum")
QUIET = {"progress": False}


@cache
def llama():
    return tiny.bridge("llama")


def trace():
    return locate.causal_trace(llama(), FACT, corruption=locate.GaussianNoise(samples=2), **QUIET)


def patches(**how):
    return locate.patch(llama(), FACT, locate.GaussianNoise(samples=2), metric="probability", **how, **QUIET)


LOCATED = {
    "trace": trace,
    "average of traces": lambda: locate.average_traces([trace(), trace()]),
    "patches": lambda: patches(sites="mlp_out", positions="subject"),
    "patches of heads": lambda: patches(sites="attn_head_z"),
    "average of patches": lambda: locate.average_patches([patches(sites="attn_head_z")] * 2),
    "attribution": lambda: locate.attribute(
        llama(), FACT, locate.GaussianNoise(samples=2), method="relp", sites="mlp_out", metric="probability", **QUIET
    ),
    "knockout": lambda: locate.attention_knockout(llama(), FACT, window=1, **QUIET),
    "neurons": lambda: locate.knowledge_neurons(llama(), FACT, steps=3, **QUIET),
    "circuit": lambda: tiny.made_up_circuit(graph(llama())).top(5),
    "layer study": drawings.layers,
    "propagation": lambda: edit.mediate(
        llama(), edit.FineTuning(layer=1, steps=1).fit(llama(), FACT, **QUIET), FACT, roles="edit", kinds=["mlp"],
        **QUIET,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LOCATED)
def test_an_edit_goes_where_each_result_points(kind):
    found = LOCATED[kind]()
    layer = found.best().layer
    if layer >= llama().cfg.n_layers:  # made up, of a larger model
        with pytest.raises(SiteError, match="is out of range"):
            layers_at(llama(), found)
        return
    assert layers_at(llama(), found) == (layer,)
    update = edit.FineTuning(steps=1).fit(llama(), EditRequest(FACT), layer=found, progress=False)
    assert update.info["layer"] == layer


def test_what_has_no_one_best_site_and_what_names_no_layer_are_refused():
    class Twofold:
        def best(self, which):
            raise AssertionError(which)

    with pytest.raises(SiteError, match="a Twofold has no one best site; give one of them"):
        layers_at(llama(), Twofold())
    with pytest.raises(SiteError, match="expected a layer's index, a Site, or a result of locate"):
        layers_at(llama(), True)
