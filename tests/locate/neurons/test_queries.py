"""Query neurons: the parts of a coefficient by hand, and which value neurons they are asked about."""

from itertools import product

import numpy as np
import pytest
import torch

import locate
from locate import FactError, LocateError, ModelError
from tests.architectures import table
from tests.locate.neurons.test_gain import BY_HAND, FACTS, ByHand
from tests.sampling import sampled


class Parts(ByHand):
    """What a neuron writes, and how it reaches an entry of a head's value."""

    def written(self, layer, neuron, position):
        module = self.model.blocks[layer].mlp.out.original_component
        weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
        vector = self.cache[f"blocks.{layer}.mlp.hook_post"][0, position, neuron] * weight[neuron]
        return self.through("ln2_post", layer, vector, self.cache[f"blocks.{layer}.mlp.out.hook_out"][0, position])

    def value(self, layer, state, position, head, dim):
        """The entry that a state would make, with the norm's scale as it is; linear but for a constant."""
        block = self.model.blocks[layer]
        norm = getattr(block, "ln1", None)
        like = self.cache[f"blocks.{layer}.hook_in"][0, position]
        read = state if self.kind == "olmo2" else self.scaled(norm, state, like)
        values = block.attn.v.original_component(read[None])[0]
        return values.view(-1, self.cache[f"blocks.{layer}.attn.hook_v"].shape[-1])[head, dim]


@pytest.mark.parametrize("kind", sampled(BY_HAND))
def test_scores_are_parts_of_the_value_neurons_coefficients(kind):
    model, fact = table.bridge(kind), FACTS[0]
    queries = locate.query_neurons(model, fact, heads=4, neurons=6, progress=False)
    hand = Parts(kind, fact)
    hand.kind = kind
    found = queries.attention_neurons()
    assert len(found) == 6
    gain = locate.neuron_logprob_gain(model, fact, progress=False)
    best = set(gain.top_heads(4)[["layer", "head", "position"]].itertuples(index=False, name=None))
    assert set(found[["layer", "head", "position"]].itertuples(index=False, name=None)) <= best
    assert float(abs(queries.scores).max()) > 0.01
    rows = found.to_dict("records")
    with torch.no_grad():
        for row in rows:
            kept = [hand.cache[f"blocks.{row['layer']}.attn.hook_{one}"].shape[2] for one in "vz"]
            entry = row["position"], row["head"] * kept[0] // kept[1], row["dim"]
            row["read"] = lambda state, layer=row["layer"], entry=entry: float(hand.value(layer, state, *entry))
            row["whole"] = hand.cache[f"blocks.{row['layer']}.hook_in"][0, row["position"]]
            assert row["coefficient"] == pytest.approx(row["read"](row["whole"]), rel=1e-3, abs=1e-5)
        for layer, neuron in product(range(3), range(0, queries.scores.sizes["neuron"], 11)):
            expected = 0.0
            for row in rows:
                if layer < row["layer"]:
                    less = row["whole"] - hand.written(layer, neuron, row["position"])
                    part = row["read"](row["whole"]) - row["read"](less)
                    expected += row["gain"] / row["coefficient"] * part
            assert float(queries.scores[0, layer, neuron]) == pytest.approx(expected, rel=2e-2, abs=2e-4)


def test_places_are_told_and_files_read(tmp_path):
    model = table.bridge("llama")
    queries = locate.query_neurons(model, FACTS, heads=3, neurons=4, progress=False)
    top = queries.top(3, fact=1)
    asked = set(queries.attention_neurons(1)["position"])
    assert {site.position for site in top} <= asked
    deepest = max(queries.attention_neurons(0)["layer"])
    assert (queries.scores[0].sel(layer=slice(deepest, None)) == 0).all()
    again = locate.load_query_neurons(queries.save(tmp_path / "queries.nc"))
    assert again.attention_neurons(1).equals(queries.attention_neurons(1))
    np.testing.assert_array_equal(again.scores, queries.scores)


def test_bad_input():
    model = table.bridge("llama")
    with pytest.raises(FactError, match="no facts to attribute"):
        locate.query_neurons(model, [])
    with pytest.raises(LocateError, match="heads and neurons must be 1 or more, found 0 and 30"):
        locate.query_neurons(model, FACTS, heads=0)
    with pytest.raises(ModelError, match="mixture of experts"):
        locate.query_neurons(table.bridge("mixtral"), FACTS)
