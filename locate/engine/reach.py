"""How far up what earlier tokens hold is still read by later ones."""

import warnings

import torch
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.branch import Branch
from locate.engine.freezing import freeze
from locate.model.devices import input_device
from locate.model.found import once

_TOKENS = (1, 2, 3, 4)


def reaching_layers(model: TransformerBridge) -> range:
    """The layers whose output at an earlier token is read by anything that follows.

    In most models all but the last. Where later layers read keys and values that earlier ones have made, it ends
    below them: what these layers add at earlier tokens reaches nothing. Tried, once per model.

    >>> reaching_layers(model) == range(model.cfg.n_layers - 1)
    True
    """
    return range(once(model, "layers whose output is read", lambda: _count(model)))


def _count(model: TransformerBridge) -> int:
    with warnings.catch_warnings():  # what an architecture cannot do, its user hears from the runs asked for
        warnings.simplefilter("ignore")
        run = freeze(model, torch.tensor([_TOKENS], device=input_device(model)) % model.cfg.d_vocab)
    position = len(_TOKENS) - 2
    generator = torch.Generator().manual_seed(0)
    for layer in range(run.n_layers - 1, 0, -1):
        # Two rows alike but for one earlier token.
        states = run.residuals[layer][:, position:].repeat(2, 1, 1)
        spread = float(states.float().std())
        states[1, 0] += (torch.randn(states.shape[-1], generator=generator, dtype=torch.float32) * spread).to(states)
        branch = Branch(layer=layer, rows=torch.zeros(2, dtype=torch.long), states=states)
        one, other = run.resume(position, [branch])
        if not torch.equal(one, other):
            return layer
    return 0
