"""From what was located to the layer that was edited: where each way of locating points, and why which layer was taken.

Where causal tracing peaks is not where edits work best (Hase et al. 2023, arXiv:2301.04213), so that the two are told
side by side and neither follows from the other.
"""

from dataclasses import dataclass
from typing import Any

from edit.methods import ROME
from locate.neurons.scores import NeuronScores
from locate.patching.patches import Patches
from locate.sites.site import Site
from locate.tracing.trace import Trace

_DEFAULT = "the method's default share of the depth, which comes from a measured sweep over layers"
_GIVEN = "this layer was asked for"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Where one way of locating would edit.

    Attributes:
        name: of the way.
        site: the best one that it found.
        token: at the site, where it has a position.
        score: of the site.
        meaning: of the score.

    >>> points_to(trace, patches, neurons)["trace"].site.kind                        # doctest: +SKIP
    'mlp'
    """

    name: str
    site: Site
    token: str | None
    score: float
    meaning: str

    def describe(self) -> dict[str, Any]:
        """The same as plain data; of the site what it has."""
        parts = {"kind": self.site.kind, "layer": self.site.layer, "position": self.site.position,
                 "token": self.token, "head": self.site.head, "neuron": self.site.neuron}  # fmt: skip
        site = {name: value for name, value in parts.items() if value is not None}
        return {"name": self.name, "site": site, "score": self.score, "meaning": self.meaning}


def points_to(trace: Trace, patches: Patches, neurons: NeuronScores) -> dict[str, Pointer]:
    """Where each result would edit, by its own ``best()``.

    >>> list(points_to(trace, patches, neurons))                                     # doctest: +SKIP
    ['trace', 'patches', 'neurons']
    """
    traced, patched, neuron = trace.best("mlp"), patches.best(), neurons.best()
    steps, prompts = neurons.info["steps"], len(neurons.info["prompts"][0])
    return {
        "trace": Pointer(
            name="causal trace", site=traced, token=trace.tokens[traced.position or 0],
            score=float(trace.scores.sel(kind=traced.kind, layer=traced.layer, position=traced.position)),
            meaning=f"probability of the answer once the MLP outputs of {trace.info['window']} layers around it are "
            "restored at this token of the subject",
        ),
        "patches": Pointer(
            name="activation patches", site=patched, token=patches.info["tokens"][patched.position],
            score=float(patches.values.sel(layer=patched.layer, position=patched.position)),
            meaning="probability of the answer once this one MLP output is restored at this token of the subject",
        ),
        "neurons": Pointer(
            name="knowledge neurons", site=neuron, token=None,
            score=float(neurons.scores.mean("fact").sel(layer=neuron.layer, neuron=neuron.neuron)),
            meaning=f"integrated gradient of the answer's probability over this neuron at the last token, in {steps} "
            f"steps, mean over {prompts} prompt{'' if prompts == 1 else 's'}",
        ),
    }  # fmt: skip


def why_there(method: ROME) -> str:
    """Why the layer was edited that was.

    >>> why_there(ROME(layer=4))
    'this layer was asked for'
    """
    return _DEFAULT if method.layer is None else _GIVEN
