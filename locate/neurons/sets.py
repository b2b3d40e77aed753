"""Sets of neurons: which are a fact's, and random ones that are alike in where they stand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError, LocateError, SiteError, counted, tell
from locate.facts.facts import Fact
from locate.model.weights import down_projection
from locate.neurons.scores import NeuronScores
from locate.sites.site import Site
from locate.sites.table import site_row

# Of a layer, and among its neurons.
Place = tuple[int, int]
Sets = NeuronScores | Sequence[Site] | Sequence[Sequence[Site]]


def sets_of(
    model: TransformerBridge, facts: Sequence[Fact], neurons: Sets, *, share: float = 0.5
) -> dict[int, list[Place]]:
    """Each fact's neurons, by its place among the facts: those given, or its refined set.

    A fact whose refined set is empty is left out with a warning.

    Raises:
        FactError: the scores are not of a fact, or as many sets as facts are needed.
        SiteError: a site is no neuron of the model; or no fact has any.
        ModelError: a layer has no single MLP.

    >>> list(sets_of(model, [fact], [locate.Site("neuron", layer=3, neuron=5)]).values())
    [[(3, 5)]]
    """
    if isinstance(neurons, NeuronScores):
        given = _refined(facts, neurons, share)
    else:
        one_for_all = all(isinstance(one, Site) for one in neurons)
        several: Any = [neurons] * len(facts) if one_for_all else neurons
        if len(several) != len(facts):
            raise FactError(
                f"neurons: give one set for each of {len(facts)} facts, or one for all; found {len(several)}."
            )
        given = {index: list(own) for index, own in enumerate(several)}
        if empty := [facts[index].text for index, own in given.items() if not own]:
            raise SiteError(f"neurons: the set of {empty[0]!r} is empty; give at least one neuron.")
    return {index: _places(model, own) for index, own in given.items()}


def random_sets(
    places: Sequence[Place], widths: dict[int, int], n: int, generator: np.random.Generator
) -> list[list[Place]]:
    """Sets of as many other neurons, with as many in each layer.

    Raises:
        LocateError: a layer has too few others.

    >>> found = random_sets([(2, 0), (2, 1), (5, 0)], {2: 96, 5: 96}, 3, np.random.default_rng(0))
    >>> [[layer for layer, _ in one] for one in found] == [[2, 2, 5]] * 3
    True
    """
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in places:
        by_layer.setdefault(layer, []).append(neuron)
    found: list[list[Place]] = [[] for _ in range(n)]
    for layer, own in sorted(by_layer.items()):
        others = np.setdiff1d(np.arange(widths[layer]), own)
        if n and len(others) < len(own):
            raise LocateError(
                f"Layer {layer} has {widths[layer]} neurons, {len(own)} of which are in the set: there are no random "
                "sets of as many others. Give a smaller set, or random=0."
            )
        for one in found:
            one += [(layer, int(neuron)) for neuron in generator.choice(others, len(own), replace=False)]
    return found


def _refined(facts: Sequence[Fact], neurons: NeuronScores, share: float) -> dict[int, list[Site]]:
    known = [str(text) for text in neurons.data["fact"].values]
    for fact in facts:
        if fact.text not in known:
            raise FactError(
                f"{fact.text!r}: the neurons given are of other facts ({', '.join(map(repr, known[:3]))}). Find its "
                "own with locate.knowledge_neurons(model, facts)."
            )
    found, empty, error = {}, [], None
    for index, fact in enumerate(facts):
        try:
            found[index] = neurons.refined(known.index(fact.text), share=share)
        except SiteError as problem:
            empty.append(fact.text)
            error = problem
    if not found and error is not None:
        raise error
    if empty:
        tell(f"Left out {len(empty)} of {counted(len(facts), 'fact')}, without refined neurons, such as {empty[0]!r}.")
    return found


def _places(model: TransformerBridge, sites: Sequence[Site]) -> list[Place]:
    places = []
    for site in sites:
        if site_row(site.kind).name != site_row("neuron").name or site.neuron is None:
            raise SiteError(f"{site} is no neuron; give sites such as Site('neuron', layer=3, neuron=5).")
        width = down_projection(model, site.layer).key_size
        if not 0 <= site.neuron < width:
            raise SiteError(f"{site}: the MLP of layer {site.layer} has {width} neurons, 0 to {width - 1}.")
        places.append((site.layer, site.neuron))
    return sorted(set(places))
