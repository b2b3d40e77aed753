"""Knowledge neurons: MLP neurons whose activation a fact's answer depends on, by integrated gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET, Branch, FrozenRun, Pin, freeze
from locate.engine.rows import Budget, cut
from locate.errors import FactError, LocateError, ModelError, SiteError
from locate.facts.answers import up_to_difference
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, answer_strings, encode_fact, encode_target
from locate.model.parameters import frozen_parameters
from locate.model.running import running
from locate.model.weights import check_down_projections
from locate.neurons.integration import RULES, Answer, Asked, Attribution
from locate.results import Result, place_of_largest
from locate.sites.site import Site, hook_name

_STEPS = {"adaptive": 60, "right": 20}


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronScores(Result):
    """How much each neuron contributes to facts' answers.

    Attributes:
        data: ``scores`` (dims ``fact, layer, neuron``), the mean attribution over a fact's prompts, in units of
            probability; ``kept``, the share of a fact's prompts for which the neuron passes the threshold; ``change``
            (dims ``fact, layer``), the mean change of probability from a layer without its neurons to the layer as it
            is; ``residual``, by how much a layer's attributions miss it, at most over a fact's prompts.
        info: how it was made.

    >>> neurons.scores.dims
    ('fact', 'layer', 'neuron')
    """

    stored_as = "neurons"

    info: dict[str, Any]

    @property
    def scores(self) -> xr.DataArray:
        """Mean attribution over each fact's prompts; dims ``fact, layer, neuron``."""
        return self.data["scores"]

    @property
    def kept(self) -> xr.DataArray:
        """The share of each fact's prompts for which a neuron passes the threshold."""
        return self.data["kept"]

    def refined(self, fact: int = 0, *, share: float = 0.5) -> list[Site]:
        """The knowledge neurons of a fact: those that pass the threshold for more than a share of its prompts.

        Raises:
            SiteError: there is no such fact.

        >>> neurons.refined()[0].kind
        'neuron'
        """
        self._check(fact)
        own = self.kept.isel(fact=fact).values > share
        order = np.argsort(-self.scores.isel(fact=fact).values[own], kind="stable")
        layers, neurons = np.nonzero(own)
        return [Site("neuron", layer=int(layers[i]), neuron=int(neurons[i])) for i in order]

    def top(self, n: int = 20, fact: int = 0) -> list[Site]:
        """The neurons of the largest attribution, the largest first.

        Raises:
            SiteError: there is no such fact.

        >>> len(neurons.top(5))
        5
        """
        self._check(fact)
        table = self.scores.isel(fact=fact).values
        order = np.argsort(-table, axis=None, kind="stable")[:n]
        places = np.unravel_index(order, table.shape)
        return [Site("neuron", layer=int(layer), neuron=int(neuron)) for layer, neuron in zip(*places, strict=True)]

    def best(self) -> Site:
        """The neuron of the largest mean attribution over all facts.

        >>> neurons.best().kind
        'neuron'
        """
        return Site("neuron", **place_of_largest(self.scores.mean("fact")))

    def _check(self, fact: int) -> None:
        if not 0 <= fact < self.data.sizes["fact"]:
            raise SiteError(f"There is no fact {fact}: these scores are of {self.data.sizes['fact']} fact(s).")


def load_neurons(path: str | Path) -> NeuronScores:
    """Read scores that were saved.

    Raises:
        DataError: the file is missing or holds no neuron scores.

    >>> load_neurons(neurons.save("neurons.nc")).info["rule"]
    'adaptive'
    """
    return NeuronScores.load(path)


def knowledge_neurons(
    model: TransformerBridge,
    facts: Sequence[Fact] | Fact,
    *,
    prefixes: Sequence[str] = (),
    steps: int | None = None,
    rule: str = "adaptive",
    threshold: float = 0.2,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> NeuronScores:
    """Attribute each fact's answer to every MLP neuron (Dai et al. 2022, arXiv:2104.08696), all layers in one sweep.

    Attr(w) = w ∫ ∂P(α·w)/∂w dα over α from 0 to 1 at the prompt's last position, with P the probability of the answer's
    first token. What is attributed to a layer adds up to P(w) − P(0); by how much it misses that is in the result.
    A fact is asked by its prompt and its paraphrases; what all of these share is what the fact itself needs.

    Args:
        model: a raw-mode bridge.
        facts: one or several.
        prefixes: texts to put before each fact's prompt as further prompts.
        steps: points of the integral for each layer: 20 for ``"right"``; for ``"adaptive"`` the most on average, 60 if
            none are given, of which most models need a fraction.
        rule: ``"adaptive"`` puts Gauss–Legendre points where P changes, until a layer adds up to within 1%;
            ``"right"`` is the published sum (w/m) Σₖ ∂P((k/m)·w)/∂w over ``steps`` right ends, which misses by
            more than 10% in one layer of three.
        threshold: the share of a prompt's largest attribution that a neuron must exceed to count in ``kept``.
        budget: the most tokens in one pass, an eighth of it where gradients are kept.
        progress: whether to show a bar.

    Raises:
        FactError: no facts, or a prompt that cannot be used.
        LocateError: steps or threshold out of range, or an unknown rule.

    >>> locate.knowledge_neurons(model, fact, steps=5, progress=False).best().kind
    'neuron'
    """
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    if not facts:
        raise FactError("There are no facts to attribute; give at least one.")
    if rule not in RULES:
        raise LocateError(f"rule must be one of {', '.join(RULES)}, found {rule!r}.")
    steps = _STEPS[rule] if steps is None else steps
    if steps < 1 or not 0 <= threshold < 1:
        raise LocateError(f"steps must be 1 or more and threshold within 0 and 1; found {steps} and {threshold}.")
    asked = [_prompts(model, fact, prefixes) for fact in facts]
    scores, kept, change, missed = [], [], [], []
    with tqdm(total=sum(map(len, asked)), desc="neurons", unit="prompt", disable=not progress, delay=1) as bar:
        for fact, prompts in zip(facts, asked, strict=True):
            found = []
            for prompt in prompts:
                answer = int(encode_target(model, prompt, fact.target)[0])
                found.append(attribute_neurons(model, prompt.tokens, answer, steps=steps, rule=rule, budget=budget))
                bar.update()
            each = torch.stack([one.values for one in found])
            changes = torch.stack([one.change for one in found])
            change.append(changes.mean(0))
            missed.append((each.sum(-1) - changes).abs().amax(0))
            scores.append(each.mean(0))
            kept.append((each > threshold * each.flatten(1).amax(1)[:, None, None]).float().mean(0))
    dims = ("fact", "layer", "neuron")
    tables = {"scores": scores, "kept": kept, "change": change, "residual": missed}
    data = xr.Dataset({name: (dims[: one[0].ndim + 1], torch.stack(one).numpy()) for name, one in tables.items()})
    data = data.assign_coords(fact=[fact.text for fact in facts], layer=range(model.cfg.n_layers))
    spelled = [answer_strings(model, own[0], fact.target) for fact, own in zip(facts, asked, strict=True)]
    info = {
        "model": str(model.cfg.model_name), "steps": steps, "rule": rule, "threshold": threshold,
        "prompts": [[prompt.text for prompt in own] for own in asked], "answer_tokens": spelled,
    }  # fmt: skip
    return NeuronScores(data=data, info=info)


def _prompts(model: TransformerBridge, fact: Fact, prefixes: Sequence[str]) -> list[Prompt]:
    """A fact's prompt, its paraphrases, and the prompt after each prefix; each text once."""
    ways = [
        (fact.prompt, ""),
        *((template, "") for template in fact.paraphrases),
        *((fact.prompt, p) for p in prefixes),
    ]
    texts = (encode_fact(model, fact, template, prefix) for template, prefix in ways)
    encoded = (up_to_difference(model, text, fact.target, fact.target_new) for text in texts)
    return list({prompt.text: prompt for prompt in encoded}.values())


def attribute_neurons(
    model: TransformerBridge, tokens: Tensor, answer: int, *, steps: int = 60, rule: str = "adaptive",
    budget: int = DEFAULT_BUDGET,
) -> Attribution:  # fmt: skip
    """Integrated gradients of an answer's probability, over the activations of one layer at a time.

    Only the last position is run again, for every layer and step side by side.

    Raises:
        ModelError: a layer has no single MLP, or one of another width than the others.

    >>> found = attribute_neurons(model, locate.encode_fact(model, fact).tokens, 42, steps=2)
    >>> found.values.shape == (model.cfg.n_layers, model.cfg.d_mlp)
    True
    """
    n, last = model.cfg.n_layers, len(tokens) - 1
    names = [hook_name("neuron", layer) for layer in range(n)]
    check_down_projections(model)
    run = freeze(model, tokens[None], keep=names, budget=budget)
    if len({run.kept[name].shape[-1] for name in names}) > 1:
        widths = ", ".join(str(run.kept[name].shape[-1]) for name in names)
        raise ModelError(
            f"The MLPs differ in width between layers ({widths}), so their neurons fill no one table. Patch the "
            "neurons of single layers instead: locate.patch(…, sites='mlp_neurons', layers=[…])."
        )
    states = torch.stack([run.kept[name][0, last] for name in names])

    def ask(asked: Sequence[Asked]) -> list[Answer]:
        answers: list[list[Answer]] = [[] for _ in asked]
        at_once = Budget(tokens=budget).rows(1, gradients=True)
        for part in cut([len(one.shares) for one in asked], at_once):
            own = [(index, asked[index].layer, asked[index].shares[which]) for index, which in part]
            found = _gradients(run, [(names[layer], layer, states[layer], shares) for _, layer, shares in own], answer)
            for (index, _, _), one in zip(own, found, strict=True):
                answers[index].append(one)
        return [Answer(*map(torch.cat, zip(*parts, strict=True))) for parts in answers]

    return RULES[rule](ask, states.float().cpu(), steps)


def _gradients(run: FrozenRun, places: Sequence[tuple[str, int, Tensor, Tensor]], answer: int) -> list[Answer]:
    """P of an answer, and its gradient, with the neurons of a layer at shares of their state at the last position."""
    last = run.tokens.shape[1] - 1
    with running(run.model, grad=True), frozen_parameters(run.model):
        scaled = [(w[None] * shares.to(w)[:, None])[:, None].requires_grad_() for _, _, w, shares in places]
        branches = [
            Branch(
                layer=layer, rows=torch.zeros(len(values), dtype=torch.long),
                states=run.residuals[layer][:, last:].expand(len(values), -1, -1),
                interventions={name: Pin(values=values)},
            )
            for (name, layer, _, _), values in zip(places, scaled, strict=True)
        ]  # fmt: skip
        chances = run.resume(last, branches, grad=True).float().softmax(-1)[:, answer]
        gradients = torch.autograd.grad(chances.sum(), scaled)
    each = chances.detach().cpu().split([len(values) for values in scaled])
    return [Answer(own, one[:, 0].float().cpu()) for own, one in zip(each, gradients, strict=True)]
