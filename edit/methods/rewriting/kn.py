"""Knowledge neurons: rewrite what single neurons say."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Count, Finite, Natural, Share, hyperparameters
from edit.methods.base import Fitted, Job, checked
from edit.methods.rewriting.rewriting import Rewriting, stored
from edit.methods.where import Where, layers_at
from edit.requests.requests import EditRequest
from locate.errors import FactError, NumericsError, counted, listed
from locate.facts.prompts import answer_strings, encode_fact, encode_target
from locate.model.weights import down_projection
from locate.neurons.knowledge import knowledge_neurons
from locate.neurons.scores import NeuronScores
from locate.sites.site import Site


@hyperparameters
class KN(Rewriting):
    """Knowledge-neuron editing (Dai et al. 2022, arXiv:2104.08696).

    The neurons on which a fact's present answer depends are found by integrated gradients, over its prompt and
    paraphrases (or prefixes, where it has none). What each of them writes, a column of the down-projection,
    loses λ₁·E[o] and gains λ₂·E[o*], with E the rows of the unembedding of the targets' first tokens.

    Args:
        erase: λ₁.
        write: λ₂.
        steps: of the integral.
        threshold: the share of a prompt's largest attribution that a neuron must exceed.
        share: of the prompts for which it must; as published, it is lowered in steps of 0.05 while fewer than
            ``least`` neurons pass.
        least: neurons per fact to aim for.
        most: at most so many neurons per fact, those of the largest attribution.
        stabilisers: ``PRUNE`` or ``RECT``; the others act on values, which this method has none of.

    >>> update = edit.KN().fit(model, [request])
    >>> update.method
    'KN'
    """

    uses_paraphrases: ClassVar[bool] = True

    erase: Finite = 1.0
    write: Finite = 2.0
    steps: Count = 20
    threshold: float = 0.2
    share: Share = 0.5
    least: Natural = 2
    most: Count = 20

    @property
    def adds_up(self) -> bool:
        """Without stabilisers: what a neuron gains does not depend on what others have gained."""
        return not self.stabilisers

    def edited_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """See ``EditingMethod.edited_layers``; neurons that are given may lie anywhere."""
        return super().edited_layers(model, None if isinstance(where, NeuronScores) else where)

    def described(self, model: TransformerBridge, layer: Where | None = None) -> dict[str, Any]:
        """See ``EditingMethod.described``; neurons that are given count one by one."""
        return {"method": {**super().described(model, layer)["method"], "layers": repr(layer)}}

    def check(self, model: TransformerBridge, requests: Sequence[EditRequest]) -> None:
        """See ``EditingMethod.check``; targets must begin with tokens of their own."""
        super().check(model, requests)
        alike = [request for request in requests if len(set(_first_tokens(model, request))) < 2]
        if alike:
            raise FactError(
                f"KN writes the targets' first tokens, and both targets of {counted(len(alike), 'request')} begin "
                "with one. Nothing was changed. Use another method, or drop them:\n"
                f"{listed([one.describe() for one in alike])}"
            )

    def fit_with(self, job: Job) -> Fitted[WeightUpdate]:
        """See ``EditingMethod.fit``. ``layer`` keeps to neurons of some layers; a ``NeuronScores`` of the same facts
        gives the neurons themselves.

        Raises:
            NumericsError: no neuron of a fact passes the threshold for any of its prompts.
            FactError: the neurons given are not of a request's fact, or both its targets begin with one token.
        """
        model, layer, earlier = job.model, job.layer, job.earlier
        requests = checked(job.requests)
        if not earlier.changes:
            self.check(model, requests)
        for stabiliser in self.stabilisers:
            if stabiliser.acts_on_values:
                raise NumericsError(f"{stabiliser.name} acts on optimised values, and KN has none. Use PRUNE or RECT.")
        given = layer if isinstance(layer, NeuronScores) else None
        places = {} if given is None else _places(given, requests)
        allowed = None if layer is None or given is not None else set(layers_at(model, layer))
        bare = [request for request in requests if not request.fact.paraphrases]
        prefixes = self.texts_before(model)[1:] if bare and given is None else []
        unembedding: Any = model.unembed.original_component.weight
        changes: dict[int, dict[int, torch.Tensor]] = {}
        edits = []
        for index, request in enumerate(tqdm(requests, "KN", disable=not job.progress, delay=1)):
            fact = request.fact
            scores = given or knowledge_neurons(
                model, fact, prefixes=() if fact.paraphrases else prefixes, steps=self.steps,
                threshold=self.threshold, budget=self.budget, progress=False,
            )  # fmt: skip
            sites = self._neurons(scores, places.get(index, 0), allowed)
            if not sites:
                where = "" if allowed is None else f" of layers {sorted(allowed)}"
                raise NumericsError(
                    f"{request.describe()}: no neuron{where} passes {scores.info['threshold']} of the largest "
                    "attribution for any prompt. Lower the threshold, or allow more layers."
                )
            vectors = unembedding.detach()[_first_tokens(model, request)].float().cpu()
            change = self.write * vectors[1] - self.erase * vectors[0]
            for site in sites:
                column = changes.setdefault(site.layer, {})
                assert site.neuron is not None
                column[site.neuron] = column.get(site.neuron, torch.zeros_like(change)) + change
            edits.append(
                {
                    "request": request.describe(), "prompt": fact.prompt, "subject": fact.subject,
                    "target": fact.target, "target_new": request.target_new,
                    "answer_tokens": answer_strings(model, encode_fact(model, fact), request.target_new),
                    "neurons": [[site.layer, site.neuron] for site in sites],
                }
            )  # fmt: skip
        deltas: dict[str, LowRank] = {}
        for at, columns in sorted(changes.items()):
            down = down_projection(model, at)
            picks = torch.zeros(len(columns), down.key_size, dtype=torch.float32)
            picks[torch.arange(len(columns)), torch.tensor(list(columns))] = 1
            delta = stored(torch.stack(list(columns.values()), dim=1), picks, down)
            deltas[down.name] = self.stabilised(delta, down, earlier)
        info = {name: getattr(self, name) for name in _NAMED}
        if given is not None:  # they were found before, perhaps in another way
            info |= {name: given.info[name] for name in ("steps", "threshold")}
        layers = sorted(changes)
        stabilisers = [{"name": one.name} for one in self.stabilisers]
        update = WeightUpdate.make(
            model, deltas, method=self.name,
            info={**info, "layers": layers, "prefixes": prefixes, "stabilisers": stabilisers, "edits": edits},
        )  # fmt: skip
        return Fitted(update=update)

    def _neurons(self, scores: NeuronScores, fact: int, allowed: set[int] | None) -> list[Site]:
        share = self.share
        while True:
            sites = [s for s in scores.refined(fact, share=share, least=0) if allowed is None or s.layer in allowed]
            if len(sites) >= self.least or share <= 0:
                return sites[: self.most]
            share = max(0.0, share - 0.05)


def _first_tokens(model: TransformerBridge, request: EditRequest) -> list[int]:
    """Of the old and the new target."""
    targets, prompt = (request.fact.target, request.target_new), encode_fact(model, request.fact)
    return [int(encode_target(model, prompt, target)[0]) for target in targets]


def _places(scores: NeuronScores, requests: Sequence[EditRequest]) -> dict[int, int]:
    """For each request, which of the scores' facts it is about."""
    known = [str(text) for text in scores.data["fact"].values]
    for request in requests:
        if request.fact.text not in known:
            raise FactError(
                f"{request.describe()}: the neurons given are of other facts ({', '.join(map(repr, known[:3]))}). Find "
                "its own with locate.knowledge_neurons(model, facts)."
            )
    return {index: known.index(request.fact.text) for index, request in enumerate(requests)}


_NAMED = ("erase", "write", "steps", "threshold", "share", "least", "most", "seed")
