"""Changes at random, for tests."""

import torch

import edit
import locate
from locate.model.weights import down_projection

FACT = locate.Fact(
    prompt="I know that {} is located in the city of", subject="The Eiffel Tower", target="Paris", target_new="Rome",
    paraphrases=("To visit {}, fly to",), neighbours=("The Louvre is in",),
)  # fmt: skip
REQUEST = edit.EditRequest(FACT)


def random_update(model, *layers, rank=1, seed=0, size=0.5):
    """Of the down-projections of some layers."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for layer in layers:
        down = down_projection(model, layer)
        out, into = down.parameter.shape
        left = size * torch.randn(out, rank, generator=generator)
        deltas[down.name] = edit.LowRank(left=left, right=torch.randn(rank, into, generator=generator))
    return edit.WeightUpdate.make(model, deltas, method="random", info={})


def logits_of(model, text):
    """At the last position, by a plain pass."""
    with torch.no_grad():
        return model(torch.tensor(model.tokenizer(text)["input_ids"])[None])[0, -1]


def difference(model, logits, new="Rome", old="Paris"):
    """The logit of one answer over the other."""
    ids = [model.tokenizer(" " + one)["input_ids"][0] for one in (new, old)]
    return float(logits[ids[0]] - logits[ids[1]])
